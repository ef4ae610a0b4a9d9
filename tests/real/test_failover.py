"""Streams of real vLLM that are cut in the middle go on at a second real vLLM: the same text, one bill."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis

from gateway.metering import UsageEvent
from gateway.store import TenantKeys, embedded
from gateway.tenants import hash_key, new_key
from loadtest.processes import free_port, mtok, running
from tests.real.conftest import MODEL, Engine

TOKENS = 48
_POLICIES = """\
models:
  tiny: {{replicas: [{{url: "{first}"}}, {{url: "{second}"}}], price: {{output_usd_per_mtok: 0.35}}}}
tenants:
  acme: {{keys: [{{id: acme, sha256: "{sha256}"}}]}}
"""


class Shears:
    """Cut one wire, once: the first on which an answer has so many events."""

    after: int | None = None

    def cuts(self, events: int) -> bool:
        """Whether an answer with so many events breaks now."""
        if self.after is None or events < self.after:
            return False
        self.after = None
        return True


class Wire:
    """The way to an engine; a cut breaks a connection, as if the engine's machine were gone."""

    def __init__(self, engine: Engine, shears: Shears) -> None:
        self._shears = shears
        self._target = httpx.URL(engine.url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._target.host, self._target.port))
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        events = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                events = data.count(b"\n\n") + (0 if data.startswith(b"HTTP/1.1 ") else events)
                if is_answer and self._shears.cuts(events):
                    break
        for end in (source, target):  # the other thread still reads one of them: closing it alone would tell nobody
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass
class Cut:
    """A gateway whose wires to its replicas can be cut."""

    url: str
    key: str
    shears: Shears
    valkey: redis.Redis

    def stream(self, request_id: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of a chat that ends as it should."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "def read(self, path):"}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        headers = {"authorization": f"Bearer {self.key}", "x-request-id": request_id}
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)
        assert answer.status_code == httpx.codes.OK, answer.text
        *events, done, rest = answer.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", ""), answer.text[-500:]
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def event(self, request_id: str) -> UsageEvent:
        """Its usage event, which comes shortly after its end."""
        deadline_s = time.monotonic() + 3
        while True:
            entries = self.valkey.xrange(TenantKeys("acme").events)
            events = [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in entries]
            if found := [event for event in events if event.id == request_id]:
                assert len(found) == 1
                return found[0]
            assert time.monotonic() < deadline_s, f"no usage event for {request_id}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def cut(engines: tuple[Engine, Engine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    with ExitStack() as stack:
        shears = Shears()
        wires = [stack.enter_context(closing(Wire(engine, shears))) for engine in engines]
        first, second = (f"http://127.0.0.1:{wire.port}" for wire in wires)
        directory: Path = tmp_path_factory.mktemp("failover")
        policies, data, key = directory / "policies", directory / "data", new_key("acme")
        policies.mkdir()
        (policies / "p.yaml").write_text(_POLICIES.format(first=first, second=second, sha256=hash_key(key)))
        url = f"http://127.0.0.1:{free_port()}"
        port = url.rsplit(":", 1)[1]
        stack.enter_context(
            running(
                mtok("serve", "--policies", str(policies), "--port", port),
                log=directory / "gateway.log",
                ready_url=f"{url}/readyz",
                environment={"MTOK_DATA_DIR": str(data), "MTOK_REDIS_URL": "", "MTOK_LOG": "info"},
            )
        )
        valkey_url = stack.enter_context(embedded(data))
        valkey = stack.enter_context(redis.Redis.from_url(valkey_url))
        yield Cut(url, key, shears, valkey)


def text(events: list[dict[str, Any]]) -> str:
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])


def test_by_token_ids_the_text_is_the_unbroken_streams(cut: Cut) -> None:
    """Cut after one of its first, middle and last events: vLLM on the second replica computes what the first one would
    have, and the client reads one stream."""
    whole = cut.stream("whole")
    for after in (2, 3, 9, 17, 30, 47):
        for number in range(3):  # the breaker counts these against the cuts
            assert text(cut.stream(f"whole-{after}-{number}")) == text(whole)
        cut.shears.after = after
        events = cut.stream(f"cut-{after}")
        assert len({(event["id"], event["created"]) for event in events}) == 1
        assert text(events) == text(whole), after
        assert events[-1]["usage"]["completion_tokens"] == TOKENS
        assert events[-1]["usage"]["prompt_tokens"] == whole[-1]["usage"]["prompt_tokens"]
        told = cut.event(f"cut-{after}")
        assert (told.status, told.usage.output_tokens) == ("ok", TOKENS)
        assert told.continued >= 1
        assert sum(attempt.delivered_output_tokens for attempt in told.failed_attempts) < TOKENS


def test_by_text_the_stream_is_whole(cut: Cut) -> None:
    """With stop strings: what was said stays, as many tokens as were asked for are billed at most, and it ends."""
    whole = cut.stream("text-whole", stop=["never said"])
    cut.shears.after = 12
    events = cut.stream("text-cut", stop=["never said"])
    told = cut.event("text-cut")
    assert told.continued >= 1
    assert told.status == "ok"
    assert text(events)[:20] == text(whole)[:20]
    assert told.usage.output_tokens == events[-1]["usage"]["completion_tokens"] <= TOKENS
    assert events[-2]["choices"][0]["finish_reason"] == "length"
