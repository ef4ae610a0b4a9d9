"""Whatever happens to the works of a fair queue, in whatever order: what is over leaves nothing behind."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admission import Cost, FairQueue, Work

COST = Cost()

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "start", "next", "end", "cancel", "requeue", "withdraw", "expired", "merge"]),
        st.integers(0, 3),
        st.integers(0, 1),
        st.integers(0, 30_000),
        st.integers(0, 400),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, shortest_first=st.booleans(), sequences=st.sampled_from([None, 4]))
def test_sums_return_to_zero(
    steps: list[tuple[str, int, int, int, int]], shortest_first: bool, sequences: int | None
) -> None:
    queue = FairQueue(credit_tokens=3000.0)
    queue.sequences = sequences
    waiting: dict[str, Work] = {}
    running: dict[str, Work] = {}
    used = 0.0
    given = 0.0
    now_ms = 0

    def end(work: Work, output_tokens: int) -> float:
        queue.ended(
            work,
            input_tokens=work.input_tokens,
            cached_tokens=work.cached_tokens,
            output_tokens=output_tokens,
            now_ms=now_ms,
        )
        del running[work.id]
        return COST.of(input_tokens=work.input_tokens, cached_tokens=work.cached_tokens, output_tokens=output_tokens)

    for number, (step, tenant, band, tokens, passed_ms) in enumerate(steps):
        now_ms += passed_ms
        work = Work(
            id=f"{number}",
            tenant=f"tenant {tenant}",
            band=band,
            weight=1.0 + tokens % 3,
            input_tokens=tokens,
            cached_tokens=tokens // 3,
            output_tokens=tokens // 10,
            retry=tokens % 5 == 0,
            arrived_ms=now_ms,
            deadline_ms=now_ms + 1000,
            shortest_first=shortest_first,
            prefix=tokens % 2,
            max_share=0.5 if tenant == 0 else 1.0,
        )
        match step:
            case "offer":
                if queue.offer(work, now_ms) is None:
                    waiting[work.id] = work
            case "start":
                queue.start(work, now_ms)
                running[work.id] = work
            case "next":
                got = queue.next(lambda work, below, most=tokens: below or work.input_tokens <= most, now_ms)
                if got is not None:
                    running[got.id] = waiting.pop(got.id)
            case "end" if running:
                used += end(next(iter(running.values())), tokens // 7)
            case "cancel" if running:
                cancelled = running.popitem()[1]
                queue.ended(cancelled, input_tokens=0, cached_tokens=0, output_tokens=0, now_ms=now_ms)
            case "requeue" if running:
                back = running.popitem()[1]
                queue.requeue(back, now_ms)
                waiting[back.id] = back
            case "withdraw" if waiting:
                queue.withdraw(waiting.popitem()[1])
            case "expired":
                for late, _ in queue.expired(now_ms):
                    assert late.deadline_ms < now_ms
                    del waiting[late.id]
            case "merge":
                queue.merge({f"{band} tenant {tenant}": float(tokens - 5000)})
        given += sum(queue.counters().values())

    for work in list(waiting.values()):
        queue.withdraw(work)
    for work in list(running.values()):
        used += end(work, 5)
    given += sum(queue.counters().values())

    assert len(queue) == 0
    assert queue.expired(now_ms + 10_000) == []
    assert queue.next(lambda _work, _below: True, now_ms) is None
    assert abs(given - used) < 1e-3
    for load in queue.load().values():
        assert (load.waiting, load.running, load.waiting_cost, load.running_cost) == (0, 0, 0.0, 0.0)


@settings(max_examples=100, deadline=None)
@given(
    works=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(1, 20_000), st.booleans()), max_size=60),
    slots=st.integers(1, 8),
)
def test_nothing_waits_while_there_is_room_and_everything_is_served_once(
    works: list[tuple[int, int, int, bool]], slots: int
) -> None:
    queue = FairQueue()
    for number, (tenant, band, tokens, retry) in enumerate(works):
        work = Work(
            id=f"{number}",
            tenant=f"tenant {tenant}",
            band=band,
            weight=1.0,
            input_tokens=tokens,
            cached_tokens=0,
            output_tokens=tokens // 10,
            retry=retry,
            arrived_ms=0,
            deadline_ms=10**9,
        )
        assert queue.offer(work, 0) is None
    running: list[Work] = []
    served: list[str] = []
    now_ms = 0
    while len(queue):
        while (got := queue.next(lambda _work, _below: len(running) < slots, now_ms)) is not None:
            running.append(got)
            served.append(got.id)
        assert len(running) == slots or not len(queue)
        now_ms += 10
        ended = running.pop(0)
        queue.ended(ended, input_tokens=ended.input_tokens, cached_tokens=0, output_tokens=1, now_ms=now_ms)

    assert sorted(served, key=int) == [f"{number}" for number in range(len(works))]
