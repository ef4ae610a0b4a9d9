"""The vocabulary of the field table: what a value in a document may be, with its unit and its meaning.

The table itself is `_table.py`; `_reader.py` reads documents by it and `_schema.py` writes the JSON Schema from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What a number counts. `suffixes` (lower case) turn what people write into it: value x factor."""

    name: str
    suffixes: Mapping[str, Decimal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A plain number without quotes or unit, exact. `absent` says what leaving the field out means."""

    unit: Unit
    whole: bool = True
    minimum: Decimal = Decimal(1)
    exclusive: bool = False
    maximum: Decimal = Decimal(10) ** 12
    absent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A word or an address. `check` says what is wrong with it, or None; `normalise` gives the form that is kept.

    `secret` values are never quoted in a message. `pattern` is for editors; `check` decides.
    """

    what: str
    check: Callable[[str], str | None]
    normalise: Callable[[str], str] = str
    pattern: str | None = None
    secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of a few words."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOf:
    """A list of `item`, at least `minimum` long."""

    item: Shape
    example: str
    minimum: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOf:
    """Names to records; the name becomes the record's `name`. Left empty it holds nothing."""

    name: Text
    item: Record
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a record. `attribute` is its name in Python where that differs; `aka` are names it has elsewhere."""

    shape: Shape
    about: str
    required: bool = False
    attribute: str | None = None
    aka: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A mapping with known fields. `build` makes the value from those that were there, so it holds the defaults.

    `check` looks at the built value as a whole: pairs of the field to blame and what is wrong with it.
    """

    what: str
    fields: Mapping[str, Field]
    build: Callable[..., object]
    example: str
    check: Callable[[object], list[tuple[str, str]]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A number alone, or a record that has it as a member."""

    number: Number
    record: Record


Shape = Number | Text | Choice | ListOf | MapOf | Record | Rule
