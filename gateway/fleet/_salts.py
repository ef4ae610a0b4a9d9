"""At which paths an engine keeps prompts of different `cache_salt`s apart, by its own description.

An engine that does not know the field ignores it: vLLM 0.24 does so at /v1/messages, 0.32 takes it there too.
"""

from __future__ import annotations

import msgspec

SALTED_ALWAYS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""vLLM takes it at these since 0.9 and 0.10."""

_FIELD = b'"cache_salt"'
_Schemas = dict[str, msgspec.Raw]


class _Reference(msgspec.Struct, rename={"path": "$ref"}):
    path: str = ""
    anyOf: list[_Reference] = []


class _Content(msgspec.Struct):
    schema: _Reference = msgspec.field(default_factory=_Reference)


class _RequestBody(msgspec.Struct):
    content: dict[str, _Content] = {}


class _Post(msgspec.Struct, rename={"body": "requestBody"}):
    body: _RequestBody = msgspec.field(default_factory=_RequestBody)


class _Path(msgspec.Struct):
    post: _Post | None = None


class _Components(msgspec.Struct):
    schemas: _Schemas = {}


class _Document(msgspec.Struct):
    paths: dict[str, _Path] = {}
    components: _Components = msgspec.field(default_factory=_Components)


_document = msgspec.json.Decoder(_Document)


def salted_paths(openapi: bytes) -> frozenset[str]:
    """The paths whose requests have a `cache_salt`, all variants of them. Raises `msgspec.DecodeError`."""
    document = _document.decode(openapi)
    schemas = document.components.schemas
    return frozenset(
        path
        for path, at in document.paths.items()
        if at.post is not None and _is_salted(at.post.body.content.get("application/json"), schemas)
    )


def _is_salted(content: _Content | None, schemas: _Schemas) -> bool:
    if content is None:
        return False
    names = [one.path.rpartition("/")[2] for one in (content.schema.anyOf or [content.schema])]
    return all(_FIELD in bytes(schemas.get(name, msgspec.Raw())) for name in names)
