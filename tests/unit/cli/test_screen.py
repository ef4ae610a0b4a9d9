"""How a frame of `mtok top` looks."""

from __future__ import annotations

import msgspec

from gateway.cli._screen import draw
from gateway.overview import Frame

ROW = {
    "tenant": "acme",
    "requests": 12.04,
    "input_tokens": 9612.0,
    "output_tokens": 240.0,
    "usd_per_hour": 1.5,
    "running": 8,
    "refused": {"tokens_per_minute": 2.0, "overloaded": 0.5},
    "audited": {},
    "limits": {
        "budget_usd": {"limit": "50", "left": "3.2000004", "is_usd": True},
        "requests_per_minute": {"limit": "600", "left": "412"},
        "tokens_per_day": {"limit": "2000000", "left": "1500000"},
        "concurrent_requests": {"limit": "64", "left": "56"},
    },
}


def picture(**changes: object) -> Frame:
    fields = {
        "at_ms": 1_795_000_000_000,
        "seconds": 2.0,
        "tenants": [ROW],
        "shared": {"group labs": {"usd_per_day": {"limit": "10", "left": "2.5", "is_usd": True}}},
        "queues": [{"model": "tiny", "queued": 3, "waited": 4.5, "wait_p99_s": 0.25, "retries": 0.125}],
        "replicas": [
            {
                "replica": "a:1",
                "healthy": True,
                "states": {"healthy": 2},
                "in_flight": 8,
                "knee": {"sequences": (8, 64)},
            },
            {
                "replica": "b:1",
                "healthy": False,
                "states": {"half_open errors": 1, "open errors": 1},
                "in_flight": 0,
                "knee": {},
            },
        ],
        "warnings": [],
    }
    return msgspec.convert(fields | changes, Frame)


def test_a_picture_shows_tenants_queues_and_replicas() -> None:
    lines = draw(picture(), "http://g:8000")
    assert lines[0].startswith("mtok top  http://g:8000  11:06:40 UTC, over 2.0 s: 12.0 req/s, 2.5 refused/s, 9.61k in")
    assert lines[0].endswith("8 running, 1 of 2 replicas healthy")
    acme = next(line for line in lines if line.startswith("acme"))
    assert acme.split() == [
        *("acme", "12.0", "9.61k", "240", "1.50", "8", "tokens_per_minute", "2.0,", "overloaded", "0.5"),
        *("budget_usd", "$3.20/50.00,", "requests_per_minute", "412/600,", "tokens_per_day", "1.5M/2M"),
    ]
    assert next(line for line in lines if line.startswith("tiny")).split() == [
        "tiny",
        "3",
        "4.5",
        "<=",
        "0.25",
        "s",
        "12",
        "%",
    ]
    assert "group labs  usd_per_day $2.50/10.00" in lines
    assert next(line for line in lines if line.startswith("a:1")).split() == ["a:1", "yes", "healthy", "8", "8/64"]
    told = next(line for line in lines if line.startswith("b:1"))
    assert told.split(maxsplit=2)[1] == "NO"
    assert "half-open errors (1), open errors (1)" in told


def test_it_fits_the_terminal() -> None:
    """Queues and replicas stay; of many tenants the first ones do, and the rest is counted."""
    many = [ROW | {"tenant": f"t{n}"} for n in range(50)]
    lines = draw(picture(tenants=many), "http://g:8000", width=60, height=20)
    assert len(lines) == 20
    assert max(map(len, lines)) == 60
    shown = sum(line.startswith("t") and line[1].isdigit() for line in lines)
    assert f"and {50 - shown} more" in lines
    assert lines[-1].startswith("b:1")


def test_what_is_not_known_is_a_question_mark_and_nothing_is_a_dash() -> None:
    quiet = ROW | {"running": None, "refused": {}, "limits": {}}
    lines = draw(picture(tenants=[quiet], queues=[], warnings=["usage cannot be written to disk"]), "here")
    assert next(line for line in lines if line.startswith("acme")).split()[-3:] == ["?", "-", "-"]
    assert "! usage cannot be written to disk" in lines
    assert not any(line.startswith("MODEL") for line in lines)


def test_an_idle_gateway_says_so() -> None:
    assert "No tenant has sent anything yet." in draw(picture(tenants=[]), "here")


def test_what_audited_limits_would_refuse_has_a_column_where_there_is_any() -> None:
    """Beside what is refused; who has none has a dash there."""
    assert not any("AUDITED/S" in line for line in draw(picture(), "g"))
    audited = ROW | {"audited": {"requests_per_minute": 1.5, "group usd_per_day": 0.5}}
    lines = draw(picture(tenants=[audited, ROW | {"tenant": "rival"}]), "g")
    head = next(line for line in lines if line.startswith("TENANT"))
    at, end = head.index("AUDITED/S"), head.index("LEFT OF")
    cells = [line[at:end].strip() for line in lines if line.startswith(("acme", "rival"))]
    assert cells == ["requests_per_minute 1.5, group usd_per_day 0.5", "-"]


def test_a_picture_shows_where_requests_went_and_what_a_shadow_says() -> None:
    shadow = {"elsewhere": 0.25, "cached": (0.31, 0.64), "ttft_s": (0.2, 0.0504)}
    rows = [
        {"model": "tiny", "pools": {"reserved": 30.0, "spot": 9.96}, "shadow": shadow},
        {"model": "plain", "pools": {"own": 1.0}, "shadow": None},
    ]
    lines = draw(picture(routing=rows), "http://g:8000")
    cells = [line.split() for line in lines if line.startswith(("tiny", "plain"))]
    assert " ".join(cells[-2]) == "tiny reserved 30.0, spot 10.0 25 % 31 % -> 64 % 200 ms -> 50 ms"
    assert " ".join(cells[-1]) == "plain own 1.0 - - -"
