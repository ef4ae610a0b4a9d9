"""Where an engine keeps prompts apart, by its own description."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.fleet._salts import salted_paths

SALTED = {"properties": {"model": {}, "cache_salt": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}


def described(*forms: str) -> frozenset[str]:
    references: list[dict[str, Any]] = [{"$ref": f"#/components/schemas/{form}"} for form in forms]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    post = {"requestBody": {"content": {"application/json": {"schema": schema}}}}
    schemas = {"Salted": SALTED, "Plain": {"properties": {"model": {}}}}
    document = {"paths": {"/v1/messages": {"post": post}, "/health": {"get": {}}}, "components": {"schemas": schemas}}
    return salted_paths(json.dumps(document).encode())


def test_a_path_is_salted_where_every_form_of_its_request_has_the_field() -> None:
    assert described("Salted") == {"/v1/messages"}
    assert described("Plain") == described("Salted", "Plain") == described("Missing") == frozenset()


@pytest.mark.parametrize("page", [b"", b"<html>", b"[]", b'{"paths": 1}'])
def test_what_is_no_description_is_told(page: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        salted_paths(page)
