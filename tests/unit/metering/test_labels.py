"""Users and tags as requests say them: cleaned, and never more than the policy allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.metering import Labels, sum_field
from gateway.metering import _labels as labels_module
from gateway.metering._sums import Dimensions, split_field
from gateway.policy import LedgerSpec, TagsSpec

DAY_MS = 86_400_000
TEAM = LedgerSpec(tags=TagsSpec(names=("team", "app"), header="x-tags", values_max=2))


def read(
    labels: Labels, *, user: str = "", metadata: str = "", header: str = "", tenant: str = "acme", day: int = 0
) -> tuple[str, dict[str, str]]:
    headers = {b"x-tags": header.encode()} if header else {}
    return labels.read(tenant, day * DAY_MS, user=user.encode(), metadata=metadata.encode(), headers=headers)


@pytest.mark.parametrize(
    ("user", "kept"),
    [
        ('"ann"', "ann"),
        ('"  ann b. "', "ann b."),
        ('"Zo\\u00eb"', "Zoë"),
        ('"a\\u001fb\\nc\\u202ed"', "abcd"),
        (f'"{"x" * 500}"', "x" * 128),
        ('"\\ud800"', ""),
        ("null", ""),
        ("7", ""),
        ('{"id": "ann"}', ""),
        ("", ""),
    ],
)
def test_users(user: str, kept: str) -> None:
    """Text without control characters, at most 128 characters; anything else is no user."""
    assert read(Labels(LedgerSpec()), user=user) == (kept, {})


@pytest.mark.parametrize(
    ("metadata", "header", "tags"),
    [
        ('{"team": "search", "other": "x"}', "", {"team": "search"}),
        ('{"team": "search", "app": "chat"}', "app=mail", {"team": "search", "app": "mail"}),
        ("", "team=a%2Cb;note=1, app = chat ,x=y,app", {"team": "a,b", "app": "chat"}),
        ('{"team": 7, "app": ""}', "", {}),
        ("[1]", "", {}),
        ("", "", {}),
    ],
)
def test_tags(metadata: str, header: str, tags: dict[str, str]) -> None:
    """Only tags that the policy names, from the metadata's texts or the header, which wins."""
    assert read(Labels(TEAM), metadata=metadata, header=header) == ("", tags)


def test_without_tags_in_the_policy_there_are_none() -> None:
    """Metadata is a client's own business until a policy names a member."""
    labels = Labels(LedgerSpec())
    assert not labels.tagged
    assert read(labels, metadata='{"team": "search"}') == ("", {})


def test_what_comes_after_the_bound_is_other() -> None:
    """Per tenant and day, so that a bucket has no more fields than the policy allows; known values stay known."""
    labels = Labels(LedgerSpec(users_max=2, tags=TEAM.tags))
    assert [read(labels, user=f'"{name}"')[0] for name in "abcab"] == ["a", "b", "other", "a", "b"]
    assert read(labels, user='"c"', tenant="rival")[0] == "c"
    assert [read(labels, header=f"team={n}")[1]["team"] for n in (1, 2, 3, 2)] == ["1", "2", "other", "2"]
    assert read(labels, header="app=3")[1] == {"app": "3"}
    assert read(labels, user='"c"', day=1)[0] == "c"


def test_no_users_at_all() -> None:
    """`users_max: 0` keeps who it was out of the ledger."""
    assert read(Labels(LedgerSpec(users_max=0)), user='"ann"') == ("", {})


def test_combinations_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users times teams would be more fields than either bound allows."""
    monkeypatch.setattr(labels_module, "COMBINATIONS_MAX", 2)
    labels = Labels(TEAM)
    assert read(labels, user='"a"', header="team=1") == ("a", {"team": "1"})
    assert read(labels, user='"a"', header="team=2") == ("a", {"team": "2"})
    assert read(labels, user='"b"', header="team=2") == ("other", {"team": "other"})
    assert read(labels, user='"a"', header="team=2") == ("a", {"team": "2"})


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_no_bytes_break_a_field(user: bytes, metadata: bytes, header: bytes) -> None:
    """Whatever a client sends, the bucket's field comes apart into what was put together."""
    name, tags = Labels(TEAM).read("acme", 0, user=user, metadata=metadata, headers={b"x-tags": header})
    group = Dimensions("tiny", "ci", user=name, tags=tags.get("team", ""))
    assert split_field(sum_field(group, "input")) == (group, "input")
