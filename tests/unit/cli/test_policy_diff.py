"""`mtok policy diff` on the command line: fields, a replay of a file, JSON, and what is asked wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app

POLICY = """
models:
  tiny: {replicas: [{url: "http://127.0.0.1:9001"}], price: {output_usd_per_mtok: 1}}
tenants:
  acme: {limits: {requests_per_minute: %d}}
  rival: {}
"""
T0_MS = 1_790_000_000_000
SECOND = '{"arrived_ms":%d,"tenant":"%s","model":"tiny","input_tokens":100,"output_tokens":50}'


@pytest.fixture
def both(tmp_path: Path) -> list[str]:
    for name, limit in (("old", 20), ("new", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.yaml").write_text(POLICY % limit)
    return [str(tmp_path / "old"), str(tmp_path / "new")]


@pytest.fixture
def day(tmp_path: Path) -> str:
    """Twelve requests of acme and one of its rival, a tenth of a second apart."""
    lines = [SECOND % (T0_MS + 100 * number, "acme") for number in range(12)]
    (tmp_path / "day.jsonl").write_text("\n".join([*lines, SECOND % (T0_MS + 50, "rival")]))
    return str(tmp_path / "day.jsonl")


def diff(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["policy", "diff", *arguments])


def test_without_a_replay_it_names_the_fields(both: list[str]) -> None:
    shown = diff(*both)
    assert (shown.exit_code, shown.stdout.splitlines()[1].split()) == (
        0,
        ["tenants.acme.limits.requests_per_minute", "20", "5"],
    )
    assert diff(both[0], both[0]).stdout == "Both say the same.\n"


def test_a_replay_puts_both_side_by_side(both: list[str], day: str) -> None:
    """What acme would have been refused is in one line; who is not touched has none about refusals."""
    shown = diff(*both, "--arrivals", day)
    assert shown.exit_code == 0
    assert "13 requests, 2026-09-21 14:13 to 2026-09-21 14:13 UTC." in shown.stdout
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["refused:", "requests_per_minute", "0", "7"] in rows
    assert ["acme", "served", "12", "5"] in rows
    assert ["rival", "served", "1", "1"] in rows
    assert sum("refused:" in row for row in rows) == 2


def test_json_has_all_of_it(both: list[str], day: str) -> None:
    told = json.loads(diff(*both, "--arrivals", day, "--profile", "tiny", "--json").stdout)
    assert told["differences"] == [{"path": "tenants.acme.limits.requests_per_minute", "old": "20", "new": "5"}]
    new = told["replay"]["new"]
    assert new["tenants"]["acme"]["refused"] == {"requests_per_minute": 7}
    assert new["total"]["cost_nanousd"] == 6 * (50 * 1000 + 100 * 280)
    assert told["replay"]["old"]["total"]["served"] == 13


def test_a_span_leaves_out_what_came_at_another_time(both: list[str], day: str) -> None:
    shown = diff(*both, "--arrivals", day, "--replay", "2026-09-21T14:13:21Z/2026-09-22")
    assert "2 requests" in shown.stdout


def test_a_day_on_which_nobody_came_is_said_to_be_one(both: list[str], day: str) -> None:
    shown = diff(*both, "--arrivals", day, "--replay", "2026-09-20/2026-09-21")
    assert shown.stdout.endswith("\n\nNobody came in this time.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replay", "yesterday"], "--replay 'yesterday' is no time: write 24h, or START/END"),
        (["--replay", "2026-09-22/2026-09-21"], "ends before it begins"),
        (["--replay", "2026-09-22/then"], "end is 'then'; send Unix seconds"),
        (["--arrivals", "/nowhere"], "the arrivals of /nowhere cannot be read"),
        (["--arrivals", "/nowhere", "--profile", "h100"], "--profile 'h100' is none of the simulator's: h200-llama-8b"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(both: list[str], arguments: list[str], said: str) -> None:
    shown = diff(*both, *arguments)
    assert shown.exit_code in (1, 2)
    assert said in shown.stderr
    assert shown.stderr.count("\n") == 1
