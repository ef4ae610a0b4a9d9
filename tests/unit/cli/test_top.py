"""`mtok top` in a terminal: what it writes, and what it does while a gateway is away."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import msgspec
import pytest

from gateway.cli import _top
from gateway.overview import State, TenantState
from tests.unit.cli.test_commands import mtok

URL = "http://g:8000"


class Gateway:
    """Answers `/admin/state`, a second and ten requests later each time; `away` times it does not."""

    def __init__(self, *, away: set[int]) -> None:
        self.asked = 0
        self.away = away

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.asked in self.away:
            raise httpx.ConnectError("Connection refused")
        tenants = {"acme": TenantState(requests=10 * self.asked)}
        state = State(at_ms=1000 * self.asked, policies_sha256="f" * 64, tenants=tenants)
        return httpx.Response(200, content=msgspec.json.encode(state))


@pytest.fixture
def three_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits; the fourth time somebody presses Ctrl-C."""
    waits: Iterator[int] = iter(range(3))

    def wait(_: float) -> None:
        if next(waits, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(_top.time, "sleep", wait)


def screens(capsys: pytest.CaptureFixture[str], gateway: Gateway) -> tuple[str, list[str]]:
    """Everything that was written, and each picture of it."""
    with httpx.Client(transport=httpx.MockTransport(gateway)) as http, pytest.raises(KeyboardInterrupt):
        _top._show(http, [URL], _top._look(http, [URL]), 2.0)
    written = capsys.readouterr().out
    return written, written.split(_top._HOME)[1:]


@pytest.mark.usefixtures("three_waits")
def test_the_terminal_is_redrawn_and_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    written, pictures = screens(capsys, Gateway(away=set()))
    assert written.startswith("\x1b[?1049h"), "the other screen"
    assert written.endswith("\x1b[?1049l"), "back, whatever ended it"
    assert ["10.0 req/s" in picture for picture in pictures] == [False, True, True, True]
    assert all(line.endswith("\x1b[K") for line in pictures[1].split("\n")[:-1]), "nothing of an older line stays"


@pytest.mark.usefixtures("three_waits")
def test_a_gateway_that_is_away_for_a_while_leaves_the_last_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """With a word about it; when it is back the rates are of all the time between."""
    _, pictures = screens(capsys, Gateway(away={3}))
    assert [f"! {URL} does not answer: Connection refused" in picture for picture in pictures] == [
        *(False, False, True, False)
    ]
    assert "over 1.0 s: 10.0 req/s" in pictures[2]
    assert "over 2.0 s: 10.0 req/s" in pictures[3]


def test_without_the_admin_key_nothing_is_asked() -> None:
    result = mtok("top", "--once", MTOK_ADMIN_KEY="")
    assert (result.exit_code, "MTOK_ADMIN_KEY" in result.stderr) == (2, True)
