"""From YAML to figures, or to everything that is wrong with them, with lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from ._figures import Catalogue, Gpu, Hosted

CATALOGUE_FILES = frozenset({"gpus.yaml", "hosted.yaml"})
"""Files of a policy directory that are figures, not policies."""

_PACKAGED = Path(__file__).parent
_CHECKOUT = _PACKAGED.parent.parent / "policies"

_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an entry, and where it stands."""

    line: int
    field: str
    message: str


class CatalogueError(Exception):
    """A file that holds no figures; `faults` has all that is wrong."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"line {fault.line}: {fault.field}: {fault.message}" for fault in faults))
        self.faults = faults


@cache
def builtin() -> Catalogue:
    """The figures that come with Mtok."""
    directory = _PACKAGED if (_PACKAGED / "gpus.yaml").exists() else _CHECKOUT
    gpus, hosted = (read((directory / name).read_text("utf-8")) for name in ("gpus.yaml", "hosted.yaml"))
    return gpus.with_(hosted)


def read(text: str) -> Catalogue:
    """The figures of one file. Raises `CatalogueError`."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        # Every scalar as text: a price must not pass through a float.
        document = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - it builds nothing but text, lists and mappings
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CatalogueError([Fault(line, "", f"is not YAML: {error.problem}")]) from error
    if document is None or document == "":
        return Catalogue()
    faults: list[Fault] = []
    if not isinstance(document, dict):
        raise CatalogueError([Fault(1, "", "is no mapping: write gpus: or hosted: and the entries below it")])
    for name in document.keys() - {"gpus", "hosted"}:
        faults.append(Fault(_line(node, (name,)), name, "is not known here: a file of figures has gpus: and hosted:"))
    gpus = _entries(document, "gpus", node, faults, lambda sku, entry: _convert({**entry, "sku": sku}, Gpu))
    hosted = _entries(
        document, "hosted", node, faults, lambda name, entry: _convert({**entry, "provider": name}, Hosted)
    )
    if faults:
        raise CatalogueError(faults)
    return Catalogue(gpus, hosted)


def _entries(
    document: Mapping[str, object],
    section: str,
    node: yaml.Node | None,
    faults: list[Fault],
    convert: Callable[[str, Mapping[str, object]], _Entry],
) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    entries = document.get(section) or {}
    if not isinstance(entries, dict):
        faults.append(Fault(_line(node, (section,)), section, "is no mapping of names to figures"))
        return found
    for name, entry in entries.items():
        place = f"{section}.{name}"
        if not isinstance(entry, dict):
            faults.append(Fault(_line(node, (section, name)), place, "is no mapping"))
            continue
        try:
            found[name] = convert(name, entry)
        except msgspec.ValidationError as error:
            faults.append(Fault(_line(node, (section, name)), place, str(error)))
    return found


def _convert(entry: Mapping[str, object], shape: type[_Entry]) -> _Entry:
    return msgspec.convert(entry, shape, strict=False)


def _line(node: yaml.Node | None, steps: tuple[str, ...]) -> int:
    """Where a key stands; where it is not found, where its parent does."""
    line = 1
    for step in steps:
        if not isinstance(node, yaml.MappingNode):
            break
        for key, value in node.value:
            if key.value == step:
                line, node = key.start_mark.line + 1, value
                break
        else:
            break
    return line
