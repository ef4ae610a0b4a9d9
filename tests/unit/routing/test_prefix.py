"""The prefix chain: equal hashes mean equal prefixes, whatever comes after."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing import prefix_chain
from gateway.routing._prefix import BLOCK_BYTES


@settings(max_examples=40, deadline=None)
@given(prompt=st.binary(max_size=5000), more=st.binary(max_size=1000))
def test_a_longer_prompt_has_the_shorter_ones_chain(prompt: bytes, more: bytes) -> None:
    """Whole blocks are shared, and the chain grows only at its end."""
    chain, longer = prefix_chain(prompt).blocks, prefix_chain(prompt + more).blocks
    if len(prompt) >= BLOCK_BYTES:
        assert longer[: len(chain)] == chain
    assert len(longer) == max(1, len(prompt + more) // BLOCK_BYTES)


@settings(max_examples=40, deadline=None)
@given(prompt=st.binary(min_size=BLOCK_BYTES, max_size=3000), at=st.integers(0, 2999))
def test_one_byte_changes_the_chain_from_there(prompt: bytes, at: int) -> None:
    """A different byte makes its block and all after it different, and none before."""
    at %= len(prompt) // BLOCK_BYTES * BLOCK_BYTES
    other = prompt[:at] + bytes([prompt[at] ^ 1]) + prompt[at + 1 :]
    one, two = prefix_chain(prompt).blocks, prefix_chain(other).blocks
    block = at // BLOCK_BYTES
    assert one[:block] == two[:block]
    assert all(a != b for a, b in zip(one[block:], two[block:], strict=True))


@given(prompt=st.binary(max_size=1000))
def test_prompts_of_different_seeds_have_nothing_in_common(prompt: bytes) -> None:
    """A salt keeps tenants' caches apart, so what one has warm is cold for another."""
    assert not set(prefix_chain(prompt).blocks) & set(prefix_chain(prompt, 7).blocks)


def test_the_chain_knows_how_long_its_prefixes_are() -> None:
    """In bytes of the text; a short text is one block and no longer than it is."""
    assert [prefix_chain(b"x" * 600).bytes_at(depth) for depth in range(3)] == [0, 256, 512]
    assert prefix_chain(b"short").bytes_at(1) == 5
