"""Single events over HTTP: listed, found, and followed live."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway import usage_pages
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ADMIN_KEY, ASKED, Served, eventually, key_of
from tests.integration.gateway.wire_client import Connection

STREAM = "/v1/usage/stream"


async def answering(engine: Engine, start: Start) -> Served:
    engine.script = recording("chat").script()
    return await start(engine)


async def follow(client: Connection, key: str, path: str = STREAM, **headers: str) -> dict[str, str]:
    """Opens a live stream, up to its first comment."""
    lines = [f"GET {path} HTTP/1.1", "host: g", f"authorization: Bearer {key}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    client.send("\r\n".join(lines).encode() + b"\r\n\r\n")
    status, head = await client.head()
    assert status == 200
    assert await client.chunk() == b": live\n\n"
    return head


async def events(client: Connection, count: int) -> list[tuple[str, dict[str, Any]]]:
    """The next events: id and data."""
    seen: list[tuple[str, dict[str, Any]]] = []
    while len(seen) < count:
        for block in (await client.chunk()).decode().split("\n\n"):
            if block.startswith("id: "):
                entry, data = block.split("\n")
                seen.append((entry.removeprefix("id: "), json.loads(data.removeprefix("data: "))))
    return seen


async def test_ones_own_requests(engine: Engine, start: Start) -> None:
    """Listed and found by the id that the answer carried; nobody else's, but for the administrator."""
    served = await answering(engine, start)
    request_id = (await served.post(ASKED | {"user": "ann"})).headers["x-request-id"]
    listed = await served.get("/v1/usage/requests?user=ann")
    assert (listed.status, listed.json["object"], listed.json["tenant"]) == (200, "list", "acme")
    [shown] = listed.json["data"]
    assert (shown["id"], shown["output_tokens"], shown["cost_usd"]) == (request_id, 8, "0.0000125")
    assert shown["replica"].startswith("replica-")
    one = await served.get(f"/v1/usage/requests/{request_id}")
    assert one.json == shown | {"corrections": []}
    assert (await served.get(f"/v1/usage/requests/{request_id}", if_none_match=one.headers["etag"])).status == 304
    rivals = await served.get(f"/v1/usage/requests/{request_id}", key=key_of("rival"))
    assert (rivals.status, rivals.error["code"]) == (404, "request_not_found")
    assert (await served.get("/v1/usage/requests", key=key_of("rival"))).json["data"] == []
    assert (await served.get("/v1/usage/requests?tenant=acme", key=key_of("rival"))).status == 403
    admins = await served.get("/v1/usage/requests?tenant=acme", key=ADMIN_KEY)
    assert [one["replica"] for one in admins.json["data"]] == [engine.name]
    assert (await served.get("/v1/usage/requests?limit=0")).error["param"] == "limit"
    assert (await served.get("/v1/usage/requests")).headers["cache-control"] == "private, no-cache"


async def test_events_arrive_as_they_are_booked(engine: Engine, start: Start) -> None:
    """Those after the stream began, the tenant's own, each with the entry it can be resumed from."""
    served = await answering(engine, start)
    await served.post(x_request_id="before")
    await served.booked()
    async with served.connect() as client:
        head = await follow(client, served.key)
        assert head["content-type"].startswith("text/event-stream")
        assert head["cache-control"] == "no-store"
        await served.post(ASKED | {"model": "other"}, key=key_of("rival"), x_request_id="rivals")
        await served.post(x_request_id="one")
        await served.post(x_request_id="two")
        seen = await events(client, 2)
    assert [data["id"] for _, data in seen] == ["one", "two"]
    assert [data["entry"] for _, data in seen] == [entry for entry, _ in seen]


async def test_a_client_that_comes_back_has_missed_nothing(engine: Engine, start: Start) -> None:
    """`Last-Event-ID` is where it goes on."""
    served = await answering(engine, start)
    async with served.connect() as client:
        await follow(client, served.key)
        await served.post(x_request_id="one")
        [(last, _)] = await events(client, 1)
    for name in ("two", "three"):
        await served.post(x_request_id=name)
    async with served.connect() as client:
        await follow(client, served.key, last_event_id=last)
        assert [data["id"] for _, data in await events(client, 2)] == ["two", "three"]
    async with served.connect() as client:
        await follow(client, ADMIN_KEY, f"{STREAM}?tenant=acme", last_event_id="0-0")
        seen = await events(client, 3)
        assert [data["replica"] for _, data in seen] == [engine.name] * 3


async def test_a_silent_stream_says_that_it_lives(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a comment, which clients skip; and it ends when its key is revoked."""
    monkeypatch.setattr(usage_pages, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(usage_pages, "LOOK_MS", 10)
    served = await answering(engine, start)
    async with served.connect() as client:
        await follow(client, served.key)
        assert await client.chunk() == b": heartbeat\n\n"
        served.lifecycle.keys.lookup = no_key
        while await client.chunk():
            pass


async def no_key(key: bytes) -> None:
    return None


async def test_streams_are_counted_and_let_go(engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is refused with 429; a client that leaves frees its place."""
    monkeypatch.setattr(usage_pages, "TENANT_STREAMS_MAX", 1)
    monkeypatch.setattr(usage_pages, "LOOK_MS", 10)
    served = await answering(engine, start)
    async with served.connect() as client:
        await follow(client, served.key)
        refused = await served.get(STREAM)
        assert (refused.status, refused.error["code"]) == (429, "too_many_streams")
        client.leave()

    async def free() -> bool:
        async with served.connect() as client:
            client.send(f"HEAD {STREAM} HTTP/1.1\r\nauthorization: Bearer {served.key}\r\n\r\n".encode())
            return (await client.head())[0] == 200

    await eventually(free)


async def test_a_gateway_that_stops_ends_its_streams(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, so that clients come back to another gateway."""
    monkeypatch.setattr(usage_pages, "LOOK_MS", 10)
    served = await answering(engine, start)
    async with served.connect() as client:
        await follow(client, served.key)
        served.gateway.drain()
        async with asyncio.timeout(5):
            assert await client.chunk() == b""


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [(STREAM, "wrong", 401), (f"{STREAM}?tenant=rival", None, 403), (f"{STREAM}?since=1", None, 400)],
)
async def test_refused_before_it_begins(engine: Engine, start: Start, path: str, key: str | None, status: int) -> None:
    """In OpenAI's shape, like every page."""
    served = await start(engine)
    answer = await served.get(path, key=key)
    assert answer.status == status
    assert answer.error["message"]
    posted = await served.say(f"POST {STREAM} HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    assert (posted.status, posted.headers["allow"]) == (405, "GET")
