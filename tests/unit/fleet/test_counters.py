"""Recorded pages of real engines, and what two readings say of the time between them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines import dialect_of
from gateway.fleet._counters import NoCounters, Reading, advance, read_counters
from tests.conformance.simulator.recordings import recorded

PAGE = dialect_of("vllm").metrics
assert PAGE is not None


def reading(at_ms: int, started_ms: int | None, **counters: int) -> Reading:
    return Reading(asked_ms=at_ms, answered_ms=at_ms + 50, started_ms=started_ms, counters=counters)


def test_a_recorded_page_of_vllm_is_read() -> None:
    """Tokens, HTTP requests on the paths that cost GPU time (not /tokenize), ends by reason, the process' start."""
    read = read_counters(recorded("metrics_after_recording").body, PAGE, asked_ms=5, answered_ms=9)
    assert (read.asked_ms, read.answered_ms, read.started_ms, read.running) == (5, 9, 1_795_462_925_980, 0)
    assert read.counters["prompt"] == 10_427
    assert read.counters["cached"] == 5_088
    assert read.counters["generation"] == 125
    assert read.counters["finished:stop"] == 1
    assert read.counters["finished:length"] == 32
    assert read.counters["requests"] == 45, "30 answered, 13 refused, 2 failed"


def test_the_caches_size_and_use_are_read() -> None:
    """23,847 blocks of 16, one of which vLLM keeps for itself."""
    idle = read_counters(recorded("metrics_idle").body, PAGE, asked_ms=0, answered_ms=0)
    assert (idle.kv_tokens, idle.kv_usage, idle.waiting, idle.preemptions) == (23_846 * 16, 0.0, 0, 0)


def test_gauges_of_ranks_are_added_up_but_for_the_fullest() -> None:
    lines = [
        'vllm:prompt_tokens_total{engine="0"} 1',
        'vllm:generation_tokens_total{engine="0"} 1',
        *(f'vllm:num_requests_waiting{{engine="{rank}"}} {rank + 2}.0' for rank in (0, 1)),
        *(f'vllm:kv_cache_usage_perc{{engine="{rank}"}} 0.{rank + 5}' for rank in (0, 1)),
        *(f'vllm:num_preemptions_total{{engine="{rank}"}} 4.0' for rank in (0, 1)),
        *(
            f'vllm:cache_config_info{{block_size="16",engine="{rank}",hash_block_size="64",num_gpu_blocks="101",'
            'num_gpu_blocks_override="None",user_specified_block_size="False"} 1.0'
            for rank in (0, 1)
        ),
    ]
    read = read_counters("\n".join(lines).encode(), PAGE, asked_ms=0, answered_ms=0)
    assert (read.waiting, read.running, read.kv_usage, read.preemptions) == (5, 5, 0.6, 8)
    assert read.kv_tokens == 2 * 1600


def test_ranks_of_one_server_are_added_up() -> None:
    """Data-parallel engines are lines of one page; a model's name may hold anything."""
    lines = [
        'vllm:prompt_tokens_total{engine="0",model_name="a} 7"} 10.0',
        'vllm:prompt_tokens_total{engine="1",model_name="a} 7"} 1e+07',
        'vllm:prompt_tokens_totally{engine="0"} 5',
        'vllm:generation_tokens_total{engine="0"} 3.0',
    ]
    assert read_counters("\n".join(lines).encode(), PAGE, asked_ms=0, answered_ms=0).counters == {
        "prompt": 10_000_010,
        "generation": 3,
    }


@pytest.mark.parametrize(
    "page",
    [b"", b"<html>", b"vllm:prompt_tokens_total many\nvllm:generation_tokens_total 1", b"vllm:prompt_tokens_total"],
)
def test_what_is_no_engines_page_is_refused(page: bytes) -> None:
    with pytest.raises(NoCounters):
        read_counters(page, PAGE, asked_ms=0, answered_ms=0)


@given(st.binary(max_size=300), st.lists(st.sampled_from([b"vllm:prompt_tokens_total", b"{", b"}", b" ", b"\n", b"1"])))
def test_any_bytes_are_read_or_refused(noise: bytes, pieces: list[bytes]) -> None:
    with contextlib.suppress(NoCounters):
        read_counters(noise + b"\n" + b"".join(pieces), PAGE, asked_ms=0, answered_ms=0)


def test_the_first_reading_adds_nothing() -> None:
    """What an engine did before it was first read is not ours to explain."""
    added = advance(None, reading(1000, 10, prompt=500))
    assert (added.increments, added.opened, added.closed, added.is_first) == ({}, (1000, 1050), (1000, 1050), True)


def test_a_counter_that_grew_adds_the_difference() -> None:
    added = advance((10, reading(1000, 10, prompt=500)), reading(2000, 10, prompt=512, requests=3))
    assert (added.increments, added.epoch) == ({"prompt": 12, "requests": 3}, 10)
    assert (added.opened, added.closed, added.is_first) == ((1000, 1050), (2000, 2050), False)


def test_a_new_process_counts_from_zero_and_from_its_beginning() -> None:
    added = advance((10, reading(1000, 10, prompt=500)), reading(9000, 4000, prompt=600))
    assert (added.increments, added.epoch, added.opened) == ({"prompt": 600}, 4000, (4000, 4000))
    assert added.is_first


def test_a_counter_that_fell_without_a_known_beginning_counts_from_now() -> None:
    """Nothing says since when: the new process' past is part of the gap."""
    added = advance((10, reading(1000, None, prompt=500)), reading(9000, None, prompt=3))
    assert (added.increments, added.epoch, added.opened) == ({}, 9050, (9000, 9050))


def test_a_beginning_before_the_last_reading_is_the_last_reading() -> None:
    """An engine's clock may be behind: increments belong after what was read before."""
    added = advance((10, reading(5000, 10, prompt=500)), reading(9000, 4000, prompt=3))
    assert added.opened == (5050, 5050)
