"""The gateway in front of llama.cpp's own server: what is billed is what the server counted.

MTOK_REAL_LLAMACPP_URL names a server that runs already (`http://127.0.0.1:8080`; its metrics on, two slots of 2,048
tokens, idle). Without it the scripts of MTOK_REAL_LLAMACPP_DIR (default: `../shared/real-llamacpp` beside this
repository) start one, where it has been set up.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import redis

from gateway.engines import dialect_of
from gateway.fleet import Reading, read_counters
from gateway.metering import UsageEvent
from gateway.store import TenantKeys, embedded
from gateway.tenants import hash_key, new_key
from loadtest.processes import free_port, mtok, running
from tests.real.conftest import REPOSITORY

MODEL = "small"
"""What clients call it; the server calls it "tiny"."""
TENANT = "acme"
CONTEXT_TOKENS = 2048
READ_S = 25
"""By then the engine's counters have been read again, twice."""
MINUTE_S = 60
_POLICIES = """\
models:
  {model}:
    engine: llamacpp
    engine_model: tiny
    replicas: [{{url: "{url}"}}]
    price: {{output_usd_per_mtok: 0.35}}
tenants:
  {tenant}: {{keys: [{{id: acme, sha256: "{sha256}"}}]}}
"""


@dataclass(frozen=True)
class Served:
    """The gateway and the server behind it."""

    url: str
    key: str
    engine: str
    valkey: redis.Redis
    valkey_url: str

    def reading(self) -> Reading:
        """What the server's metrics say now."""
        metrics = dialect_of("llamacpp").metrics
        assert metrics is not None
        page = httpx.get(metrics.url(self.engine), trust_env=False).content
        return read_counters(page, metrics, asked_ms=0, answered_ms=0)

    def idle_reading(self, timeout_s: float = 20.0) -> Reading:
        """The same once nothing runs."""
        deadline_s = time.monotonic() + timeout_s
        while (reading := self.reading()).running:
            assert time.monotonic() < deadline_s, f"llama.cpp still runs {reading.running}"
            time.sleep(0.05)
        return reading

    def event(self, request_id: str, timeout_s: float = 5.0) -> UsageEvent:
        """One request's event."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            entries = self.valkey.xrange(TenantKeys(TENANT).events)
            events = [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in entries]
            if found := [event for event in events if event.id == request_id]:
                assert len(found) == 1
                return found[0]
            assert time.monotonic() < deadline_s, f"no usage event for {request_id}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's address."""
    if given := os.environ.get("MTOK_REAL_LLAMACPP_URL"):
        yield given
        return
    named = os.environ.get("MTOK_REAL_LLAMACPP_DIR")
    directory = Path(named) if named else REPOSITORY.parent / "shared" / "real-llamacpp"
    if not (Path.home() / ".cache" / "real-llamacpp" / "tiny.gguf").is_file() or not directory.is_dir():
        pytest.skip("no real llama.cpp: run setup.sh of real-llamacpp, or set MTOK_REAL_LLAMACPP_URL")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("llamacpp") / "server.log"
    with running([str(directory / "start.sh"), str(port)], log=log, ready_url=f"{url}/health", timeout_s=60):
        yield url


@pytest.fixture(scope="module")
def served(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("gateway")
    policies, data = directory / "policies", directory / "data"
    policies.mkdir()
    key = new_key("acme")
    document = _POLICIES.format(model=MODEL, tenant=TENANT, url=engine, sha256=hash_key(key))
    (policies / "policies.yaml").write_text(document)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        running(
            mtok("serve", "--policies", str(policies), "--port", str(port)),
            log=directory / "gateway.log",
            ready_url=f"{url}/readyz",
            environment={"MTOK_DATA_DIR": str(data), "MTOK_REDIS_URL": "", "MTOK_LOG": "info"},
        ),
        embedded(data) as valkey_url,
        redis.Redis.from_url(valkey_url) as valkey,
    ):
        yield Served(url, key, engine, valkey, valkey_url)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:
        yield client


def asked(number: int, **more: Any) -> dict[str, Any]:
    """A chat that begins as the others do, with an id to know its event by."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Tell me {number} things that are worth knowing"}],
        "extra_headers": {"x-request-id": f"llama-{number}-{time.time_ns()}"},
        **more,
    }


def billed(events: list[UsageEvent]) -> dict[str, int]:
    """The events' tokens, by the counters' names."""
    return {
        "prompt": sum(event.usage.input_tokens for event in events),
        "cached": sum(event.usage.input_cached_tokens for event in events),
        "generation": sum(event.usage.output_tokens for event in events),
    }


def grown(before: Reading, after: Reading) -> dict[str, int]:
    return {name: after.counters[name] - before.counters[name] for name in ("prompt", "cached", "generation")}


async def test_finished_requests_are_billed_what_the_server_counted(served: Served, client: openai.AsyncOpenAI) -> None:
    """Plain and streamed, with usage asked for and without, chats, completions, responses: to the token, the cached
    ones too; and a client that asked for usage has read the same."""
    before = served.idle_reading()
    ids, told = [], {}
    for number in range(6):
        chat = asked(number, max_tokens=20 + number)
        ids.append(chat["extra_headers"]["x-request-id"])
        if number % 3 == 0:
            answer = await client.chat.completions.create(**chat)
            told[ids[-1]] = answer.usage
            continue
        wanted = {"stream_options": {"include_usage": True}} if number % 3 == 1 else {}
        stream = await client.chat.completions.create(**chat, stream=True, **wanted)
        chunks = [chunk async for chunk in stream]
        assert not any("timings" in (chunk.model_extra or {}) for chunk in chunks if chunk.choices)
        assert all(chunk.choices for chunk in chunks) != bool(wanted)
        if wanted:
            told[ids[-1]] = chunks[-1].usage
    text = asked(7)
    await client.completions.create(model=MODEL, prompt="def f(x):", max_tokens=9, extra_headers=text["extra_headers"])
    ids.append(text["extra_headers"]["x-request-id"])
    response = asked(8)
    await client.responses.create(
        model=MODEL, input="Say three words", max_output_tokens=16, extra_headers=response["extra_headers"]
    )
    ids.append(response["extra_headers"]["x-request-id"])
    events = [served.event(one) for one in ids]
    assert {event.status for event in events} == {"ok"}
    assert not any(event.estimated for event in events)
    assert billed(events) == grown(before, served.idle_reading())
    for event in events:
        if (usage := told.get(event.id)) is not None:
            assert usage.prompt_tokens == event.usage.input_tokens
            assert usage.completion_tokens == event.usage.output_tokens
            assert usage.prompt_tokens_details is not None
            assert usage.prompt_tokens_details.cached_tokens == event.usage.input_cached_tokens
    assert any(event.usage.input_cached_tokens for event in events)


async def test_two_answers_in_one_stream_are_both_billed(served: Served, client: openai.AsyncOpenAI) -> None:
    """Each ends with its own usage; the sum is the request's."""
    before = served.idle_reading()
    chat = asked(20, max_tokens=12, n=2)
    stream = await client.chat.completions.create(**chat, stream=True)
    assert {choice.index async for chunk in stream for choice in chunk.choices} == {0, 1}
    event = served.event(chat["extra_headers"]["x-request-id"])
    assert billed([event]) == grown(before, served.idle_reading())
    assert event.usage.output_tokens == 24
    assert not event.estimated


@pytest.mark.parametrize("chunks", [1, 7, 60])
async def test_a_stream_that_is_cut_is_billed_what_was_delivered(
    served: Served, client: openai.AsyncOpenAI, chunks: int
) -> None:
    """At least what the client has read; the server has counted no more than the event says it may have."""
    before = served.idle_reading()
    chat = asked(30 + chunks, max_tokens=1500, extra_body={"ignore_eos": True})
    stream = await client.chat.completions.create(**chat, stream=True)
    read = 0
    async for chunk in stream:
        read += bool(chunk.choices and chunk.choices[0].delta.content)
        if read == chunks:
            break
    await stream.close()
    event = await asyncio.to_thread(served.event, chat["extra_headers"]["x-request-id"])
    counted = grown(before, served.idle_reading())
    print(f"\ncut after {chunks}: billed {billed([event])}, counted {counted}")
    assert event.status == "client_gone"
    assert not event.estimated
    assert (event.usage.input_tokens, event.usage.input_cached_tokens) == (counted["prompt"], counted["cached"])
    assert chunks <= event.usage.output_tokens <= counted["generation"]
    assert counted["generation"] <= event.usage.output_tokens + event.undelivered_output_max


async def test_its_refusals_are_openais(served: Served, client: openai.AsyncOpenAI) -> None:
    """A prompt beyond a slot's context, an endpoint of vLLM's, a field of a wrong kind."""
    before = served.idle_reading()
    with pytest.raises(openai.BadRequestError) as too_long:
        await client.chat.completions.create(**asked(40) | {"messages": [{"role": "user", "content": "a b c " * 2000}]})
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(**asked(41, temperature="hot"))
    authorization = {"authorization": f"Bearer {served.key}"}
    async with httpx.AsyncClient(base_url=served.url, headers=authorization, trust_env=False) as http:
        answer = await http.post("/tokenize", json={"model": MODEL, "prompt": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert served.idle_reading().counters == before.counters


async def test_a_prompt_is_counted_as_the_server_counts_it(served: Served, client: openai.AsyncOpenAI) -> None:
    """Through its template and tokenizer, where a prompt is near the context."""
    chat = asked(50, max_tokens=8) | {"messages": [{"role": "user", "content": "x = y\n" * 330}]}
    raw = await client.chat.completions.with_raw_response.create(**chat)
    used = raw.parse().usage
    assert used is not None
    assert raw.headers["x-mtok-prompt-tokens"] == f"{used.prompt_tokens}; exact"


async def test_the_audit_agrees(served: Served) -> None:
    """All that the server counted since the gateway's first reading is on the ledger, or undelivered."""

    def audited() -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MTOK_REDIS_URL": served.valkey_url}
        command = mtok("audit", "--start", "2h", "--json")
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    await asyncio.sleep(MINUTE_S + READ_S)
    done = await asyncio.to_thread(audited)
    found = msgspec.json.decode(done.stdout)
    spans = [span for verdict in found["replicas"].values() for span in verdict["spans"]]
    for direction in ("input", "output"):
        print(
            direction, {name: sum(span[direction][name] for span in spans) for name in ("engine", "billed", "missing")}
        )
    assert done.returncode == 0, done.stdout
    assert sum(span["output"]["billed"] for span in spans) > 100


async def test_two_answers_in_one_piece_are_counted(served: Served, client: openai.AsyncOpenAI) -> None:
    """The server tells the usage of one: its tokenizer counts the text of both, which may differ by a token from what
    was generated. So this comes after the audit, which would tell."""
    chat = asked(21, max_tokens=12, n=2)
    answer = await client.chat.completions.create(**chat)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    event = served.event(chat["extra_headers"]["x-request-id"])
    assert event.estimated
    assert event.usage.output_tokens >= 20, "the tokens of the text, which may be fewer than were generated"
