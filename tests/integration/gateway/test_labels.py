"""What a request says of itself, on its way into the ledger."""

from __future__ import annotations

import uuid

import pytest

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ASKED

TAGS = {"tags": {"names": ["team", "app"], "header": "x-mtok-tags"}}


async def test_user_and_tags_are_on_the_event(engine: Engine, start: Start) -> None:
    """The tags the policy names, from metadata or header; the engine still gets the body as it was."""
    engine.script = recording("chat").script()
    served = await start(engine, ledger=TAGS)
    body = ASKED | {"user": "ann", "metadata": {"team": "search", "cost_center": "7"}}
    assert (await served.post(body, x_mtok_tags="app=chat%2Fbot")).status == 200
    event = await served.event()
    assert (event["user"], event["tags"]) == ("ann", {"app": "chat/bot", "team": "search"})
    assert engine.only.json["metadata"] == body["metadata"]
    assert "x-mtok-tags" not in engine.only.headers


async def test_refused_requests_are_tagged_too(engine: Engine, start: Start) -> None:
    """Whose requests were refused can be asked as well."""
    served = await start(engine, ledger=TAGS)
    refused = await served.post(ASKED | {"model": "nope", "safety_identifier": "ann"}, x_mtok_tags="team=search")
    assert refused.status == 404
    event = await served.event()
    assert (event["status"], event["user"], event["tags"]) == ("refused", "ann", {"team": "search"})


@pytest.mark.parametrize("odd", [{"user": 7}, {"user": ["a"]}, {"metadata": "x"}, {"metadata": {"team": {"a": 1}}}])
async def test_odd_values_are_the_engines_to_refuse(engine: Engine, start: Start, odd: dict[str, object]) -> None:
    """The gateway takes no part in what it needs only for splitting usage."""
    engine.script = recording("chat").script()
    served = await start(engine, ledger=TAGS)
    assert (await served.post(ASKED | odd)).status == 200
    event = await served.event()
    assert ("user" in event, "tags" in event) == (False, False)


async def test_ids_are_in_the_order_of_time(engine: Engine, start: Start) -> None:
    """A request without an id of its own gets a UUID of version 7 that tells when it arrived."""
    engine.script = recording("chat").script()
    served = await start(engine)
    ids = [(await served.post()).headers["x-request-id"] for _ in range(3)]
    events = await served.events(at_least=3)
    assert [event["id"] for event in events] == ids
    for event in events:
        identity = uuid.UUID(event["id"])
        assert (identity.version, identity.variant) == (7, uuid.RFC_4122)
        assert identity.int >> 80 == event["arrived_ms"]
