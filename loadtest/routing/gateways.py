"""Several gateways over the same replicas, every turn of a conversation at any of them, in virtual time.

Each has a router of its own. What they tell each other goes through two streams, as in `gateway.neighbours`: told as
often, read as often, in the same words and within the same bounds. `python -m loadtest.routing.gateways` compares one
gateway, eight that share, eight that do not, and eight of which one starts in the middle.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from functools import partial

from gateway.neighbours import HEAR_INTERVAL_S, KEPT_ENTRIES, KEPT_LOADS, PLACED_EVERY, TELL_INTERVAL_S
from gateway.routing import (
    Beside,
    Elsewhere,
    LoadNews,
    PlacementNews,
    pack_held,
    pack_placed,
    read_held,
    read_placed,
)

from .policies import Mtok
from .workloads import Workload, chat, hot, rag
from .world import Asked, Chooser, Seen, World

MODEL = "model"
JOINS_S = 20.0


class Stream:
    """What Redis keeps of one: numbered entries, the oldest forgotten."""

    def __init__(self, kept: int) -> None:
        self.told_bytes = self.told = 0
        self._kept = kept
        self._entries: list[tuple[int, bytes]] = []

    def add(self, by: int, told: bytes) -> None:
        self._entries.append((by, told))
        self.told_bytes += len(told)
        self.told += 1
        if len(self._entries) > 2 * self._kept:
            del self._entries[: self._kept]

    def after(self, number: int, *, but: int) -> list[tuple[int, bytes]]:
        """What others than `but` have told since that number."""
        kept = self._entries[-self._kept :]
        return [entry for entry in kept[max(0, number - self.told + len(kept)) :] if entry[0] != but]


class Gateway(Mtok):
    """One, and when it tells and reads next."""

    def __init__(self, number: int, workload: Workload, next_s: float) -> None:
        super().__init__(workload)
        self.number = number
        self.news = PlacementNews()
        self.loads = LoadNews()
        self.elsewhere = Elsewhere()
        self.beside: dict[str, Beside] = {}
        self.read_placed = self.read_held = self.tellings = 0
        self.next_s = next_s
        self.router.on_placed = partial(self.news.placed, MODEL)

    def restarted(self, replica: int, now_s: float) -> None:
        super().restarted(replica, now_s)
        self.news.forget(self.replicas[replica].name)

    def tell(self, placed: Stream, held: Stream, now_ms: int) -> None:
        self.tellings += 1
        if self.tellings % PLACED_EVERY == 0 and (taken := self.news.take(lambda _: 0, now_ms)):
            placed.add(self.number, pack_placed(taken))
        if (loads := self.loads.take(self.router.loads.held(), now_ms)) is not None:
            held.add(self.number, pack_held(loads))

    def hear(self, placed: Stream, held: Stream, now_ms: int) -> None:
        for _, told in placed.after(self.read_placed, but=self.number):
            for one in read_placed(told):
                for blocks in self.news.heard(one, now_ms):
                    self.router.note_elsewhere(blocks, one.replica)
        for by, told in held.after(self.read_held, but=self.number):
            self.elsewhere.heard(f"{by}", read_held(told), now_ms)
        self.read_placed, self.read_held = placed.told, held.told
        beside = self.elsewhere.beside(now_ms)
        for name in self.beside.keys() | beside.keys():
            self.router.beside(name, *beside.get(name, Beside(0, 0)))
        self.beside = beside


class Gateways(Chooser):
    """Whoever asks is sent to any gateway, each time anew. `joins_s` are the times at which the last so many of them
    start, each with what the stream has kept."""

    def __init__(
        self,
        workload: Workload,
        *,
        gateways: int = 8,
        shares: bool = True,
        joins_s: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        self.placed, self.held = Stream(KEPT_ENTRIES), Stream(KEPT_LOADS)
        self._workload = workload
        self._random = random.Random(f"gateways {seed}")  # noqa: S311
        self._shares = shares
        self._joins_s = list(joins_s)
        self._gateways: list[Gateway] = []
        self._at: dict[str, Gateway] = {}
        for number in range(gateways - len(joins_s)):
            self._join(TELL_INTERVAL_S * number / gateways)

    def place(self, asked: Asked, usable: Sequence[int], now_s: float) -> int:
        self._pass(now_s)
        gateway = self._at[asked.id] = self._random.choice(self._gateways)
        return gateway.place(asked, usable, now_s)

    def first_token(self, asked: Asked, now_s: float) -> None:
        self._pass(now_s)
        self._at[asked.id].first_token(asked, now_s)

    def ended(self, asked: Asked, now_s: float) -> None:
        self._pass(now_s)
        self._at.pop(asked.id).ended(asked, now_s)

    def restarted(self, replica: int, now_s: float) -> None:
        self._pass(now_s)
        for gateway in self._gateways:
            gateway.restarted(replica, now_s)

    def _join(self, now_s: float) -> None:
        gateway = Gateway(len(self._gateways), self._workload, now_s)
        self._gateways.append(gateway)
        gateway.read_held = self.held.told
        if self._shares:
            gateway.hear(self.placed, self.held, _ms(now_s))

    def _pass(self, now_s: float) -> None:
        """All that is told and heard until then, and who starts."""
        while self._joins_s and self._joins_s[0] <= now_s:
            self._join(self._joins_s.pop(0))
        while self._shares:
            gateway = min(self._gateways, key=lambda one: one.next_s)
            if gateway.next_s > now_s:
                return
            gateway.tell(self.placed, self.held, _ms(gateway.next_s))
            gateway.hear(self.placed, self.held, _ms(gateway.next_s))
            gateway.next_s += max(TELL_INTERVAL_S, HEAR_INTERVAL_S)


def _ms(now_s: float) -> int:
    return round(now_s * 1000)


def run(
    workload: Workload, *, gateways: int, shares: bool = True, joins_s: Sequence[float] = ()
) -> tuple[Seen, Gateways]:
    """One run of a workload through so many gateways."""
    policy = Gateways(workload, gateways=gateways, shares=shares, joins_s=joins_s)
    return World(workload, policy).run(), policy


WORKLOADS: dict[str, Callable[[int], Workload]] = {"chat": chat, "hot": hot, "rag": rag}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"some of: {', '.join(WORKLOADS)}")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    print("| workload | seed | gateways | cached | TTFT p50 ms | p99 | max/mean load | told, bytes a request |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.workloads or WORKLOADS:
        for seed in range(given.seeds):
            for way, play in WAYS.items():
                seen, policy = play(WORKLOADS[name](seed))
                told_bytes = policy.placed.told_bytes + policy.held.told_bytes
                print(
                    f"| {name} | {seed} | {way} | {seen.cached_share:.1%} | {seen.ttft_p50_s * 1000:.0f} | "
                    f"{seen.ttft_p99_s * 1000:.0f} | {seen.imbalance:.2f} | {told_bytes / len(seen.asked):.0f} |",
                    flush=True,
                )


WAYS: dict[str, Callable[[Workload], tuple[Seen, Gateways]]] = {
    "one": partial(run, gateways=1),
    "8, each for itself": partial(run, gateways=8, shares=False),
    "8 that share": partial(run, gateways=8),
    f"8 that share, one from {JOINS_S:g} s on": partial(run, gateways=8, joins_s=(JOINS_S,)),
}

if __name__ == "__main__":
    main()
