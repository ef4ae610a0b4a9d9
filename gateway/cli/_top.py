"""`mtok top`: what the gateways do now, in the terminal."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gateway.overview import Frame, State, frame, merged

from ._screen import draw
from ._words import MISUSED, fail

if TYPE_CHECKING:  # loading it takes a tenth of a second; a help page should not
    import httpx

TIMEOUT_S = 5.0
FORBIDDEN = (401, 403)

_ALTERNATE, _BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_LINE, _END_SCREEN = "\x1b[H", "\x1b[K\n", "\x1b[J"


class _NoAnswer(Exception):
    """A gateway did not answer; the message says which and why."""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(top)


def top(
    url: Annotated[
        list[str] | None, typer.Option(help="A gateway; give it again for each, they are added up.", metavar="URL")
    ] = None,
    admin_key: Annotated[
        str, typer.Option(help="The administrator's key.", envvar="MTOK_ADMIN_KEY", metavar="KEY", show_default=False)
    ] = "",
    interval: Annotated[float, typer.Option(help="Seconds between two pictures.", min=0.05)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one picture, of one interval, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each picture as one line of JSON.")] = False,
) -> None:
    """Watch tenants, limits, queues and replicas live, over all workers; Ctrl-C ends it.

    Rates are of the last interval. REFUSED/S says by which limit, or by which code;
    AUDITED/S, by which limit requests would have been refused that only is audited. LEFT OF LIMITS shows those with the
    least left; up to 100 tenants. Of a replica N, P and K are running sequences, prompt tokens being read and resident
    tokens, each with the limit that its knee allows now; without latency targets there are none.

    Example: mtok top --url http://10.0.0.5:8000 --interval 5
    """
    if not admin_key:
        fail("give --admin-key or set MTOK_ADMIN_KEY: what tenants do is only the administrator's to see", MISUSED)
    urls = [one.rstrip("/") for one in url or ["http://127.0.0.1:8000"]]
    import httpx

    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers={"authorization": f"Bearer {admin_key}"}) as http:
        try:
            before = _look(http, urls)
            if once or as_json or not sys.stdout.isatty():
                _print(http, urls, before, interval, once=once, as_json=as_json)
            else:
                _show(http, urls, before, interval)
        except _NoAnswer as error:
            fail(str(error))
        except KeyboardInterrupt:
            return


def _print(http: httpx.Client, urls: list[str], before: State, interval: float, *, once: bool, as_json: bool) -> None:
    while True:
        time.sleep(interval)
        now = _look(http, urls)
        picture = frame(before, now)
        typer.echo(msgspec.json.encode(picture) if as_json else "\n".join(draw(picture, ", ".join(urls))))
        if once:
            return
        before = now


def _show(http: httpx.Client, urls: list[str], before: State, interval: float) -> None:
    """Redraws the terminal. A gateway that is away for a while leaves the last picture there, and a line above it."""
    where = ", ".join(urls)
    picture: Frame = frame(before, before)
    with _screen():
        while True:
            size = shutil.get_terminal_size()
            lines = draw(picture, where, width=size.columns, height=size.lines - 1)
            sys.stdout.write(_HOME + "".join(line + _END_LINE for line in lines) + _END_SCREEN)
            sys.stdout.flush()
            time.sleep(interval)
            try:
                now = _look(http, urls)
            except _NoAnswer as error:
                picture.warnings = [str(error)]
                continue
            picture, before = frame(before, now), now


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, so that what was there before comes back."""
    sys.stdout.write(_ALTERNATE)
    try:
        yield
    finally:
        sys.stdout.write(_BACK)
        sys.stdout.flush()


def _look(http: httpx.Client, urls: list[str]) -> State:
    return merged([_state(http, url) for url in urls])


def _state(http: httpx.Client, url: str) -> State:
    import httpx

    try:
        answer = http.get(f"{url}/admin/state")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _NoAnswer(f"{url} does not answer: {error or type(error).__name__}") from error
    if answer.status_code in FORBIDDEN:
        raise _NoAnswer(f"{url} does not take this key; it must be the MTOK_ADMIN_KEY that the gateway runs with")
    try:
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=State)
    except (httpx.HTTPStatusError, msgspec.DecodeError) as error:
        raise _NoAnswer(f"{url} is no gateway that shows its state: {answer.status_code} on /admin/state") from error
