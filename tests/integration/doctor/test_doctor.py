"""`mtok doctor` against simulated replicas on sockets and a real Valkey."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.simulator import PROFILES
from loadtest.processes import free_port
from tests.conformance.simulator.conftest import serving

H200 = PROFILES["h200-llama-8b"]
"""A full step with a part of a prompt takes 190 ms and more there; one of 512 tokens 14 ms, one without any 5 ms."""
TARGET_MS = 80


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """One replica without flags, and one with the threshold."""
    with ExitStack() as stack:
        yield {
            "plain": stack.enter_context(serving(H200)),
            "bounded": stack.enter_context(serving(replace(H200, long_prefill_token_threshold=512))),
        }


def doctor(place: Path, valkey_url: str, document: dict[str, Any], *options: str) -> Result:
    directory = place / "policies"
    directory.mkdir(exist_ok=True)
    (directory / "fleet.yaml").write_text(yaml.safe_dump(document))
    environment = {"MTOK_REDIS_URL": valkey_url, "MTOK_DATA_DIR": str(place), "MTOK_ADMIN_KEY": "a key"}
    return CliRunner().invoke(app, ["doctor", "--policies", str(directory), *options], env=environment)


def fleet(*ports: int, **model: object) -> dict[str, Any]:
    replicas = [{"url": f"http://127.0.0.1:{port}"} for port in ports]
    return {
        "models": {"llama-8b": {"replicas": replicas, "price": {"output_usd_per_mtok": 1}, **model}},
        "classes": {"chat": {"slo": {"itl_p99_ms": TARGET_MS}}},
        "tenants": {"acme": {"class": "chat"}},
    }


def severe(result: Result) -> set[tuple[str, str]]:
    """Errors and warnings of `--json`, by place and rule, without those of this machine's speed."""
    found = json.loads(result.stdout)["findings"]
    return {
        (one["where"], one["check"])
        for one in found
        if one["severity"] in {"error", "warning"} and (one["where"], one["check"]) != ("here", "data-directory")
    } - {("redis", "near")}


def test_a_healthy_fleet_passes(tmp_path: Path, valkey_url: str, ports: dict[str, int]) -> None:
    result = doctor(tmp_path, valkey_url, fleet(*ports.values()), "--json")
    assert (result.exit_code, severe(result)) == (0, set()), result.output


def test_the_probe_tells_the_replica_whose_steps_are_too_long(
    tmp_path: Path, valkey_url: str, ports: dict[str, int]
) -> None:
    """The same fleet, measured: one of the two cannot hold the target, and the flag is named."""
    result = doctor(tmp_path, valkey_url, fleet(*ports.values()), "--probe")
    assert result.exit_code == 1, result.output
    told = result.stdout.split("\n")
    assert told[1].split()[:3] == ["error", f"127.0.0.1:{ports['plain']}", "long-prompts"], result.stdout
    assert "-> --long-prefill-token-threshold 512" in result.stdout
    assert [line.split()[0] for line in told if "long-prompts" in line] == ["error"]
    assert told[-2].startswith("1 error, ")


def test_everything_wrong_at_once_is_told(tmp_path: Path, valkey_url: str, ports: dict[str, int]) -> None:
    """A replica that is away, a context that is too long and a model that is not served."""
    away = free_port()
    document = fleet(ports["bounded"], away, context_tokens=200_000)
    document["models"]["llama-70b"] = {"replicas": [{"url": f"http://127.0.0.1:{ports['plain']}"}]}
    result = doctor(tmp_path, valkey_url, document, "--json")
    assert result.exit_code == 1
    assert severe(result) >= {
        (f"127.0.0.1:{ports['bounded']}", "context"),
        (f"127.0.0.1:{away}", "health"),
        (f"127.0.0.1:{ports['plain']}", "model"),
    }
    assert json.loads(result.stdout)["errors"] >= 3


def test_a_store_that_is_away_and_policies_that_cannot_be_used(tmp_path: Path, ports: dict[str, int]) -> None:
    """The first is a finding, the second keeps everything from being looked at."""
    result = doctor(tmp_path, f"redis://127.0.0.1:{free_port()}", fleet(ports["plain"]), "--json")
    assert (result.exit_code, severe(result)) == (1, {("redis", "reachable")})
    result = doctor(tmp_path, "", {"models": {}, "tenant": {}})
    assert (result.exit_code, "the policies cannot be used" in result.stderr) == (2, True)
