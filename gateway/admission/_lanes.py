"""Where long prompts are read. While one is, its replica's other answers get a token per step of a full prefill budget
(ITL 5 to 359 ms on an H200 with vLLM's defaults), and prompts behind it wait for its end. So they are kept together: a
replica that has read one lately is their lane, newcomers go elsewhere while they can, and its answers run out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

LONG_S = 1.0
"""A prompt that takes longer to read is a long one: others' SLOs do not outlast it. Some 27,000 tokens on an H200."""
SPARE = 0.5
"""The part of the places at the replicas without long prompts that may be taken, for another long one to be read."""
LANE_KEPT_MS = 10_000
"""How long a replica stays a lane after its last long prompt was read: whoever sends them back to back reads an answer
in between."""


def is_held(
    tenant: str,
    reading: Collection[str],
    *,
    replicas: int,
    others: bool,
    sequences: int,
    sequences_most: int,
    rests: bool = False,
) -> bool:
    """Whether a long prompt of `tenant` has to wait while `reading`, the tenants of those that are being read now, are.
    `sequences` run at the replicas, which have room for `sequences_most`. `rests`: one has been read lately where
    nothing else could be read beside it, and not yet as long ago as that took.

    Alone a tenant may use every replica. While `others` run or wait it has at most half of the replicas, all long
    prompts together leave one, and a second one is read only where those that then are left have room to spare for all
    that runs. Where there is one replica they take half of its time.
    """
    if others and replicas == 1 and rests:
        return True
    if not (others and reading):
        return False
    left = replicas - len(reading) - 1
    return (
        list(reading).count(tenant) >= max(1, replicas // 2)
        or left < 1
        or sequences * replicas > SPARE * sequences_most * left
    )


def preferred(lanes: Sequence[bool], *, is_long: bool) -> list[int]:
    """Which of some replicas, each a lane or not, to place a prompt at: a long one at a lane, any other beside them."""
    return [index for index, lane in enumerate(lanes) if lane == is_long] or list(range(len(lanes)))
