"""`mtok doctor` asks real vLLM. It runs before the others: what it asks there is not the gateway's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from loadtest.processes import mtok
from tests.real.conftest import CONTEXT_TOKENS, INSTALLED, MODEL, Engine

TIMEOUT_S = 300.0


def doctor(place: Path, engines: tuple[Engine, Engine], *options: str, **model: object) -> tuple[int, list[Any]]:
    """Exit code and findings."""
    document = {
        "models": {
            MODEL: {"replicas": [{"url": one.url} for one in engines], "price": {"output_usd_per_mtok": 1}} | model
        },
        "classes": {"chat": {"slo": {"itl_p99_ms": 60_000}}},
        "tenants": {"acme": {"class": "chat"}},
    }
    (place / "policies").mkdir(exist_ok=True)
    (place / "policies" / "fleet.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        mtok("doctor", "--policies", str(place / "policies"), "--json", *options),
        env={**os.environ, "MTOK_DATA_DIR": str(place / "data"), "MTOK_REDIS_URL": "", "MTOK_ADMIN_KEY": "a key"},
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout, done.stderr
    findings: list[Any] = json.loads(done.stdout)["findings"]
    return done.returncode, findings


def test_vllm_with_the_flags_of_the_documentation_is_good(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    """All that Mtok relies on is found in what vLLM really answers, and a long prompt is measured."""
    tokenizer = str(INSTALLED / "model" / "tokenizer.json")
    code, findings = doctor(tmp_path, engines, "--probe", context_tokens=CONTEXT_TOKENS, tokenizer=tokenizer)
    assert code == 0, [one for one in findings if one["severity"] != "good"]
    good = {
        *("health", "version", "model", "context", "counters", "prefix-cache", "usage", "running-usage"),
        *("cached-tokens", "load-header", "tokenize", "long-prompts"),
    }
    for engine in engines:
        found = {one["check"] for one in findings if one["where"] == engine.name and one["severity"] == "good"}
        assert found >= good, engine.name
    assert ("tokenizer", "good") in {(one["check"], one["severity"]) for one in findings}
    measured = next(one["finding"] for one in findings if one["check"] == "long-prompts")
    tokens = int(measured.split("prompt of ")[1].split()[0])
    assert 0.6 * CONTEXT_TOKENS < tokens < CONTEXT_TOKENS


def test_a_policy_that_lets_longer_requests_through_than_vllm_takes(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    code, findings = doctor(tmp_path, engines, context_tokens=2 * CONTEXT_TOKENS)
    wrong = [(one["where"], one["check"]) for one in findings if one["severity"] == "error"]
    assert (code, wrong) == (1, [(engine.name, "context") for engine in engines])
