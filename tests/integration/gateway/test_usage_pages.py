"""The usage pages over HTTP: who sees what, and what a client may keep."""

from __future__ import annotations

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ADMIN_KEY, ASKED, Served, StoppedClock, key_of


async def served_once(engine: Engine, start: Start, **start_with: object) -> Served:
    """A gateway that has answered one request."""
    engine.script = recording("chat").script()
    served = await start(engine, clock=StoppedClock(), **start_with)
    assert (await served.post(ASKED | {"user": "ann"})).status == 200
    return served


async def test_an_answer_that_still_holds_is_not_sent_again(engine: Engine, start: Start) -> None:
    """The tag is the content's: 304 while nothing has changed, another tag after the next request."""
    served = await served_once(engine, start)
    first = await served.get("/v1/usage?group_by=user")
    tag = first.headers["etag"]
    assert (first.status, first.headers["cache-control"]) == (200, "private, no-cache")
    assert first.headers["vary"] == "authorization, x-api-key"
    for known in (tag, f'"other", W/{tag}', "*"):
        again = await served.get("/v1/usage?group_by=user", if_none_match=known)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (await served.get("/v1/usage?group_by=user", if_none_match='"other"')).body == first.body
    await served.post()
    changed = await served.get("/v1/usage?group_by=user", if_none_match=tag)
    assert (changed.status, changed.headers["etag"] != tag) == (200, True)


async def test_the_past_may_be_kept_a_while(engine: Engine, start: Start) -> None:
    """A time that ended an hour ago is asked for again after minutes, not at once."""
    served = await served_once(engine, start)
    now_s = served.gateway.clock.now_ms() // 1000
    for end_s, kept in ((now_s - 3601, "private, max-age=300"), (now_s - 3600, "private, no-cache")):
        assert (await served.get(f"/v1/usage?end={end_s}")).headers["cache-control"] == kept


async def test_tenants_see_no_addresses(engine: Engine, start: Start) -> None:
    """A tenant tells replicas apart by names that stand for them; the administrator sees where they are."""
    served = await served_once(engine, start)
    path = "/v1/usage?bucket=1d&group_by=replica,user"
    mine = (await served.get(path)).json["data"][-1]["results"][0]
    theirs = (await served.get(f"{path}&tenant=acme", key=ADMIN_KEY)).json["data"][-1]["results"][0]
    assert mine["replica"].startswith("replica-")
    assert engine.name not in mine["replica"]
    assert (theirs["replica"], theirs["user"]) == (engine.name, "ann")
    assert mine | {"replica": engine.name} == theirs


async def test_kept_as_long_as_the_policy_says(engine: Engine, start: Start) -> None:
    """What is kept no longer is refused, not shown as nothing."""
    served = await start(engine, ledger={"keep_minutes_days": 2})
    start_s = served.gateway.clock.now_ms() // 1000 - 3 * 86_400
    refused = await served.get(f"/v1/usage?bucket=1m&start={start_s}")
    assert (refused.status, refused.error["param"]) == (400, "bucket")
    assert "kept for 2 days" in refused.error["message"]
    assert (await served.get(f"/v1/usage?start={start_s}", key=key_of("rival"))).status == 200
