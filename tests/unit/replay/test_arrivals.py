"""Arrivals from usage events and from files: order, sizes nobody counted, what is no request."""

from __future__ import annotations

import pytest

from gateway.metering import UsageEvent
from gateway.replay import Arrival, arrival_of, prepared, read_lines
from gateway.wire import Usage

from .days import T0_MS, arrival


def test_an_event_is_an_arrival_and_an_exports_line_is_the_same() -> None:
    """When, whose, for what and how large; what else a line holds is not looked at."""
    event = UsageEvent(
        id="r1",
        tenant="acme",
        key="ci",
        model="llama",
        endpoint="/v1/chat/completions",
        status="ok",
        usage=Usage(input_tokens=100, input_cached_tokens=60, output_tokens=7),
        arrived_ms=T0_MS,
        ended_ms=T0_MS + 900,
    )
    line = (
        b'{"id":"r1","tenant":"acme","key":"ci","model":"llama","endpoint":"/v1/chat/completions","status":"ok",'
        b'"input_tokens":100,"input_cached_tokens":60,"output_tokens":7,"arrived_ms":%d,"cost_usd":"0.1"}\n' % T0_MS
    )
    expected = Arrival(
        arrived_ms=T0_MS,
        tenant="acme",
        key="ci",
        model="llama",
        endpoint="/v1/chat/completions",
        input_tokens=100,
        input_cached_tokens=60,
        output_tokens=7,
    )
    assert arrival_of(event) == expected
    assert list(read_lines([line, b"\n"])) == [expected]


def test_a_flood_of_refusals_is_as_many_arrivals_spread_over_its_time() -> None:
    found = [
        arrival(0, "acme", input_tokens=900, output_tokens=90),
        Arrival(arrived_ms=T0_MS + 10, ended_ms=T0_MS + 210, count=4, tenant="acme", model="llama", status="refused"),
    ]
    ready = prepared(found)
    assert [one.arrived_ms - T0_MS for one in ready.arrivals] == [0, 10, 60, 110, 160]
    assert {one.input_tokens for one in ready.arrivals} == {900}
    assert ready.imputed == 4


def test_a_line_that_is_no_arrival_is_named() -> None:
    with pytest.raises(ValueError, match=r"line 2 is no arrival: .*arrived_ms"):
        list(read_lines([b'{"arrived_ms":1,"tenant":"a","model":"m"}', b'{"tenant":"a","model":"m"}']))


def test_the_refused_have_the_size_of_another_request_of_their_tenant() -> None:
    """Nobody counts a prompt that a limit refuses: it gets the sizes of one that was served, of the same tenant for the
    same model if there is one. In the order of arrival, corrections left out."""
    found = [
        arrival(5, "acme", input_tokens=900, output_tokens=90),
        arrival(3, "acme", input_tokens=0, output_tokens=0, status="refused"),
        arrival(4, "acme", input_tokens=0, output_tokens=0, status="refused", model="other"),
        arrival(1, "rival", input_tokens=10, output_tokens=1, input_cached_tokens=4),
        arrival(2, "newcomer", input_tokens=0, output_tokens=0, status="refused", model="llama"),
        arrival(6, "acme", input_tokens=-900, status="correction"),
        arrival(7, "acme", input_tokens=0, status="refused", model=""),
    ]
    ready = prepared(found, seed=3)
    sizes = [(one.arrived_ms - T0_MS, one.tenant, one.input_tokens, one.output_tokens) for one in ready.arrivals]
    assert [sizes[number] for number in (0, 2, 3, 4)] == [
        (1, "rival", 10, 1),
        (3, "acme", 900, 90),
        (4, "acme", 900, 90),
        (5, "acme", 900, 90),
    ]
    assert sizes[1][2:] in {(10, 1), (900, 90)}
    assert (ready.imputed, ready.left_out) == (3, 1)


def test_a_refused_prompt_keeps_its_estimate_and_its_clients_bound() -> None:
    """What was known of it stays: its prompt, with the cached part of the other's, and an answer within its bound."""
    found = [
        arrival(0, input_tokens=1000, input_cached_tokens=500, output_tokens=90),
        arrival(1, input_tokens=0, asked_input_tokens=40, asked_output_tokens=16, status="refused"),
    ]
    refused = prepared(found).arrivals[1]
    assert (refused.input_tokens, refused.input_cached_tokens, refused.output_tokens) == (40, 20, 16)


def test_where_nothing_was_served_nothing_can_be_replayed() -> None:
    """No size is made up."""
    ready = prepared([arrival(0, input_tokens=0, output_tokens=0, status="refused")])
    assert (ready.arrivals, ready.left_out) == ([], 1)
