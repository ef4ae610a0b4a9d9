"""Reads one YAML tree by the field table and notes everything that is wrong, each with its line.

Works on YAML nodes rather than on loaded values: nodes know their lines, keep numbers as the text that was typed (so
that money is exact), and still have the duplicate keys that loading would silently drop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final, cast

import yaml

from ._keys import hash_key, looks_like_key
from ._numbers import read_number
from ._problems import Problem, Steps, dotted, shown
from ._shapes import Choice, Field, ListOf, MapOf, Number, Record, Rule, Shape, Text

_NULL_TAG = "tag:yaml.org,2002:null"
_MERGE_TAG = "tag:yaml.org,2002:merge"

_Pair = tuple[yaml.ScalarNode, yaml.Node]


class _Invalid:
    """The value of something that could not be read; its problem has been noted."""


INVALID: Final = _Invalid()


class Reader:
    """One file's reading. As it goes it fills `problems`, `lines` (of every value, by its path, where its name stands)
    and `kept` (which items of a list could be read, by the list's path)."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.lines: dict[Steps, int] = {}
        self.kept: dict[Steps, list[int]] = {}

    def read(self, shape: Shape, node: yaml.Node, steps: Steps = ()) -> object:
        """The value at this node, or `INVALID` when nothing can be made of it."""
        self.lines.setdefault(steps, _line(node))
        if isinstance(shape, Record):
            return self._record(shape, node, steps)
        if isinstance(shape, MapOf):
            return self._map(shape, node, steps)
        if isinstance(shape, ListOf):
            return self._list(shape, node, steps)
        if isinstance(shape, Rule):
            if isinstance(node, yaml.MappingNode):
                return self._record(shape.record, node, steps)
            return self._scalar(shape.number, node, steps)
        return self._scalar(shape, node, steps)

    def problem(self, steps: Steps, message: str, *, line: int | None = None) -> _Invalid:
        """Notes a problem at a path, at its own line or else at the nearest one above it."""
        at = steps
        while line is None:
            line = self.lines.get(at)
            if not at:
                break
            at = at[:-1]
        self.problems.append(Problem(self.file, line or 1, dotted(steps), message))
        return INVALID

    def _scalar(self, shape: Number | Text | Choice, node: yaml.Node, steps: Steps) -> object:
        if not isinstance(node, yaml.ScalarNode):
            kind = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
            what = shape.what if isinstance(shape, Text) else "a single value"
            return self.problem(steps, f"is {what}, not a {kind}")
        if _is_null(node):
            return self.problem(steps, "is empty; give it a value or leave it out")
        text = node.value
        if looks_like_key(text):
            return self.problem(steps, _whole_key(text, in_sha256=steps[-1] == "sha256"))
        value, wrong = _value(shape, text, quoted=node.style in ("'", '"'))
        return self.problem(steps, wrong) if wrong else value

    def _list(self, shape: ListOf, node: yaml.Node, steps: Steps) -> object:
        if not isinstance(node, yaml.SequenceNode):
            return self.problem(steps, f"is a list: write {shape.example}")
        if len(node.value) < shape.minimum:
            return self.problem(steps, f"needs at least {shape.minimum}: write {shape.example}")
        values = [self.read(shape.item, item, (*steps, index)) for index, item in enumerate(node.value)]
        self.kept[steps] = [index for index, value in enumerate(values) if value is not INVALID]
        return tuple(value for value in values if value is not INVALID)

    def _map(self, shape: MapOf, node: yaml.Node, steps: Steps) -> object:
        if _is_null(node):
            return {}
        values: dict[str, object] = {}
        for key, value_node in self._pairs(node, steps, f"names and what they are: write {shape.example}"):
            name = key.value
            at = (*steps, name)
            self.lines[at] = _line(key)
            wrong = shape.name.check(name)
            if looks_like_key(name):
                self.problem(at, f"is {shape.name.what}, not a key")
            elif wrong:
                self.problem(at, f"{shown(name)} {wrong}")
            else:
                value = self._record(shape.item, value_node, at, name=name)
                if value is not INVALID:
                    values[name] = value
        return values

    def _record(self, shape: Record, node: yaml.Node, steps: Steps, **given: object) -> object:
        values = dict(given)
        sound = True
        present: set[str] = set()
        for key, value_node in self._pairs(node, steps, f"{shape.what}: write {shape.example}"):
            name = key.value
            at = (*steps, name)
            field = shape.fields.get(name)
            self.lines[at] = _line(key)
            if field is None:
                self.problem(at, _unknown_field(name, shape, value_node))
                continue
            present.add(name)
            value = self.read(field.shape, value_node, at)
            if value is INVALID:
                sound = sound and not field.required
            else:
                values[field.attribute or name] = value
        if not isinstance(node, yaml.MappingNode):
            return INVALID
        for name, field in shape.fields.items():
            if field.required and name not in present:
                self.problem(steps, f"{name} is missing. {field.about}")
                sound = False
        if not sound:
            return INVALID
        built = shape.build(**values)
        for name, wrong in shape.check(built) if shape.check else ():
            self.problem((*steps, name) if name else steps, wrong)
        return built

    def _pairs(self, node: yaml.Node, steps: Steps, what: str) -> Iterator[_Pair]:
        """A mapping's pairs, each key once; notes duplicates and keys that are no names."""
        if not isinstance(node, yaml.MappingNode):
            if isinstance(node, yaml.ScalarNode) and looks_like_key(node.value):
                self.problem(steps, _whole_key(node.value, in_sha256=False))
            else:
                state = "is empty" if _is_null(node) else "is not a mapping"
                self.problem(steps, f"{state}; it holds {what}")
            return
        seen: dict[str, int] = {}
        for key, value in _merged(node):
            if not isinstance(key, yaml.ScalarNode) or _is_null(key):
                self.problem(steps, "a name is missing before ':'", line=_line(key))
            elif key.value in seen:
                message = f"is there twice, first in line {seen[key.value]}; YAML would keep only the last"
                self.problem((*steps, key.value), message, line=_line(key))
            else:
                seen[key.value] = _line(key)
                yield key, value


def _merged(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """The pairs with `<<: *anchor` resolved: a mapping's own keys win over merged ones, earlier merges over later."""
    own = [(key, value) for key, value in node.value if key.tag != _MERGE_TAG]
    pairs = list(own)
    names = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
    for key, value in node.value:
        if key.tag != _MERGE_TAG:
            continue
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(source, yaml.MappingNode) or source is node:
                continue
            for pair in source.value:  # one level: a merge inside a merged mapping is reported as an unknown field
                if isinstance(pair[0], yaml.ScalarNode) and pair[0].value not in names:
                    names.add(pair[0].value)
                    pairs.append(pair)
    return pairs


def _value(shape: Number | Text | Choice, text: str, *, quoted: bool) -> tuple[object, str | None]:
    """A scalar's value, and what is wrong with it or None."""
    if isinstance(shape, Number):
        number = read_number(text, shape, quoted=quoted)
        if isinstance(number, str):
            return INVALID, number
        return (int(number) if shape.whole else number), None
    if isinstance(shape, Choice):
        return text, None if text in shape.options else _not_a_choice(text, shape)
    wrong = shape.check(text)
    if wrong:
        return INVALID, wrong if shape.secret else f"{shown(text)} {wrong}"
    return shape.normalise(text), None


def _line(node: yaml.Node) -> int:
    return cast(int, node.start_mark.line) + 1


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL_TAG


def _whole_key(text: str, *, in_sha256: bool) -> str:
    meant = f"write {'' if in_sha256 else 'sha256: '}{hash_key(text)}"
    return f"holds a whole key; the secret must not be written here: {meant}; replace the key if others have seen it"


def _not_a_choice(text: str, shape: Choice) -> str:
    options = ", ".join(shape.options)
    close = get_close_matches(text.lower(), shape.options, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{shown(text)} is not one of them; {hint}write one of: {options}"


def _unknown_field(name: str, shape: Record, value: yaml.Node) -> str:
    if isinstance(value, yaml.ScalarNode) and looks_like_key(value.value):
        return f"unknown field, and it {_whole_key(value.value, in_sha256=False)}"
    message = f"unknown field {shown(name)}"
    meant = _meant_field(name, shape.fields)
    if meant is None:
        return f"{message}; {shape.what} has {', '.join(shape.fields)}"
    number = shape.fields[meant].shape
    if isinstance(number, Rule):
        number = number.number
    in_unit = ""
    if isinstance(number, Number) and number.unit.name in ("seconds", "milliseconds", "US dollars"):
        in_unit = f" It is in {number.unit.name}."
    return f"{message}; did you mean {meant!r}?{in_unit}"


def _meant_field(name: str, fields: Mapping[str, Field]) -> str | None:
    lowered = name.lower().replace("-", "_")
    if lowered in fields:
        return lowered
    for meant, field in fields.items():
        if lowered in field.aka:
            return meant
    close = get_close_matches(lowered, fields, n=1)
    return close[0] if close else None
