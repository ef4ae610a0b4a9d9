"""Profiles: what can be overridden, and what is refused."""

from __future__ import annotations

import pytest

from gateway.simulator import PROFILES, Profile

TINY = PROFILES["tiny"]


def test_the_default_profile_is_the_measured_replica() -> None:
    """Replica A of the measurement: 381,552 tokens of cache in blocks of 16, and vLLM's defaults on an H200."""
    profile = next(iter(PROFILES.values()))
    assert profile.name == "h200-llama-8b"
    assert profile.kv_blocks * profile.block_size == 381_552
    assert (profile.max_model_len, profile.max_num_seqs, profile.max_num_batched_tokens) == (131_072, 1024, 8192)


def test_what_is_not_overridden_stays() -> None:
    """Only named limits change; a smaller cache shortens the context to what fits."""
    assert TINY.override() == TINY
    assert TINY.override(model="other", speed=2.0) == TINY.override(model="other").override(speed=2.0)
    smaller = TINY.override(kv_blocks=65)
    assert (smaller.kv_blocks, smaller.max_model_len) == (65, 2048)
    assert TINY.override(long_prefill_token_threshold=512).long_prefill_token_threshold == 512


def test_a_larger_batch_needs_a_larger_budget() -> None:
    """`max_num_seqs` above the step's token budget raises it, as every stream needs its token."""
    assert TINY.override(max_num_seqs=4000).max_num_batched_tokens == 4000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 10_000}, "at most 8160"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "at least max_num_seqs 64"),
        ({"speed": -1.0}, "must be positive"),
        ({"kv_blocks": 1}, "must be positive"),
    ],
)
def test_impossible_profiles_are_refused(options: dict[str, int], words: str) -> None:
    """With a message that says what to change."""
    with pytest.raises(ValueError, match=words):
        Profile.override(TINY, **options)  # type: ignore[arg-type]
