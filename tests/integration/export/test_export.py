"""`mtok usage export` from a real Valkey: what it holds, where it goes on, and what a kill leaves behind."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.export import opened
from gateway.metering import Ledger, UsageEvent
from gateway.store import TenantKeys, client
from tests.integration.store.ledgers import T0_MS, PatientLedger, event

Mtok = Callable[..., Result]


@pytest.fixture
def mtok(valkey_url: str) -> Mtok:
    """The command on that store."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"MTOK_REDIS_URL": valkey_url})

    return run


@pytest.fixture
def book(valkey_url: str, tmp_path: Path) -> Callable[[Iterable[UsageEvent]], None]:
    """Books events through the ledger, on an empty store."""

    async def empty() -> None:
        async with client(valkey_url) as redis:
            await redis.flushall()

    async def record(events: Iterable[UsageEvent]) -> None:
        async with client(valkey_url) as redis, Ledger(redis, tmp_path / "journal") as ledger:
            await asyncio.gather(*(ledger.record(one) for one in events))

    asyncio.run(empty())
    return lambda events: asyncio.run(record(events))


Book = Callable[[Iterable[UsageEvent]], None]


def requests(*files: Path) -> list[str]:
    """The request ids in these exports, in order."""
    found = []
    for file in files:
        with file.open(newline="") as lines:
            found += [row["id"] for row in csv.DictReader(lines)]
    return found


def test_an_export_goes_on_where_the_last_one_ended(mtok: Mtok, book: Book, tmp_path: Path) -> None:
    """The cursor file remembers each tenant's place; a tenant that is new joins; nothing new is an empty file."""
    options = ["usage", "export", "--format", "csv", "--cursor", str(tmp_path / "cursor"), "--output"]
    book([event("r1"), event("r2"), event("b1", of="beta")])
    first = mtok(*options, str(tmp_path / "1.csv"))
    assert (first.exit_code, first.stderr) == (0, "mtok: 3 events\n")
    book([event("r3"), event("c1", of="core")])
    mtok(*options, str(tmp_path / "2.csv"))
    mtok(*options, str(tmp_path / "3.csv"))
    assert requests(tmp_path / "1.csv") == ["r1", "r2", "b1"]
    assert requests(tmp_path / "2.csv") == ["r3", "c1"]
    assert requests(tmp_path / "3.csv") == []


def test_a_cursor_on_the_command_line(mtok: Mtok, book: Book) -> None:
    """What one run prints is what the next one takes; one tenant's needs no name."""
    book([event("r1"), event("b1", of="beta")])
    ended = mtok("usage", "export", "--format", "jsonl").stderr.splitlines()[-1]
    assert ended.startswith("mtok: what comes next: --after acme=")
    book([event("r2"), event("b2", of="beta")])
    after = ended.rpartition(" ")[2]
    lines = mtok("usage", "export", "--format", "jsonl", "--after", after).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["r2", "b2"]
    entry = after.partition("=")[2].partition(",")[0]
    lines = mtok("usage", "export", "--format", "jsonl", "--tenant", "acme", "--after", entry).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["r2"]
    assert mtok("usage", "export", "--format", "jsonl", "--after", entry).exit_code == 2


def test_a_span_is_by_the_end_of_the_request(mtok: Mtok, book: Book) -> None:
    """From --start to before --end, wherever the events lie in the stream."""
    hour = 3_600_000
    book([event(f"r{n}", ended_ms=T0_MS + n * hour) for n in (3, 0, 1, 2)])
    span = ["--start", str(T0_MS // 1000 + 3600), "--end", str(T0_MS // 1000 + 3 * 3600)]
    lines = mtok("usage", "export", "--format", "jsonl", *span).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["r1", "r2"]


def test_many_events_travel_in_pieces(mtok: Mtok, book: Book, tmp_path: Path) -> None:
    """More than one round trip reads, in every format."""
    book([event(f"r{n}") for n in range(2500)])
    for name in ("csv", "jsonl", "cloudevents", "parquet"):
        done = mtok("usage", "export", "--format", name, "--output", str(tmp_path / name))
        assert done.stderr.startswith("mtok: 2500 events\n")
    assert requests(tmp_path / "csv") == [f"r{n}" for n in range(2500)]
    assert len((tmp_path / "jsonl").read_bytes().splitlines()) == 2500
    clouds = [json.loads(line) for line in (tmp_path / "cloudevents").open()]
    assert len({cloud["id"] for cloud in clouds}) == 2500


async def test_events_that_left_the_stream_unexported_are_told(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """How many, exactly; none when only exported ones were trimmed."""

    def export(name: str) -> Result:
        arguments = ["--format", "csv", "--cursor", str(tmp_path / "cursor"), "--output", str(tmp_path / name)]
        return CliRunner().invoke(app, ["usage", "export", *arguments], env={"MTOK_REDIS_URL": valkey_url})

    async with PatientLedger(redis, tmp_path / "journal") as ledger:
        await asyncio.gather(*(ledger.record(event(f"r{n}")) for n in range(4)))
        await asyncio.to_thread(export, "1.csv")
        await asyncio.gather(*(ledger.record(event(f"s{n}")) for n in range(4)))
        await redis.xtrim(TenantKeys("acme").events, maxlen=4, approximate=False)
        assert (await asyncio.to_thread(export, "2.csv")).stderr == "mtok: 4 events\n"
        await asyncio.gather(*(ledger.record(event(f"t{n}")) for n in range(4)))
        await redis.xtrim(TenantKeys("acme").events, maxlen=1, approximate=False)
        told = (await asyncio.to_thread(export, "3.csv")).stderr
        assert told.startswith("mtok: 3 events of acme left the stream before they were exported")


KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def dying(call):
    def die(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return die
os.fsync, os.replace = dying(os.fsync), dying(os.replace)
from gateway.cli import main
main()
"""


def test_wherever_a_run_is_killed_the_files_hold_each_event_once(book: Book, valkey_url: str, tmp_path: Path) -> None:
    """SIGKILL before every step of the commit; then a run that is left alone."""
    environ = os.environ | {"MTOK_REDIS_URL": valkey_url}
    cursor = str(tmp_path / "cursor")

    def run(name: str, steps: int) -> int:
        arguments = ["usage", "export", "--format", "csv", "--cursor", cursor, "--output", str(tmp_path / name)]
        command = [sys.executable, "-c", KILLED, str(steps), *arguments]
        return subprocess.run(command, env=environ, capture_output=True, check=False, timeout=60).returncode

    booked: list[str] = []
    for steps in range(20):
        new = [f"r{steps}.{n}" for n in range(3)]
        book([event(request) for request in new])
        booked += new
        code = run(f"{steps}.csv", steps)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    else:
        pytest.fail("the run never came to its end")
    assert steps >= 8, "the commit has that many steps to be killed before"
    assert run("last.csv", 1000) == 0
    assert Counter(requests(*tmp_path.glob("*.csv"))) == Counter(booked)


def test_two_exports_do_not_share_a_cursor_at_once(mtok: Mtok, book: Book, tmp_path: Path) -> None:
    """The second is told, and nothing is written."""
    with opened(tmp_path / "cursor"):
        refused = mtok("usage", "export", "--format", "csv", "--cursor", str(tmp_path / "cursor"))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "another export uses the cursor" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--start", "1h", "--after", "1-0"], "give one kind"),
        (["--output", "taken.csv"], "taken.csv is there already; name a new file"),
        (["--cursor", "taken.csv"], "taken.csv is no cursor"),
        (["--after", "yesterday"], "--after is 'yesterday'"),
        (["--start", "yesterday"], "start is 'yesterday'; send Unix seconds"),
        (["--start", "1h", "--end", "2h"], "--start has to come before --end"),
    ],
)
def test_what_is_asked_wrongly_is_told(
    mtok: Mtok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    """One line, exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.csv").write_bytes(b"a,b")
    refused = mtok("usage", "export", "--format", "csv", *arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert told in refused.stderr
    assert (tmp_path / "taken.csv").read_bytes() == b"a,b"
