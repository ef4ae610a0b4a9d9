"""The engine core: what must hold whatever arrives, and the scheduler's rules one by one, all in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulator import PROFILES, EngineCore, Job, Profile, Prompt, StepResult

SMALL = replace(
    PROFILES["h200-llama-8b"],
    max_model_len=256,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    kv_blocks=25,
)
BLOCK = SMALL.block_size


def job(name: str, prompt: int | Prompt, output: int) -> Job:
    """A job of that size."""
    return Job(id=name, prompt=Prompt(prompt) if isinstance(prompt, int) else prompt, output_tokens=output)


def ids(count: int, seed: int = 0) -> list[int]:
    """Token ids that differ between seeds."""
    return [1000 + seed * 10_000 + place for place in range(count)]


@dataclass
class World:
    """An engine, its clock, and what came out of it by job."""

    core: EngineCore
    now: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)

    def step(self) -> StepResult | None:
        result = self.core.step(self.now)
        self.core.check()
        if result is not None:
            self.take(result)
        return result

    def take(self, result: StepResult) -> None:
        self.now = result.end_s
        for request in result.decoded + result.firsts:
            self.tokens[request.id] = self.tokens.get(request.id, 0) + 1
        for request in result.finished:
            self.finished[request.id] = result.end_s

    def run(self) -> None:
        for _ in range(100_000):
            if self.step() is None:
                return
        raise AssertionError("the engine does not come to an end")


def world(profile: Profile = SMALL) -> World:
    """An idle engine."""
    return World(EngineCore(profile))


commands = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 160), st.integers(1, 80), st.integers(0, 3)),
        st.tuples(st.just("abort"), st.integers(0, 30), st.booleans(), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 30), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(commands, st.sampled_from([0, 16, 32]))
def test_nothing_is_lost_whatever_arrives(steps: list[tuple[str, int, int, int]], threshold: int) -> None:
    """Every job that is not aborted gets exactly its tokens, aborted ones at most theirs, the counters agree with
    what came out, and in the end every block is free."""
    here = world(replace(SMALL, long_prefill_token_threshold=threshold))
    jobs: dict[str, Job] = {}
    aborted: set[str] = set()
    for kind, first, second, third in steps:
        if kind == "submit":
            prompt = Prompt.of(ids(first, third), BLOCK) if third else Prompt(first)
            one = Job(
                id=str(len(jobs)), prompt=prompt, output_tokens=second, token_at=(lambda i: i) if third == 2 else None
            )
            jobs[one.id] = one
            here.core.submit(one, here.now)
        elif kind == "abort" and second:
            if here.core.abort(str(first)):
                aborted.add(str(first))
        elif kind == "abort":
            running = here.core.start(here.now)
            if here.core.abort(str(first)):
                aborted.add(str(first))
            here.core.check()
            if running is not None:
                here.take(here.core.finish(running))
        else:
            for _ in range(first):
                here.step()
        here.core.check()
    here.run()

    assert here.core.idle
    assert here.core.pool.used == 0
    assert set(here.finished) == set(jobs) - aborted
    for name, one in jobs.items():
        if name in aborted:
            assert here.tokens.get(name, 0) <= one.output_tokens
        else:
            assert here.tokens[name] == one.output_tokens
    assert here.core.counters.generation_tokens == sum(here.tokens.values())
    assert here.core.counters.prompt_tokens == sum(jobs[name].prompt.tokens for name in here.tokens)


def test_a_decoding_stream_gets_one_token_in_every_step() -> None:
    """A prompt of 200 tokens beside it is computed in chunks of what one decoding stream leaves of the budget."""
    here = world()
    here.core.submit(job("short", 16, 50), 0.0)
    here.step()
    here.step()
    here.core.submit(job("long", 200, 1), here.now)
    before = here.tokens["short"]
    steps = 0
    while "long" not in here.tokens:
        here.step()
        steps += 1
    assert here.tokens["short"] - before == steps
    # The step planned when it arrived, then 63 + 63 + 63 + 11 tokens.
    assert steps == 1 + 4


def test_prompts_are_computed_first_come_first_served() -> None:
    """The second prompt's chunk is what the first one's leaves of the step."""
    here = world()
    here.core.submit(job("first", 100, 1), 0.0)
    here.core.submit(job("second", 20, 1), 0.0)
    here.run()
    assert here.finished["first"] == here.finished["second"]
    here = world(replace(SMALL, long_prefill_token_threshold=16))
    here.core.submit(job("first", 100, 1), 0.0)
    here.core.submit(job("second", 20, 1), 0.0)
    here.run()
    assert here.finished["second"] < here.finished["first"]


def test_no_more_than_max_num_seqs_run() -> None:
    """The fifth of five waits, and is in `waiting`, until one of four has ended."""
    here = world()
    for number in range(5):
        here.core.submit(job(str(number), 10, 20 if number else 5), 0.0)
    here.step()
    assert (here.core.running, here.core.waiting) == (4, 1)
    here.run()
    assert here.finished["0"] < here.finished["4"]


def test_cached_tokens_are_whole_blocks_below_the_length() -> None:
    """A prompt of exactly four blocks that was there before finds three of them; with one token more, four."""
    here = world()
    for name, length in (("first", 64), ("same", 64), ("longer", 65), ("shorter", 33)):
        request = here.core.submit(job(name, Prompt.of(ids(length), BLOCK), 1), here.now)
        here.run()
        assert request.cached_tokens == {"first": 0, "same": 48, "longer": 64, "shorter": 32}[name]
    assert here.core.counters.cache_queries == 64 + 64 + 65 + 33
    assert here.core.counters.cache_hits == 48 + 64 + 32


def test_a_salt_separates_caches() -> None:
    """The same tokens under another salt find nothing."""
    here = world()
    here.core.submit(job("ours", Prompt.of(ids(64), BLOCK, "ours"), 1), 0.0)
    here.run()
    other = here.core.submit(job("theirs", Prompt.of(ids(64), BLOCK, "theirs"), 1), here.now)
    here.run()
    assert other.cached_tokens == 0


def test_the_next_turn_finds_the_answer() -> None:
    """A prompt that repeats prompt and answer of the turn before finds the blocks that the answer filled."""
    here = world()
    answer = ids(40, seed=7)
    here.core.submit(
        Job(id="turn 1", prompt=Prompt.of(ids(20), BLOCK), output_tokens=40, token_at=lambda i: answer[i]), 0.0
    )
    here.run()
    second = here.core.submit(job("turn 2", Prompt.of(ids(20) + answer + ids(5, seed=9), BLOCK), 1), here.now)
    here.run()
    # 59 of the 60 tokens were computed: the last one generated was never read back.
    assert second.cached_tokens == 48


def test_the_block_freed_longest_ago_is_evicted() -> None:
    """Of two prompts in the cache the older one makes room, its end before its beginning."""
    here = world()
    for name, seed in (("old", 1), ("new", 2)):
        here.core.submit(job(name, Prompt.of(ids(160, seed), BLOCK), 1), here.now)
        here.run()
    # 24 blocks in all, 20 of them cached: this one takes the 4 empty ones and 4 of the older prompt's.
    here.core.submit(job("other", 128, 1), here.now)
    here.run()
    old = here.core.submit(job("old again", Prompt.of(ids(160, 1), BLOCK), 1), here.now)
    here.run()
    assert old.cached_tokens == 96


def test_the_one_admitted_last_is_preempted() -> None:
    """When the cache is full the newest stream loses its blocks, waits, and is then completed without a token twice."""
    here = world()
    here.core.submit(job("first", 100, 150), 0.0)
    here.core.submit(job("second", 100, 150), 0.0)
    here.run()
    assert here.core.counters.preemptions == 1
    assert here.tokens == {"first": 150, "second": 150}
    assert here.finished["first"] < here.finished["second"]
    assert here.core.counters.prompt_tokens == 200


def test_an_abort_takes_effect_when_the_step_in_flight_ends() -> None:
    """Blocks stay in use until then, nothing comes out afterwards, and what had come out stays counted."""
    here = world()
    here.core.submit(job("gone", 50, 100), 0.0)
    here.step()
    here.step()
    running = here.core.start(here.now)
    assert running is not None
    assert here.core.abort("gone")
    assert not here.core.abort("gone")
    assert here.core.pool.used > 0
    here.take(here.core.finish(running))
    assert here.core.pool.used == 0
    assert here.tokens["gone"] == here.core.counters.generation_tokens == 2


def test_a_prompt_cut_before_its_first_token_is_not_counted() -> None:
    """However much of it was computed: only who asked knows of that work."""
    here = world()
    here.core.submit(job("gone", 200, 10), 0.0)
    here.step()
    here.core.abort("gone")
    here.run()
    assert here.core.counters.prompt_tokens == 0
    assert here.core.counters.generation_tokens == 0


def test_one_planned_step_is_computed_for_an_aborted_prompt() -> None:
    """Planning runs one step ahead, so the step after the abort still takes its time."""
    here = world()
    here.core.submit(job("gone", 200, 10), 0.0)
    first = here.core.start(0.0)
    assert first is not None
    here.core.abort("gone")
    here.core.finish(first)
    wasted = here.core.start(first.end_s)
    assert wasted is not None
    assert wasted.prefill_tokens == 64
    assert here.core.finish(wasted).firsts == []
    assert here.core.start(wasted.end_s) is None


def test_speed_divides_times() -> None:
    """At speed 10 everything takes a tenth."""
    slow, fast = world(), world(replace(SMALL, speed=10.0))
    for here in (slow, fast):
        here.core.submit(job("one", 100, 50), 0.0)
        here.run()
    assert abs(slow.now - 10 * fast.now) < 1e-9


def test_twenty_thousand_requests_take_a_few_seconds_at_most() -> None:
    """A step costs what changes in it, not what runs: 150 streams, 20,000 requests of 200 tokens, below 100,000
    steps."""
    core = EngineCore(PROFILES["h200-llama-8b"])
    now, sent, steps = 0.0, 0, 0
    while sent < 20_000 or not core.idle:
        while sent < 20_000 and core.running + core.waiting < 150:
            core.submit(job(str(sent), 400 + sent % 300, 100 + sent % 200), now)
            sent += 1
        result = core.step(now)
        assert result is not None
        now, steps = result.end_s, steps + 1
    assert core.counters.generation_tokens == sum(100 + number % 200 for number in range(20_000))
    assert steps < 100_000
