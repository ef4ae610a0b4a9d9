"""Where long prompts are read. While one is, its replica's other answers get a token per step of a full prefill budget
(ITL 5 to 359 ms on an H200 with vLLM's defaults), and prompts behind it wait for its end. So they are kept together: a
replica that has read one lately is their lane, newcomers go elsewhere while they can, and its answers run out.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from ._knee import Knee
    from ._queue import FairQueue
    from ._work import Work

_Replica = TypeVar("_Replica", bound=Hashable)

LONG_TOKENS_LEAST = 4096
"""Whether a prompt is long depends on the replicas' speed; of shorter ones nobody asks."""
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


class Lanes(Generic[_Replica]):
    """One model's: its replicas' knees and its queue tell where long prompts are read now."""

    def __init__(self, knees: Mapping[_Replica, Knee], queue: FairQueue) -> None:
        """`knees` are those of the replicas that have been used; they may become more."""
        self._knees = knees
        self._queue = queue

    def is_long(self, work: Work) -> bool:
        """Whether its prompt is long at every replica."""
        return work.uncached_tokens >= LONG_TOKENS_LEAST and all(knee.is_long(work) for knee in self._knees.values())

    def are_full(self, work: Work, *, replicas: int, now_ms: int) -> bool:
        """Whether the long prompt of `work` has to wait for others that are being read at so many replicas."""
        knees = self._knees.values()
        return is_held(
            work.tenant,
            [tenant for knee in knees for tenant in knee.reading_long],
            replicas=replicas,
            others=self._queue.has_others(work.tenant),
            sequences=sum([knee.running for knee in knees]),
            sequences_most=sum([knee.limits.sequences for knee in knees]),
            rests=any(knee.rests(now_ms) for knee in knees),
        )

    def beside(self, candidates: Sequence[_Replica], work: Work, now_ms: int) -> Sequence[_Replica]:
        """Those of `candidates`, which have room, to choose from: long prompts go where others are, and where there are
        none to where the fewest are disturbed; all others go elsewhere while they can."""
        if len(candidates) == 1:
            return candidates
        lanes = [self._knees[replica].is_lane(now_ms) for replica in candidates]
        is_long = self.is_long(work)
        if not any(lanes):
            return [min(candidates, key=lambda replica: self._knees[replica].running)] if is_long else candidates
        return [candidates[index] for index in preferred(lanes, is_long=is_long)]
