"""The short form of `make chaos`."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.chaos import SHORT, run


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_every_answer_is_billed_once_whatever_dies(tmp_path: Path) -> None:
    """Workers, gateways, engines and Valkey are killed, Valkey stops for a while, comes back with older files and is
    flushed: what clients saw whole has one event each, all sums agree to the nano-dollar, nothing stays reserved."""
    verdict = await run(replace(SHORT, seed=secrets.randbits(32)), tmp_path)
    assert verdict.differences == [], verdict.table()
    assert set(verdict.struck) == {"worker", "gateway", "engine", "valkey", "pause", "restore", "flush"}
    assert sum(one.outcome == "complete" for one in verdict.seen) > SHORT.requests // 4
