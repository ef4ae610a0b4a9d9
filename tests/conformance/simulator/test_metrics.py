"""`/metrics` names, types, labels and buckets are vLLM's, and they mean what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.conformance.simulator.conftest import PROFILE, serving
from tests.conformance.simulator.recordings import ask, chat, completion, get, post, recorded


def series(text: str) -> dict[str, float]:
    """Each sample's value by name and labels."""
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line and line[0] != "#"
    }


@pytest.fixture(scope="module")
def idle_port() -> Iterator[int]:
    """A replica of its own: its counters begin at 0."""
    with serving(PROFILE) as port:
        yield port


def test_an_idle_replica_shows_the_recorded_families(idle_port: int) -> None:
    """The same HELP and TYPE lines in the same order, and the same series with the same labels."""
    ask(idle_port, get("/v1/models"))
    ours, theirs = ask(idle_port, get("/metrics")).body.decode(), recorded("metrics_idle").body.decode()
    assert [line for line in ours.splitlines() if line.startswith("#")] == [
        line for line in theirs.splitlines() if line.startswith("#")
    ]
    own = re.compile(r'version="[^"]*"|major="\d+"|minor="\d+"|patchlevel="\d+"')
    assert [own.sub("", name) for name in series(ours)] == [own.sub("", name) for name in series(theirs)]


def test_counters_equal_the_usage_of_the_answers(idle_port: int) -> None:
    """Prompts count once for each sample, generated tokens as usage says, stop strings and stop tokens included."""
    engine = '{engine="0",model_name="llama-8b"}'
    before = series(ask(idle_port, get("/metrics")).body.decode())
    prompts = output = 0
    for call, samples in (
        (chat(max_tokens=7), 1),
        (chat(n=3), 3),
        (chat(stop=["a"], max_tokens=50), 1),
        (completion(prompt=["one two", "three"], n=2), 2),
        (chat(max_tokens=None, ignore_eos=False), 1),
    ):
        usage = json.loads(ask(idle_port, call).body)["usage"]
        prompts += usage["prompt_tokens"] * samples
        output += usage["completion_tokens"]
    after = series(ask(idle_port, get("/metrics")).body.decode())

    def gained(name: str, labels: str = engine) -> float:
        return after[name + labels] - before[name + labels]

    assert gained("vllm:prompt_tokens_total") == prompts
    assert gained("vllm:generation_tokens_total") == output
    assert gained("vllm:request_generation_tokens_sum") == output
    assert gained("vllm:request_success_total", '{engine="0",finished_reason="stop",model_name="llama-8b"}') == 2
    assert gained("vllm:request_params_n_count") == 6
    assert gained("vllm:request_params_n_sum") == 10
    assert gained("vllm:request_max_num_generation_tokens_count") == 6
    assert gained("vllm:inter_token_latency_seconds_count") == output - 10
    assert gained("vllm:time_to_first_token_seconds_count") == 10
    assert after["vllm:num_requests_running" + engine] == 0
    assert after["vllm:kv_cache_usage_perc" + engine] == 0


def test_requests_are_counted_by_handler_and_status() -> None:
    """Unknown paths and methods under `none`; what left vLLM's own handlers, as `n` 0 did in the recording, as 5xx."""
    calls = (chat(), chat(max_tokens=0), chat(n=0), get("/v1/nothing"), get("/v1/chat/completions"), get("/load"))
    with serving(PROFILE) as port:
        for call in calls:
            ask(port, call)
        lines = ask(port, get("/metrics")).body.decode()
    counted = {name: value for name, value in series(lines).items() if name.startswith("http_requests_total")}
    assert counted == {
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"}': 1,
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="4xx"}': 1,
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="5xx"}': 1,
        'http_requests_total{handler="none",method="GET",status="4xx"}': 2,
    }


def test_tokenize_agrees_with_usage(idle_port: int) -> None:
    """What `/tokenize` counts is what `usage.prompt_tokens` says, for conversations and completions."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Wie geht's? 日本語 ok"}]},
    ]
    counted = json.loads(ask(idle_port, post("/tokenize", {"messages": messages})).body)["count"]
    assert json.loads(ask(idle_port, chat(messages=messages)).body)["usage"]["prompt_tokens"] == counted
    text = "def f(x):\n    return x * 2  # twice\n"
    tokens = json.loads(ask(idle_port, post("/tokenize", {"prompt": text})).body)
    assert json.loads(ask(idle_port, completion(prompt=text)).body)["usage"]["prompt_tokens"] == tokens["count"]
    assert (
        json.loads(ask(idle_port, completion(prompt=tokens["tokens"])).body)["usage"]["prompt_tokens"]
        == tokens["count"]
    )
