"""Salts: each tenant its own, made of nothing a client can choose alone; and the chains that begin with them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing import chain_seed, prefix_chain, tenant_salt

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(first=st.tuples(NAMES, st.binary(max_size=20)), second=st.tuples(NAMES, st.binary(max_size=20)))
def test_two_salts_are_equal_only_for_the_same_tenant_and_own_salt(
    first: tuple[str, bytes], second: tuple[str, bytes]
) -> None:
    salts = [tenant_salt(b"secret", *of) for of in (first, second)]
    assert (salts[0] == salts[1]) == (first == second)
    assert not set(salts[0]) & set("@/\\\0"), "vLLM refuses these"


def test_a_salt_needs_the_secret() -> None:
    assert tenant_salt(b"secret", "acme") != tenant_salt(b"other", "acme")


def test_chains_of_different_salts_have_nothing_in_common() -> None:
    prompt = b"x" * 2000
    plain, acme, rival = (prefix_chain(prompt, chain_seed(salt)).blocks for salt in (b"", b"acme", b"rival"))
    assert len({*plain, *acme, *rival}) == 3 * len(plain)
    assert plain == prefix_chain(prompt).blocks, "no salt is no seed"
    assert prefix_chain(b"short", chain_seed(b"acme")).blocks != prefix_chain(b"short").blocks
