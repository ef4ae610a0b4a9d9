"""What differs between two sets of policies, field by field under the names that documents have for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from decimal import Decimal
from typing import TYPE_CHECKING, cast

import msgspec

from ._documents import Policies
from ._limits import RuleSpec, ScopeLimitsSpec
from ._numbers import plain
from ._problems import Steps, dotted, is_like_secret
from ._shapes import Field, ListOf, MapOf, Number, Record, Rule, Shape, Text
from ._table import DOCUMENT

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_ITEM_NAMES = ("id", "url")
"""What tells the items of a list of records apart."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One field that is not the same. `old` and `new` are values as documents write them; None: it is not there, which
    for a limit means that there is none. Hashes of keys are never shown."""

    path: str
    old: str | None
    new: str | None


def differences(old: Policies, new: Policies) -> list[Difference]:
    """All that `new` says otherwise than `old`, in the order of the documents. Comments, the order of entries and
    how they are split into files make no difference."""
    return list(_of_record((), DOCUMENT, old, new))


def _of_record(steps: Steps, record: Record, old: object, new: object) -> Iterator[Difference]:
    for name, field in record.fields.items():
        yield from _of_shape((*steps, name), field.shape, _value(old, name, field), _value(new, name, field))


def _of_shape(steps: Steps, shape: Shape, old: object, new: object) -> Iterator[Difference]:
    if old == new:
        return
    match shape:
        case MapOf():
            yield from _of_named(steps, shape.item, _mapping(old), _mapping(new))
        case ListOf(item=Record() as item) if (named := _naming(item)) is not None:
            yield from _of_named(steps, item, _by(named, old), _by(named, new))
        case Record() if old is not None and new is not None:
            yield from _of_record(steps, shape, old, new)
        case Text(secret=True):
            yield Difference(path=dotted(steps), old="(hidden)", new="(hidden, another one)")
        case _:
            yield Difference(path=dotted(steps), old=_shown(shape, old), new=_shown(shape, new))


def _of_named(steps: Steps, item: Record, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Difference]:
    for name in (*old, *(name for name in new if name not in old)):
        before, after = old.get(name), new.get(name)
        if before is not None and after is not None:
            yield from _of_record((*steps, name), item, before, after)
        else:
            yield Difference(path=dotted((*steps, name)), old=_shown(item, before), new=_shown(item, after))


def _value(of: object, name: str, field: Field) -> object:
    if isinstance(field.shape, Rule):
        return _rule(of, name)
    return getattr(of, field.attribute or name)


def _rule(of: object, name: str) -> RuleSpec | None:
    """A limit as it would be written; loading has put it where its mode belongs."""
    assert isinstance(of, ScopeLimitsSpec)
    limit, mode = getattr(of, name), "enforce"
    soft, audit = (None if rules is None else getattr(rules, name, None) for rules in (of.soft, of.audit))
    if limit is None:
        limit, mode = soft, "soft"
    if limit is None:
        return None if audit is None else RuleSpec(limit=audit, mode="audit")
    return RuleSpec(limit=limit, mode="enforce" if mode == "enforce" else "soft", candidate=audit)


def _defaults(value: object) -> Mapping[str, object]:
    """What the fields of its kind are where a document does not name them."""
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(cast("DataclassInstance", value))
    }


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value or {})


def _naming(item: Record) -> str | None:
    return next((name for name in _ITEM_NAMES if name in item.fields), None)


def _by(name: str, items: object) -> Mapping[str, object]:
    return {getattr(item, name): item for item in cast("tuple[object, ...]", items or ())}


def _shown(shape: Shape, value: object) -> str | None:
    """The value as a document would have it on one line; records without what is left to its default."""
    if value is None:
        return None
    text: str | None
    match shape:
        case Record():
            defaults = _defaults(value)
            parts = (
                f"{name}: {_shown(field.shape, said)}"
                for name, field in shape.fields.items()
                if (said := _value(value, name, field)) is not None and said != defaults.get(field.attribute or name)
            )
            text = "{" + ", ".join(parts) + "}"
        case ListOf():
            items = cast("tuple[object, ...]", value)
            text = "[" + ", ".join(_shown(shape.item, item) or "" for item in items) + "]"
        case Text(secret=True):
            text = "(hidden)" if is_like_secret(str(value)) else str(value)
        case Rule():
            limit = cast(RuleSpec, value)
            is_plain = limit.mode == "enforce" and limit.candidate is None
            text = _shown(shape.number, limit.limit) if is_plain else _shown(shape.record, limit)
        case Number():
            text = plain(value) if isinstance(value, Decimal) else str(value)
        case _:
            text = str(value)
    return text
