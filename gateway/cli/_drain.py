"""`mtok drain`: lets a replica run empty, so that it can be stopped without anybody noticing."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ._words import MISUSED, fail

if TYPE_CHECKING:  # loading it takes a tenth of a second; a help page should not
    import httpx

TIMEOUT_S = 10.0
ASK_INTERVAL_S = 1.0


class _State(msgspec.Struct):
    """A replica that drains, as `/admin/drain` shows it."""

    replica: str
    in_flight: int
    drained: bool


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(drain)


def drain(
    replica: Annotated[
        str, typer.Argument(help="The replica's URL, or host:port; none: show what drains.", show_default=False)
    ] = "",
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Requests may go there again.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="End when nothing runs there any more.")] = False,
    cut_after: Annotated[
        float | None,
        typer.Option(help="Seconds after which what still runs there is cut.", min=0, metavar="SECONDS"),
    ] = None,
    url: Annotated[str, typer.Option(help="A gateway; all others obey too.")] = "http://127.0.0.1:8000",
    admin_key: Annotated[
        str, typer.Option(help="The administrator's key.", envvar="MTOK_ADMIN_KEY", metavar="KEY", show_default=False)
    ] = "",
) -> None:
    """Send nothing new to a replica, let what runs there finish, and say when it has.

    All gateways and workers over the same Redis obey within two seconds. It holds until --undo, until another
    process listens at that address, or for a day. What is cut goes on at another replica where that can be.

    Example: mtok drain http://10.0.0.7:8000 --wait --cut-after 300 && systemctl stop vllm
    """
    if not admin_key:
        fail("give --admin-key or set MTOK_ADMIN_KEY: only the administrator may drain replicas", MISUSED)
    if not replica and (undo or wait or cut_after is not None):
        fail("name the replica", MISUSED)
    if undo and (wait or cut_after is not None):
        fail("--undo goes with neither --wait nor --cut-after", MISUSED)
    import httpx

    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers={"authorization": f"Bearer {admin_key}"}) as http:
        try:
            _drain(http, f"{url.rstrip('/')}/admin/drain", replica, undo=undo, wait=wait, cut_after=cut_after)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            fail(f"{url} does not answer: {error or type(error).__name__}")


def _drain(http: httpx.Client, page: str, replica: str, *, undo: bool, wait: bool, cut_after: float | None) -> None:
    if not replica:
        states = _states(http.get(page))
        for one in states:
            typer.echo(_line(one))
        if not states:
            typer.echo("no replica drains")
        return
    asked: dict[str, str | float] = {"replica": replica}
    if undo:
        _states(http.delete(page, params=asked))
        typer.echo(f"requests may go to {replica} again")
        return
    if cut_after is not None:
        asked["cut_after_s"] = cut_after
    said = ""
    state = _first(_states(http.post(page, params=asked)))
    while True:
        line = f"{replica} drains no longer" if state is None else _line(state)
        if line != said:
            typer.echo(line)
        said = line
        if state is None:
            raise typer.Exit(1)
        if state.drained or not wait:
            return
        time.sleep(ASK_INTERVAL_S)
        state = _first(_states(http.get(page, params={"replica": replica})))


def _first(states: list[_State]) -> _State | None:
    return states[0] if states else None


def _line(state: _State) -> str:
    if state.drained:
        return f"{state.replica} is empty: it can be stopped"
    return f"{state.replica} drains: {state.in_flight} requests are there yet"


def _states(answer: httpx.Response) -> list[_State]:
    if answer.status_code != 200:
        try:
            said = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = f"/admin/drain answers {answer.status_code}"
        fail(said)
    return msgspec.json.decode(answer.content, type=list[_State])
