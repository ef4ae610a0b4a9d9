"""What a client is told of its price, and that it is the one it pays."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, recording
from tests.integration.gateway.serving import ASKED, MovedClock, Served

LIVE: dict[str, Any] = {
    "gpu": {"usd_per_hour": 3.6},
    "price": {"mode": "live", "output_usd_per_mtok": 1, "input_ratio": 0.5, "cached_ratio": 0.1, "smooth": "epoch"},
}


def epoch_of(served: Served) -> str:
    price = served.lifecycle.tariffs.model("tiny")
    return str(price.epoch)


async def test_every_answer_says_at_which_price_it_was_admitted(start: Start, engine: Engine) -> None:
    """A policy's price has the policies' name; the event and the bill have the same."""
    engine.script = recording("chat").script()
    served = await start(engine)
    answer = await served.post()
    epoch = served.gateway._policies.price_epoch
    assert answer.headers["x-mtok-price-epoch"] == epoch
    assert (await served.event())["price_epoch"] == epoch
    assert "x-mtok-cost-usd" not in answer.headers


async def test_an_answer_says_what_it_cost_where_that_was_asked_for(start: Start, engine: Engine) -> None:
    """The header has what the ledger has, to the nano-dollar."""
    engine.script = recording("chat").script()
    served = await start(engine)
    answer = await served.post(x_mtok_cost_usd="1")
    event = await served.event()
    assert Decimal(answer.headers["x-mtok-cost-usd"]) * 10**9 == event["cost_nanousd"] > 0


async def test_a_stream_says_it_in_its_last_event(start: Start, engine: Engine) -> None:
    """Before [DONE], without choices; a client that did not ask has nothing of it."""
    engine.script = recording("stream").script()
    served = await start(engine)
    body = {**ASKED, "stream": True}
    asked = (await served.post(body, x_mtok_cost_usd="1")).body
    plain = (await served.post(body)).body
    event = (await served.events(at_least=2))[0]
    cost = Decimal(event["cost_nanousd"]) / 10**9
    told = b'data: {"object":"mtok.cost","choices":[],"cost_usd":"%s","price_epoch":"%s"}\n\ndata: [DONE]\n\n'
    assert asked.endswith(told.replace(b"%s", f"{cost:.9f}".encode(), 1).replace(b"%s", event["price_epoch"].encode()))
    assert b"mtok.cost" not in plain


async def test_a_live_price_has_the_epochs_name_from_the_first_request_on(start: Start, engine: Engine) -> None:
    """The gateway has made an epoch before it serves; the policy's price is where it starts."""
    engine.script = recording("chat").script()
    served = await start(engine, clock=MovedClock(), **LIVE)
    answer = await served.post()
    assert answer.headers["x-mtok-price-epoch"] == epoch_of(served)
    assert epoch_of(served).endswith("Z")
    assert (await served.event())["price_epoch"] == epoch_of(served)
