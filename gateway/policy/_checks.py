"""What only all documents together tell: names given twice, names that lead nowhere, budgets that cannot be held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

from gateway.catalogue import Catalogue
from gateway.engines import dialect_of

from ._documents import GpuSpec, KeySpec, ModelSpec, PoolSpec, ReplicaSpec, TenantSpec
from ._limits import ScopeLimitsSpec
from ._prices import EVERY_MODEL
from ._problems import Steps, shown
from ._reader import Reader
from ._rules import ANY_MODEL, check_origin
from ._table import Document

_Value = TypeVar("_Value")

ANY = (ANY_MODEL,)


@dataclass(frozen=True, slots=True)
class Source:
    """One file: where its values stand, and what it says."""

    reader: Reader
    document: Document

    def place(self, steps: Steps) -> str:
        """File and line of a value, as a message names another place."""
        return f"{self.reader.file}:{self.reader.lines.get(steps, 1)}"

    def items(self, steps: Steps, values: tuple[_Value, ...]) -> Iterator[tuple[Steps, _Value]]:
        """The values read from a list with their paths; items that could not be read are not among them."""
        for index, value in zip(self.reader.kept.get(steps, ()), values, strict=True):
            yield (*steps, index), value


def check(sources: list[Source], catalogue: Catalogue) -> Document:
    """Merges the files and notes with their readers what does not fit; what is there twice, where it comes second."""
    merged = Document(
        ledger=_only(sources, "ledger").ledger,
        alerts=_only(sources, "alerts").alerts,
        fleet=_only(sources, "fleet").fleet,
        pricing=_only(sources, "pricing").pricing,
    )
    _merge(sources, merged)
    _check_model_names(sources)
    _check_engines(sources)
    _check_resorts(sources)
    _check_gpus(sources, catalogue)
    _check_keys(sources)
    _check_tenants(sources, merged)
    return merged


def _merge(sources: list[Source], merged: Document) -> None:
    for section in ("models", "tenants", "classes", "groups"):
        first: dict[str, str] = {}
        target = getattr(merged, section)
        for source in sources:
            for name in _declared(source, section):
                steps = (section, name)
                if name in first:
                    source.reader.problem(steps, f"is defined already in {first[name]}; each name is defined once")
                    continue
                first[name] = source.place(steps)
                value = getattr(source.document, section).get(name)
                if value is not None:
                    target[name] = value


def _only(sources: list[Source], section: str) -> Document:
    """What says a section that has no names: it is written once."""
    steps: Steps = (section,)
    written = [source for source in sources if steps in source.reader.lines]
    for source in written[1:]:
        source.reader.problem(steps, f"is written already in {written[0].place(steps)}; keep one")
    return written[0].document if written else Document()


def _declared(source: Source, section: str) -> list[str]:
    """Every name a file gives in a section, also those whose definition could not be read."""
    return [str(steps[1]) for steps in source.reader.lines if len(steps) == 2 and steps[0] == section]


def _check_model_names(sources: list[Source]) -> None:
    """A client's model name leads to one model, and each replica is in a model's list once."""
    names = {name: source.place(("models", name)) for source in sources for name in _declared(source, "models")}
    aliases: dict[str, str] = {}
    for source, model in _models(sources):
        for steps, alias in source.items(("models", model.name, "aliases"), model.aliases):
            taken = names.get(alias) or aliases.get(alias)
            if taken:
                source.reader.problem(steps, f"{alias!r} is already the name of a model, in {taken}")
            else:
                aliases[alias] = source.place(steps)
        urls: set[str] = set()
        for steps, replica in _replicas(source, model):
            if replica.url in urls:
                source.reader.problem((*steps, "url"), f"{replica.url} is in the list twice")
            urls.add(replica.url)


def _check_engines(sources: list[Source]) -> None:
    """What a model asks of its engine is what that can do, and an address is spoken to in one way."""
    known: dict[str, ModelSpec] = {}
    for source, model in _models(sources):
        dialect = dialect_of(model.engine)
        if model.engine_priority == "pass" and not dialect.priority_sign:
            message = f"{model.engine} knows no priorities; leave it out"
            source.reader.problem(("models", model.name, "engine_priority"), message)
        if model.cache_isolation == "tenant" and not dialect.takes_cache_salt:
            message = f"{model.engine} cannot keep tenants' cached prompts apart; leave it out"
            source.reader.problem(("models", model.name, "cache_isolation"), message)
        for steps, replica, spec in _spoken_to(source, model):
            other = known.setdefault(replica.url, spec)
            if not dialect_of(spec.engine).has_base_path and (wrong := check_origin(replica.url)):
                source.reader.problem((*steps, "url"), f"{shown(replica.url)} {wrong}")
            elif (other.engine, other.api_key_env) != (spec.engine, spec.api_key_env):
                message = f"{shown(replica.url)} is a replica of {other.name} too, with another engine or api_key_env"
                source.reader.problem((*steps, "url"), message)


def _replicas(source: Source, model: ModelSpec) -> Iterator[tuple[Steps, ReplicaSpec]]:
    """A model's replicas and where they stand: in its own list, or in its pools'. Says where they are missing."""
    at: Steps = ("models", model.name)
    if not {(*at, "replicas"), (*at, "pools"), (*at, "discover")}.intersection(source.reader.lines):
        source.reader.problem(at, "replicas is missing. The engine processes that serve this model.")
    if model.pools and (*at, "replicas") in source.reader.lines:
        source.reader.problem((*at, "replicas"), "stand in pools already; keep one of the two")
    yield from _listed(source, model)


def _listed(source: Source, model: ModelSpec) -> Iterator[tuple[Steps, ReplicaSpec]]:
    at: Steps = ("models", model.name)
    if not model.pools:
        yield from source.items((*at, "replicas"), model.replicas)
    for steps, pool in source.items((*at, "pools"), model.pools):
        yield from source.items((*steps, "replicas"), pool.replicas)


def _spoken_to(source: Source, model: ModelSpec) -> Iterator[tuple[Steps, ReplicaSpec, ModelSpec]]:
    """Where each replica stands, and the model as it is served there."""
    resorts = {spec.pools[0].name: spec for spec in model.resorts}
    if not model.pools:
        yield from ((*place, model) for place in _listed(source, model))
    for steps, pool in source.items(("models", model.name, "pools"), model.pools):
        spec = resorts.get(pool.name, model)
        yield from ((*place, spec) for place in source.items((*steps, "replicas"), pool.replicas))


def _check_resorts(sources: list[Source]) -> None:
    """Last resorts come last, cost something that can be told, and keep what the model promises."""
    for source, model in _models(sources):
        own = [not pool.is_apart for pool in model.pools]
        at: Steps = ("models", model.name, "pools")
        if all(own):
            continue
        if not any(own):
            source.reader.problem(at, "are all last resorts; give the model itself the engine, the key and the price")
        elif own != sorted(own, reverse=True):
            source.reader.problem(at, "with an engine, a key or a price of their own are last resorts: put them last")
        if model.price is not None and model.price.follows_cost:
            message = "follows what the GPUs cost, which a last resort's tokens would water down; write mode: fixed"
            source.reader.problem(("models", model.name, "price"), message)
        for (steps, pool), spec in zip(_apart(source, model), model.resorts, strict=True):
            if model.cache_isolation == "tenant" and not dialect_of(spec.engine).takes_cache_salt:
                message = f"{spec.engine} cannot keep tenants' cached prompts apart, as this model promises"
                source.reader.problem((*steps, "engine"), message)
            if pool.price is None:
                continue
            if model.price is None:
                source.reader.problem((*steps, "price"), "is not charged while the model itself has none; give it one")
            if pool.price.follows_cost:
                source.reader.problem((*steps, "price"), "is what another provider asks; write mode: fixed")


def _apart(source: Source, model: ModelSpec) -> Iterator[tuple[Steps, PoolSpec]]:
    for steps, pool in source.items(("models", model.name, "pools"), model.pools):
        if pool.is_apart:
            yield steps, pool


def _check_gpus(sources: list[Source], catalogue: Catalogue) -> None:
    """A SKU is in the catalogue with a price for how it is paid for, and a live price knows what its GPUs cost."""
    for source, model in _models(sources):
        at: Steps = ("models", model.name)
        placed = [((*at, "gpu"), model.gpu)] if model.gpu is not None else []
        placed += [
            ((*steps, "gpu"), replica.gpu) for steps, replica in _listed(source, model) if replica.gpu is not None
        ]
        for steps, gpu in placed:
            message = _gpu_problem(gpu, catalogue)
            if message is not None:
                source.reader.problem((*steps, "sku"), message)
        unknown = [replica.url for replica in model.replicas if replica.gpu is None and model.gpu is None]
        if model.discover is not None and model.gpu is None:
            unknown.append("those that are discovered")
        if model.price is not None and model.price.follows_cost and unknown:
            message = f"follows what the GPUs cost, and of {', '.join(unknown)} nobody says; give the model a gpu"
            source.reader.problem((*at, "price"), message)


def _gpu_problem(gpu: GpuSpec, catalogue: Catalogue) -> str | None:
    if gpu.sku is None:
        return None
    skus = catalogue.gpus
    known = skus.get(gpu.sku)
    if known is None:
        text = gpu.sku
        close = next((sku for sku in skus if sku.lower() == text.lower() or text.upper().startswith(f"{sku} ")), None)
        hint = f"did you mean {close!r}? " if close else ""
        known_skus = ", ".join(skus)
        return f"{text!r} is not in the GPU catalogue; {hint}known: {known_skus}; for any other GPU write usd_per_hour"
    if known.hourly(gpu.purchase) is None:
        return f"{gpu.sku} has no {gpu.purchase} price in the catalogue; write usd_per_hour"
    return None


def _check_keys(sources: list[Source]) -> None:
    """A key leads to one tenant, and a public id to one key."""
    by_sha256: dict[str, tuple[str, str]] = {}
    by_id: dict[str, str] = {}
    for source, tenant, steps, key in _keys(sources):
        if key.sha256 in by_sha256:
            owner, place = by_sha256[key.sha256]
            whose = "this tenant" if owner == tenant.name else f"tenant {owner!r}"
            source.reader.problem((*steps, "sha256"), f"is the key of {whose} already, in {place}; make another key")
        elif key.id in by_id:
            source.reader.problem((*steps, "id"), f"{key.id!r} is taken, in {by_id[key.id]}; ids are used once")
        by_sha256.setdefault(key.sha256, (tenant.name, source.place((*steps, "sha256"))))
        by_id.setdefault(key.id, source.place((*steps, "id")))


def _check_tenants(sources: list[Source], merged: Document) -> None:
    """Models and classes that tenants name exist, and a budget is only promised where everything has a price."""
    models = {name for source in sources for name in _declared(source, "models")}
    models.update(alias for model in merged.models.values() for alias in model.aliases)
    classes = {name for source in sources for name in _declared(source, "classes")}
    groups = {name for source in sources for name in _declared(source, "groups")}
    priced = {
        str(steps[1])
        for source in sources
        for steps in source.reader.lines
        if len(steps) == 3 and steps[0] == "models" and steps[2] == "price"
    }
    for source, tenant in _tenants(sources):
        at: Steps = ("tenants", tenant.name)
        named = () if tenant.models == ANY else source.items((*at, "models"), tenant.models)
        for steps, name in named:
            if name != ANY_MODEL and name not in models:
                source.reader.problem(steps, f"there is no model {name!r}{_known(name, models)}")
        for name in tenant.prices:
            if name != EVERY_MODEL and name not in merged.models:
                source.reader.problem(
                    (*at, "prices", name), f"there is no model {name!r}{_known(name, set(merged.models))}"
                )
        if tenant.class_name is not None and tenant.class_name not in classes:
            message = f"there is no class {tenant.class_name!r}{_known(tenant.class_name, classes)}"
            source.reader.problem((*at, "class"), message)
        if tenant.group is not None and tenant.group not in groups:
            message = f"there is no group {tenant.group!r}{_known(tenant.group, groups)}"
            source.reader.problem((*at, "group"), message)
        budgeted = _budgeted(tenant, merged)
        if budgeted is not None:
            usable = [model.name for model in merged.models.values() if tenant.may_use(model)]
            unpriced = sorted(name for name in usable if name not in priced)
            if unpriced:
                message = (
                    f"this budget cannot be held: no price is set for {', '.join(unpriced)}, which this tenant may use;"
                    " give each a price, or name the tenant's models"
                )
                source.reader.problem((*at, *budgeted), message)
    for source, model in _models(sources):
        if model.limits is not None and _all_budgets(model.limits) and model.name not in priced:
            message = "this budget cannot be held: the model has no price"
            source.reader.problem(("models", model.name, "limits"), message)


def _budgeted(tenant: TenantSpec, merged: Document) -> Steps | None:
    """Where it is said that this tenant's requests are paid from a budget; None when nowhere."""
    if budgets := _all_budgets(tenant.limits):
        return ("limits", budgets[0])
    if any(key.limits is not None and _all_budgets(key.limits) for key in tenant.keys):
        return ("keys",)
    group = merged.groups.get(tenant.group or "")
    if group is not None and _all_budgets(group.limits):
        return ("group",)
    return () if merged.fleet is not None and _all_budgets(merged.fleet.limits) else None


def _all_budgets(limits: ScopeLimitsSpec) -> list[str]:
    """Their names, also of those that do not refuse."""
    rules = (limits, limits.soft, limits.audit)
    return [name for of_mode in rules if of_mode is not None for name in of_mode.budgets]


def _models(sources: list[Source]) -> Iterator[tuple[Source, ModelSpec]]:
    for source in sources:
        for model in source.document.models.values():
            yield source, model


def _tenants(sources: list[Source]) -> Iterator[tuple[Source, TenantSpec]]:
    for source in sources:
        for tenant in source.document.tenants.values():
            yield source, tenant


def _keys(sources: list[Source]) -> Iterator[tuple[Source, TenantSpec, Steps, KeySpec]]:
    for source, tenant in _tenants(sources):
        for steps, key in source.items(("tenants", tenant.name, "keys"), tenant.keys):
            yield source, tenant, steps, key


def _known(name: str, names: set[str]) -> str:
    """The end of a message about a name that leads nowhere: what was meant, or what there is."""
    close = get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(sorted(names))}" if names else "; none is defined"
