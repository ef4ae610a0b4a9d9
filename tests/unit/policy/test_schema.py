"""The JSON Schema says what the loader says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy import PolicyError, Problem, json_schema, load
from gateway.policy._shapes import ListOf, MapOf, Record, Shape
from gateway.policy._table import DOCUMENT


def test_the_schema_in_the_repository_is_the_field_tables() -> None:
    """Renew it with `python -m gateway.policy > policies/schema.json`."""
    assert json.loads(Path("policies/schema.json").read_text()) == json_schema()


def test_every_field_says_what_it_is_and_builds_its_value() -> None:
    """Each field has a description that ends like a sentence, and an attribute of its value to go to."""

    def visit(shape: Shape) -> int:
        if isinstance(shape, MapOf | ListOf):
            return visit(shape.item)
        if not isinstance(shape, Record):
            return 0
        attributes = {field.name for field in dataclasses.fields(getattr(shape.build, "__wrapped__", shape.build))}
        for name, field in shape.fields.items():
            assert field.about.endswith((".", ")")), name
            assert (field.attribute or name) in attributes, name
        return len(shape.fields) + sum(visit(field.shape) for field in shape.fields.values())

    assert visit(DOCUMENT) >= 35


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
names = st.sampled_from(
    [
        *(
            "models",
            "tenants",
            "classes",
            "replicas",
            "url",
            "engine",
            "keys",
            "id",
            "sha256",
            "limits",
            "class",
            "slo",
        ),
        *("gpu", "sku", "count", "price", "input_ratio", "budget_usd", "aliases", "weight", "*", "<<", "tiny", "acme"),
    ]
)
documents = st.recursive(
    scalars | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(documents)
@settings(max_examples=300, deadline=None)
def test_whatever_a_document_holds_it_is_loaded_or_told(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    """Any tree of YAML gives policies or problems with a line; never another error."""
    directory = tmp_path_factory.mktemp("policies")
    (directory / "a.yaml").write_text(yaml.safe_dump(value))
    problems: list[Problem] = []
    try:
        load(directory)
    except PolicyError as error:
        problems = error.problems
    assert all(problem.line >= 0 and problem.message for problem in problems)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_whatever_a_file_holds_it_is_loaded_or_told(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Any text, YAML or not."""
    directory = tmp_path_factory.mktemp("policies")
    (directory / "a.yaml").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(PolicyError):
        load(directory)
