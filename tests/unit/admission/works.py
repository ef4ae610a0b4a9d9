"""What requests ask of a replica, for tests that care about some of it."""

from __future__ import annotations

from gateway.admission import Work


def work(
    name: str = "w",
    tenant: str = "acme",
    *,
    input_tokens: int = 100,
    cached_tokens: int = 0,
    output_tokens: int = 100,
    band: int = 0,
    weight: float = 1.0,
    retry: bool = False,
    arrived_ms: int = 0,
    deadline_ms: int = 1_000_000,
    prefix: int = 0,
    max_share: float = 1.0,
    shortest_first: bool = False,
) -> Work:
    """One request's."""
    return Work(
        id=name,
        tenant=tenant,
        band=band,
        weight=weight,
        input_tokens=input_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
        retry=retry,
        arrived_ms=arrived_ms,
        deadline_ms=deadline_ms,
        prefix=prefix,
        max_share=max_share,
        shortest_first=shortest_first,
    )
