"""The load script counts what the gateway bills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.sdk.conftest import MODEL, Served


def load(repository: Path, served: Served, *options: str, key: str = "load") -> dict[str, Any]:
    """The summary of a short run."""
    command = [sys.executable, "loadtest/load.py", "--base-url", served.base_url, "--api-key", served.keys[key]]
    command += ["--model", MODEL, "--prompt-tokens", "40", "--output-tokens", "8", "--json", *options]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    summary: dict[str, Any] = json.loads(run.stdout)
    return summary


@pytest.mark.parametrize("how", [("--concurrency", "4"), ("--rate", "60")])
def test_counts_equal_usage(repository: Path, served: Served, how: tuple[str, str]) -> None:
    """Requests and tokens that the script reports are those of `/v1/usage`; every answer ended."""
    before = served.usage("load")["totals"]
    told = load(repository, served, *how, "--duration", "0.5")
    after = served.usage("load")["totals"]
    assert told["requests"] == told["finished"] == after["requests"] - before["requests"] > 0
    assert told["errors"] == told["refused"] == {}
    assert told["output_tokens"] == after["output_tokens"] - before["output_tokens"] == 8 * told["requests"]
    assert told["input_tokens"] == after["input_tokens"] - before["input_tokens"]
    assert 0 < told["ttft_ms_p50"] <= told["ttft_ms_p99"]
    assert 0 <= told["itl_ms_p50"] <= told["itl_ms_p99"]


def test_refusals_are_counted_by_code(repository: Path, served: Served) -> None:
    """A refusal is neither an answer nor an error."""
    told = load(repository, served, "--concurrency", "1", "--duration", "0.1", key="broke")
    assert list(told["refused"]) == ["429 insufficient_quota"]
    assert told["finished"] == 0
    assert told["errors"] == {}
