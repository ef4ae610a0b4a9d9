"""The JSON Schema of a policy document, for editors: written from the field table, so it says what the loader says.

`python -m gateway.policy > policies/schema.json` renews the file; a test compares the two.
"""

from __future__ import annotations

from decimal import Decimal

from ._shapes import Choice, ListOf, MapOf, Number, Record, Shape, Text
from ._table import DOCUMENT

JsonSchema = dict[str, object]


def json_schema() -> JsonSchema:
    """The schema of one document. What spans documents (names, keys, budgets) only the loader can check."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Mtok policy document",
        **_schema(DOCUMENT),
    }


def _schema(shape: Shape) -> JsonSchema:
    if isinstance(shape, Record):
        return {
            "type": "object",
            "additionalProperties": False,
            "required": [name for name, field in shape.fields.items() if field.required],
            "properties": {
                name: {"description": field.about, **_schema(field.shape)} for name, field in shape.fields.items()
            },
        }
    if isinstance(shape, MapOf):
        return {
            "type": ["object", "null"],
            "propertyNames": {"pattern": f"^(?:{shape.name.pattern})$"},
            "additionalProperties": _schema(shape.item),
        }
    if isinstance(shape, ListOf):
        return {"type": "array", "minItems": shape.minimum, "items": _schema(shape.item)}
    if isinstance(shape, Choice):
        return {"enum": list(shape.options)}
    if isinstance(shape, Text):
        return {"type": "string", "pattern": f"^(?:{shape.pattern})$"} if shape.pattern else {"type": "string"}
    return _number(shape) if isinstance(shape, Number) else {"oneOf": [_number(shape.number), _schema(shape.record)]}


def _number(shape: Number) -> JsonSchema:
    least = "exclusiveMinimum" if shape.exclusive else "minimum"
    return {
        "type": "integer" if shape.whole else "number",
        least: _plain(shape.minimum),
        "maximum": _plain(shape.maximum),
    }


def _plain(value: Decimal) -> int:
    assert value == value.to_integral_value(), "bounds are whole numbers, so the schema needs no floats"
    return int(value)
