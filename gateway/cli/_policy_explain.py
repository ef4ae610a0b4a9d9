"""`mtok policy explain`: what would happen to a request, rule by rule."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gateway.errors import Refusal
from gateway.policy import Policies

from ._words import FAILED, MISUSED, fail, json_text, loaded, moment, settings, table, utc

if TYPE_CHECKING:  # the room imports redis; a help page should not
    from gateway.admission import Explanation, Left, Question, Rule

_ENVIRONMENT = (
    "Environment: MTOK_REDIS_URL says which Redis knows what is left; it is only read. Unset, every limit is taken as"
    " whole."
)


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=_ENVIRONMENT)(explain)


def explain(  # noqa: PLR0917 - options have names on the command line
    policies: Annotated[Path, typer.Option(help="Directory of policy documents.", metavar="DIR")],
    tenant: Annotated[str, typer.Option(help="Who asks.")],
    model: Annotated[str, typer.Option(help="For which model, by name or alias.")],
    prompt_tokens: Annotated[int, typer.Option(help="How long the prompt is.", min=1, max=2**24)],
    max_tokens: Annotated[
        int | None, typer.Option(help="The longest answer the client asks for; without it none is named.", min=1)
    ] = None,
    key: Annotated[str, typer.Option(help="Public id of the key, for limits of its own.", metavar="ID")] = "",
    at: Annotated[
        str, typer.Option(help="When: now, 1h (ago), Unix seconds or RFC 3339; also to come.", metavar="TIME")
    ] = "now",
    redis_url: Annotated[
        str | None, typer.Option(help="Where to read what is left, instead of MTOK_REDIS_URL.", metavar="URL")
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(help="The engines' context, where the policies do not say it.", min=1)
    ] = None,
    bytes_per_token: Annotated[int, typer.Option(help="Of the prompt; 4 is English.", min=1, max=768)] = 4,
    stream: Annotated[
        bool, typer.Option("--stream", help="The answer is streamed: that decides with reserve: sliced.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every number.")] = False,
) -> None:
    """Say what would happen to a request: each rule in order with its numbers, what decides, what would pass.

    It is a chat of one prompt and one answer. How long it would wait for a replica is not said: that depends on what
    else is on its way.

    Exit codes: 0 it would be served, 1 refused, 2 that could not be told.

    Example: mtok policy explain --policies . --tenant acme --model m --prompt-tokens 9
    """
    from gateway.admission import Question
    from gateway.admission import explain as explained
    from gateway.usage import parse_time

    served = loaded(policies)
    if tenant not in served.tenants:
        fail(f"no tenant is named {tenant[:100]!r}; there are {', '.join(served.tenants) or 'none'}", MISUSED)
    at_s = parse_time("--at", moment(at, now_s=int(time.time())))
    if isinstance(at_s, Refusal):
        fail(at_s.message, MISUSED)
    question = Question(
        tenant=tenant,
        model=model,
        prompt_tokens=prompt_tokens,
        now_ms=at_s * 1000,
        max_tokens=max_tokens,
        key=key,
        context_tokens=context_tokens,
        bytes_per_token=bytes_per_token,
        stream=stream,
    )
    url = redis_url or settings().redis_url
    found = explained(served, question, _left(served, question, url))
    if as_json:
        told = {"object": "policy.explanation", "at_s": at_s, "limits": "left" if url else "whole"}
        told |= msgspec.to_builtins(found)
        typer.echo(json_text(told))
    else:
        typer.echo(_shown(found, question, is_read=bool(url)))
    if not found.served:
        raise typer.Exit(FAILED)


def _left(policies: Policies, question: Question, url: str | None) -> list[Left]:
    """How the limits stand, in the Redis at `url`."""
    from gateway.store import StoreUnavailable, client
    from gateway.usage import read_left, whole_left

    tenant, model = policies.tenants[question.tenant], policies.model_named(question.model)
    if model is None:
        return []
    scopes = policies.scopes_of(tenant, question.key, model.name).others
    if url is None:
        return whole_left(tenant.name, tenant.limits, question.now_ms, scopes=scopes)

    async def read(address: str) -> list[Left]:
        async with client(address) as redis:
            return await read_left(redis, tenant.name, tenant.limits, question.now_ms, scopes=scopes)

    try:
        return asyncio.run(read(url))
    except StoreUnavailable:
        fail("Redis does not answer; is its address right?", MISUSED)
    except ValueError as error:
        fail(f"--redis-url: {error}", MISUSED)


def _shown(found: Explanation, question: Question, *, is_read: bool) -> str:
    lines = [rules_table(found.rules, found.decided_by), ""]
    as_read = "as Redis has them" if is_read else "as if nobody had used them: no Redis was named"
    lines.append(f"At {utc(question.now_ms)} UTC, policies {found.policy}, limits {as_read}.")
    if found.served:
        lines.append("SERVED")
    else:
        lines += [f"REFUSED: {found.code}. {found.message}", *(f"Would pass: {way}" for way in found.would_pass)]
    return "\n".join(lines)


def rules_table(rules: Sequence[Rule], decided_by: Rule | None) -> str:
    """Rules with their numbers, one a line."""
    from gateway.admission import amount

    def number(rule: Rule, value: int | None) -> str:
        return "" if value is None else amount(rule.dimension, value)

    rows = [
        (
            rule.step,
            rule.dimension,
            rule.scope or "the tenant",
            *(number(rule, value) for value in (rule.limit, rule.remaining, rule.asked)),
            _verdict(rule, is_decisive=rule is decided_by),
        )
        for rule in rules
    ]
    return table(("STEP", "RULE", "OF", "LIMIT", "LEFT", "ASKED", ""), rows, right=(3, 4, 5))


def _verdict(rule: Rule, *, is_decisive: bool) -> str:
    from gateway.admission import amount, seconds

    said = {None: "", True: "passes", False: "REFUSES" if is_decisive else "refuses"}[rule.passes]
    parts = [said, rule.text]
    if rule.reserved and rule.remaining is not None:
        parts.append(f"{amount(rule.dimension, rule.reserved)} held")
    if rule.retry_after_ms is not None:
        parts.append(f"passes in {seconds(rule.retry_after_ms)}")
    if rule.resets_at_s is not None:
        parts.append(f"begins anew {utc(rule.resets_at_s * 1000)} UTC")
    return ", ".join(part for part in parts if part)
