"""The default profile against what was measured on the H200: one step-time model must give all of these curves.

Within 10 % where the measurement gives a formula. Elsewhere each test states its tolerance and why. Sources: the
tables of `vllm-0.24.0-h200/README.md`, single runs, to be read with 10 % of noise. All times in ms unless a name says
otherwise.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.simulator import PROFILES, Profile, Prompt
from tests.simulation.virtual_replica import Stream, VirtualReplica, mean, percentile

H200 = PROFILES["h200-llama-8b"]
THRESHOLD_1024 = replace(H200, long_prefill_token_threshold=1024)
SMALL = replace(H200, kv_blocks=3600, max_num_seqs=64, max_model_len=32_768)
ARRIVALS = json.loads((Path(__file__).parent / "poisson_arrivals.json").read_text())


def near(measured: float, tolerance: float) -> object:
    """Within that share of it."""
    return pytest.approx(measured, rel=tolerance)


def keyed(tokens: int, tag: str) -> Prompt:
    """A prompt that is found again under its tag."""
    return Prompt(tokens, keys=[hash((tag, block)) for block in range(tokens // 16)])


@pytest.mark.parametrize("tokens", [1024, 2048, 4096, 8192, 16_384, 32_000, 65_536, 100_000])
def test_ttft_of_an_idle_replica(tokens: int) -> None:
    """TTFT = 9.2 + 22.7 n + 0.449 n², within 10 %."""
    replica = VirtualReplica(H200)
    stream = replica.send(0.0, tokens, 2)
    replica.run()
    n = tokens / 1000
    assert stream.ttft_s * 1000 == near(9.2 + 22.7 * n + 0.449 * n * n, 0.10)


@pytest.mark.parametrize("tokens", [16, 128, 256, 512])
def test_ttft_of_a_small_prompt_is_flat(tokens: int) -> None:
    """14 to 22 ms up to 512 tokens."""
    replica = VirtualReplica(H200)
    stream = replica.send(0.0, tokens, 2)
    replica.run()
    assert 14 <= stream.ttft_s * 1000 <= 22


@pytest.mark.parametrize("tokens", [128, 512, 1024, 2048, 4096, 8192, 16_384, 32_000, 65_536, 100_000])
def test_ttft_of_a_cached_prompt(tokens: int) -> None:
    """TTFT = 18.8 + 1.9 n when the same prompt came before, within 10 %."""
    replica = VirtualReplica(H200)
    replica.send(0.0, keyed(tokens, "prompt"), 1)
    again = replica.send(60.0, keyed(tokens, "prompt"), 1)
    replica.run()
    assert again.cached_tokens == (tokens - 1) // 16 * 16
    assert again.ttft_s * 1000 == near(18.8 + 1.9 * tokens / 1000, 0.10)


@pytest.mark.parametrize(
    ("context", "batch"),
    [
        *((512, batch) for batch in (1, 4, 16, 64, 128)),
        *((2048, batch) for batch in (1, 4, 16, 64, 128)),
        *((8192, batch) for batch in (1, 4, 16, 32)),
        *((32_000, batch) for batch in (1, 4, 8)),
        *((100_000, batch) for batch in (1, 2)),
    ],
)
def test_decode_step(context: int, batch: int) -> None:
    """A step = 4.89 + 0.0127 batch + 0.0302 thousand tokens of context of the whole batch, within 10 %."""
    replica = VirtualReplica(H200)
    for _ in range(batch):
        replica.send(0.0, context, 300)
    replica.run()
    begin = max(stream.token_s[0] for stream in replica.streams)
    end = min(stream.token_s[-1] for stream in replica.streams)
    gaps = [gap for stream in replica.streams for gap in stream.gaps(begin + 0.1, end)]
    assert mean(gaps) * 1000 == near(4.89 + 0.0127 * batch + 0.0302 * batch * (context + 150) / 1000, 0.10)


def test_one_api_server_streams_15_000_events_a_second() -> None:
    """256 streams run at 17.0 ms a step, where the GPU alone would need 12.7."""
    replica = VirtualReplica(H200)
    for _ in range(256):
        replica.send(0.0, 512, 500)
    replica.run()
    begin, end = replica.streams[-1].token_s[0], replica.streams[0].token_s[-1]
    gaps = replica.streams[0].gaps(begin + 0.1, end)
    assert mean(gaps) * 1000 == near(17.0, 0.10)


@pytest.mark.parametrize(
    ("streams", "window_s", "output", "prompts", "itl_p50"),
    [
        (1, 6.5, 199, 788, 4.9),
        (2, 6.5, 390, 1575, 4.9),
        (4, 6.5, 750, 2836, 5.0),
        (8, 6.5, 1355, 5671, 5.1),
        (16, 7.5, 2292, 9830, 5.3),
        (32, 7.5, 3611, 15_019, 5.8),
        (64, 7.5, 5327, 18_569, 6.7),
        (128, 10.0, 5477, 26_214, 9.0),
        (256, 10.0, 5500, 26_214, 18.0),
        (512, 10.0, 6560, 25_907, 37.0),
    ],
)
def test_concurrency_sweep(streams: int, window_s: float, output: float, prompts: float, itl_p50: float) -> None:
    """Tokens per second in a closed loop of 512 in, 128 out: within 12 % below 64 streams, and within 20 % from there
    on, where the load moves in waves, a window holds whole ones, and the measurement itself is good to 15 %; ITL
    within 10 %."""
    replica = VirtualReplica(H200)
    replica.closed_loop(streams, 512, 128, window_s)
    replica.run(window_s)
    tolerance = 0.12 if streams < 64 else 0.20
    assert replica.tokens_between(0.0, window_s) / window_s == near(output, tolerance)
    firsts = sum(bool(stream.token_s) for stream in replica.streams)
    assert firsts * 512 / window_s == near(prompts, tolerance)
    gaps = [gap for stream in replica.streams for gap in stream.gaps()]
    assert percentile(gaps, 0.5) * 1000 == near(itl_p50, 0.10)


def with_a_long_prompt(profile: Profile, tokens: int) -> tuple[Stream, list[float], float, list[float]]:
    """16 streams (512 in, 256 out), a newcomer of 128 tokens four times a second, and one long prompt at 4 s: the
    long one, the others' gaps while it prefills, their tokens per second, and the newcomers' TTFT."""
    replica = VirtualReplica(profile)
    replica.closed_loop(16, 512, 256, 14.0)
    long = replica.send(4.0, tokens, 64)
    newcomers = [replica.send(0.03 + 0.25 * number, 128, 1) for number in range(48)]
    replica.run(14.0)
    end = long.token_s[0] + 1e-6
    others = [stream for stream in replica.streams if stream.prompt.tokens == 512]
    gaps = [gap for stream in others for gap in stream.gaps(4.0, end)]
    made = sum(4.0 <= when < end for stream in others for when in stream.token_s)
    waits = [one.ttft_s for one in newcomers if 4.0 <= one.sent_s < end]
    return long, gaps, made / (end - 4.0), waits


@pytest.mark.parametrize(
    ("threshold", "budget", "tokens", "ttft_s", "itl_mean", "itl_max", "output", "newcomer_p50"),
    [
        (0, 8192, 32_000, 1.24, 138, 411, 116, 726),
        (0, 2048, 32_000, 1.25, 60, 119, 269, 728),
        (2048, 8192, 32_000, 1.28, 61, 123, 263, 215),
        (1024, 8192, 32_000, 1.31, 35, 55, 451, 105),
        (512, 8192, 32_000, 1.52, 23, None, 703, 63),
        (0, 8192, 100_000, 6.81, 359, None, 45, 3407),
        (0, 2048, 100_000, 6.84, 120, None, 133, 3445),
        (2048, 8192, 100_000, 6.83, 124, 284, 129, 384),
        (1024, 8192, 100_000, 7.19, 66, None, 220, 194),
        (512, 8192, 100_000, 7.64, 37, None, 419, 119),
    ],
)
def test_noisy_neighbour(
    threshold: int,
    budget: int,
    tokens: int,
    ttft_s: float,
    itl_mean: float,
    itl_max: float | None,
    output: float,
    newcomer_p50: float,
) -> None:
    """One long prompt beside 16 streams, for each of the engine's flags: its TTFT within 10 %; the others' mean ITL,
    largest gap and tokens per second, and a newcomer's TTFT within 20 %: they hang on where among the steps an
    arrival falls, and some of the client's largest gaps (None here) are two steps that the server sent as one
    event."""
    profile = replace(H200, long_prefill_token_threshold=threshold, max_num_batched_tokens=budget)
    long, gaps, rate, waits = with_a_long_prompt(profile, tokens)
    assert long.ttft_s == near(ttft_s, 0.10)
    assert mean(gaps) * 1000 == near(itl_mean, 0.20)
    assert rate == near(output, 0.20)
    assert percentile(waits, 0.5) * 1000 == near(newcomer_p50, 0.20)
    if itl_max is not None:
        assert max(gaps) * 1000 == near(itl_max, 0.20)


def test_client_gone_during_a_long_prefill() -> None:
    """Hung up on after 0.6 s, a prompt of 100,000 tokens stops running when the step in flight ends (measured 280 ms,
    at most one step of 330 here), and one planned step more is computed before a newcomer's (measured TTFT 683
    ms)."""
    replica = VirtualReplica(H200)
    replica.hang_up(0.6, replica.send(0.0, 100_000, 10))
    replica.run(0.61)
    assert replica.core.running == 0
    assert 0.0 < replica.now - 0.6 <= 0.33

    replica = VirtualReplica(H200)
    replica.hang_up(0.6, replica.send(0.0, 100_000, 10))
    newcomer = replica.send(0.6, 128, 1)
    replica.run()
    assert 0.45 <= newcomer.ttft_s <= 0.75
    assert replica.core.counters.prompt_tokens == 128
    assert replica.core.counters.generation_tokens == 1


def test_client_gone_while_decoding() -> None:
    """Eight decoding streams are gone within a step (measured: at most 22 ms), with their tokens counted."""
    replica = VirtualReplica(H200)
    streams = [replica.send(0.0, 256, 4000) for _ in range(8)]
    for stream in streams:
        replica.hang_up(2.0, stream)
    replica.run(2.022)
    assert replica.core.running == 0
    assert replica.core.counters.generation_tokens == sum(len(stream.token_s) for stream in streams)
    assert replica.core.pool.used == 0


def test_kv_exhaustion() -> None:
    """48 streams of 1,024 in, 1,536 out in 57,600 tokens of cache: all admitted, 26 preemptions from 2.6 s on, 25
    silences of over a second, the longest 10.5 s, all over after 21.3 s. Counts equal, times within 10 % (the first
    preemption 15 %)."""
    replica = VirtualReplica(SMALL)
    for _ in range(48):
        replica.send(0.0, 1024, 1536)
    first: list[float] = []
    for tick in range(100):
        replica.at(tick * 0.05, lambda now: first.append(now) if replica.core.counters.preemptions else None)
    replica.run()
    gaps = [gap for stream in replica.streams for gap in stream.gaps()]
    assert replica.core.counters.preemptions == 26
    assert sum(gap > 1 for gap in gaps) == 25
    assert max(gaps) == near(10.5, 0.10)
    assert max(stream.token_s[-1] for stream in replica.streams) == near(21.3, 0.10)
    assert first[0] == near(2.6, 0.15)
    assert replica.core.counters.generation_tokens == 48 * 1536
    assert replica.core.counters.prompt_tokens == 48 * 1024


@pytest.mark.parametrize(
    ("streams", "output", "ttft_p99", "waiting_max"),
    [(32, 5054, 127, None), (64, 8249, 216, None), (96, 9031, 933, 32), (160, 9033, 2000, 96)],
)
def test_past_max_num_seqs(streams: int, output: float, ttft_p99: float, waiting_max: int | None) -> None:
    """Beyond 64 running the surplus waits: tokens per second within 10 %, p99 of the TTFT within 20 % (it is that of
    the wave all begin with), the number waiting exact."""
    replica = VirtualReplica(SMALL)
    replica.closed_loop(streams, 128, 128, 10.0)
    seen: list[tuple[int, int]] = []
    for tick in range(20, 200):
        replica.at(tick * 0.05, lambda _: seen.append((replica.core.running, replica.core.waiting)))
    replica.run(10.0)
    assert replica.tokens_between(0.0, 10.0) / 10.0 == near(output, 0.10)
    assert percentile([one.ttft_s for one in replica.streams if one.token_s], 0.99) * 1000 == near(ttft_p99, 0.20)
    assert max(running for running, _ in seen) == min(streams, 64)
    if waiting_max is not None:
        assert max(waiting for _, waiting in seen) == waiting_max


@pytest.mark.parametrize(
    ("rate", "ttft_p50", "itl_mean", "output", "running", "good"),
    [
        ("20", 46, 8.9, 4097, 37, 1.000),
        ("30", 74, 16, 5760, 89, 1.000),
        ("35", 144, 30, 5225, 167, 0.997),
        ("40", 314, 61, 4676, 304, 0.607),
    ],
)
def test_poisson_knee(rate: str, ttft_p50: float, itl_mean: float, output: float, running: float, good: float) -> None:
    """The same arrivals and lengths as measured, threshold 1024: mean ITL, running and tokens per second within 15 %,
    TTFT within 20 %, and the share of good requests (TTFT at most 600 ms, mean ITL at most 80 ms) within 0.05, on
    both sides of the cliff."""
    replica = VirtualReplica(THRESHOLD_1024)
    for when, prompt, tokens in ARRIVALS[rate]:
        replica.send(when, prompt, tokens)
    seen: list[int] = []
    for second in range(5, 25):
        replica.at(second + 0.5, lambda _: seen.append(replica.core.running))
    replica.run(60.0)
    window = [stream for stream in replica.streams if 5 <= stream.sent_s < 25]
    itls = [stream.mean_itl_s for stream in window if len(stream.token_s) > 1]
    fine = sum(one.ttft_s <= 0.6 and (len(one.token_s) < 2 or one.mean_itl_s <= 0.08) for one in window)
    assert percentile([stream.ttft_s for stream in window], 0.5) * 1000 == near(ttft_p50, 0.20)
    assert mean(itls) * 1000 == near(itl_mean, 0.15)
    assert replica.tokens_between(5.0, 25.0) / 20.0 == near(output, 0.15)
    assert mean([float(count) for count in seen]) == near(running, 0.15)
    assert fine / len(window) == pytest.approx(good, abs=0.05)


def test_short_requests_beside_prompts_of_100_000_tokens() -> None:
    """Held out: nothing was read off this run. 20 req/s beside one long prompt after the other: TTFT p50 368 ms and
    p90 558 within 10 %, the long prompt's 10.8 s within 10 %, mean ITL 62 within 15 %, 70 % good within 0.12 (ITL lies
    at its limit for many, so that a few ms decide)."""
    replica = VirtualReplica(THRESHOLD_1024)
    short = [replica.send(when, prompt, tokens) for when, prompt, tokens in ARRIVALS["20"]]
    long: list[Stream] = []

    def again(_: Stream | None, now: float) -> None:
        if now < 25:
            long.append(replica.send(now, 100_000, 64, again))

    again(None, 3.0)
    replica.run(60.0)
    window = [stream for stream in short if 5 <= stream.sent_s < 25]
    itls = [stream.mean_itl_s for stream in window if len(stream.token_s) > 1]
    fine = sum(one.ttft_s <= 0.6 and (len(one.token_s) < 2 or one.mean_itl_s <= 0.08) for one in window)
    assert percentile([stream.ttft_s for stream in window], 0.5) * 1000 == near(368, 0.10)
    assert percentile([stream.ttft_s for stream in window], 0.9) * 1000 == near(558, 0.10)
    assert long[0].ttft_s == near(10.8, 0.10)
    assert mean(itls) * 1000 == near(62, 0.15)
    assert fine / len(window) == pytest.approx(0.70, abs=0.12)
