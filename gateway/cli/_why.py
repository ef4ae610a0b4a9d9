"""`mtok why`: what decided on a request, and how long everything took."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import msgspec
import typer

from gateway.errors import Refusal
from gateway.policy import Policies

from ._policy_explain import rules_table
from ._store import ask_store
from ._words import FAILED, MISUSED, STORE_ENVIRONMENT, fail, json_text, loaded, moment, utc

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from redis.asyncio import Redis

    from gateway.admission import Rule
    from gateway.routing import Expected
    from gateway.usage import Booked, CameTrue, RequestQuery, Why


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("why", epilog=STORE_ENVIRONMENT)(why_)


def why_(  # noqa: PLR0917 - options have names on the command line
    request: Annotated[str, typer.Argument(help="Its id: x-request-id of the answer.", metavar="REQUEST_ID")],
    tenant: Annotated[str | None, typer.Option(help="Whose request; without it all tenants are searched.")] = None,
    start: Annotated[str | None, typer.Option(help="Look from then on: 24h (ago), Unix seconds or RFC 3339.")] = None,
    end: Annotated[str | None, typer.Option(help="Look until then; written as --start.")] = None,
    policies: Annotated[
        Path | None, typer.Option(help="Show each rule of these that it met, in order.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the whole event.")] = False,
) -> None:
    """Say why a request was served, cut or refused: which rule decided, with its numbers, and what would have passed.

    With --policies it shows every rule in order with what was asked of it; what was left then is kept only of the one
    that refused. An id of the gateway's own tells its time; another is looked for in the last 24 hours unless --start
    says more.

    Exit codes: 0 it was found, 1 it was not, 2 asked wrongly.

    Example: mtok why 019a1b2c3d4e7f8091a2b3c4d5e6f708 --tenant acme
    """
    from gateway.usage import parse_request_query, rules_met, why

    served = None if policies is None else loaded(policies)
    now_s = int(time.time())
    span = {name: moment(text, now_s=now_s) for name, text in (("start", start), ("end", end)) if text is not None}
    query = parse_request_query(urlencode(span).encode(), now_s)
    if isinstance(query, Refusal):
        fail(query.message, MISUSED)
    found = ask_store(lambda redis: _found(redis, tenant, request, query, now_s))
    if isinstance(found, Refusal):
        fail(found.message, FAILED)
    told = why(found.event)
    rules = None if served is None else rules_met(served, found.event)
    if as_json:
        whole = msgspec.to_builtins(told)
        if rules is not None:
            whole["rules"] = msgspec.to_builtins(rules)
        typer.echo(json_text(whole))
        return
    typer.echo(_shown(told))
    if served is not None and rules is not None:
        typer.echo(_shown_rules(served, rules, told))


def _shown_rules(policies: Policies, rules: list[Rule], told: Why) -> str:
    if not rules:
        return f"\nThe policies {policies.version} have no tenant {told.event.tenant}."
    same = "those that decided" if policies.version == told.event.policy else "others than those that decided"
    decided_by = next((rule for rule in rules if rule.passes is False), None)
    return f"\n{rules_table(rules, decided_by)}\n\nRules of policies {policies.version}, {same}."


async def _found(redis: Redis, tenant: str | None, request: str, query: RequestQuery, now_s: int) -> Booked | Refusal:
    from gateway.audit import tenants
    from gateway.usage import find_event

    missing = Refusal(status=404, code="request_not_found", message="There are no tenants here yet.")
    for name in [tenant] if tenant is not None else await tenants(redis):
        found = await find_event(redis, name, request, query, now_s=now_s)
        if not isinstance(found, Refusal):
            return found
        missing = found
    return missing


def _shown(told: Why) -> str:
    return "\n".join(f"{name:<11} {text}".rstrip() for name, text in _lines(told))


def _lines(told: Why) -> Iterator[tuple[str, str]]:
    from gateway.admission import seconds, usd

    event = told.event
    yield "request", f"{event.id} of {event.tenant}, key {event.key}, {event.endpoint}"
    pool = f" in {event.pool}" if event.pool else ""
    yield "model", f"{event.model or '-'}{f' at {event.replica}' if event.replica else ''}{pool}"
    yield "policy", event.policy or "not known: an older gateway wrote the event"
    yield "outcome", event.status + (f", {event.code}" if event.code else "")
    yield "decided", told.decided
    for way in told.would_pass:
        yield "would pass", way
    if event.asked_input_tokens or event.asked_output_tokens:
        named = f"max_tokens {event.asked_output_tokens}" if event.asked_output_tokens else "no max_tokens"
        prompt = event.usage.input_tokens or event.asked_input_tokens
        yield "asked", f"a prompt of {'about ' if event.asked_input_tokens else ''}{prompt} tokens, {named}"
    yield "arrived", f"{utc(event.arrived_ms)}.{event.arrived_ms % 1000:03} UTC"
    if told.admitted_after_ms is not None:
        yield "admitted", f"after {seconds(told.admitted_after_ms)}: every limit had room"
        yield "queued", f"for {seconds(told.queued_ms)}" if told.queued_ms else "not at all"
    for index, expected in enumerate(told.placed):
        yield "rather than" if index else "placed at", _expected(expected)
    if told.came_true is not None:
        yield "came true", _came_true(told.came_true)
    for attempt in event.failed_attempts:
        had = attempt.delivered_output_tokens
        yield "failed at", f"{attempt.replica}: {attempt.code}{f', after {had} tokens' if had else ''}"
    if event.continued:
        yield "went on", f"at {event.replica}, which read {event.replayed_input_tokens} tokens again"
    if told.first_token_after_ms is not None:
        yield "answered", f"after {seconds(told.first_token_after_ms)}"
    yield "ended", f"after {seconds(told.ended_after_ms)}"
    usage = event.usage
    if usage.total_tokens:
        yield "used", f"{usage.input_tokens} input ({usage.input_cached_tokens} cached), {usage.output_tokens} output"
        yield "cost", f"${usd(event.cost_nanousd)}{f' at {event.price_epoch}' if event.price_epoch else ''}"


def _expected(there: Expected) -> str:
    from gateway.admission import seconds

    return (
        f"{there.replica}: {there.cached_tokens} tokens cached, {there.waiting_tokens} waiting before it, "
        f"{there.running} running, first token expected in {seconds(there.ttft_ms)}"
    )


def _came_true(came: CameTrue) -> str:
    from gateway.admission import seconds

    cached = "not told how much was cached" if came.cached_tokens is None else f"{came.cached_tokens} tokens cached"
    return cached if came.ttft_ms is None else f"{cached}, first bytes after {seconds(came.ttft_ms)}"
