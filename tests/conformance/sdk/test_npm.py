"""OpenAI's official npm package: `npm/conformance.mjs`, run by Node in a copy of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest

from tests.conformance.sdk.conftest import MODEL, Served

HERE = Path(__file__).parent / "npm"
FILES = ("package.json", "package-lock.json", "conformance.mjs")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of `npm/` with its dependencies, exactly those of the lock file. Skips without Node or a registry."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    for name in FILES:
        shutil.copy(HERE / name, tmp_path)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        installed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm's registry does not answer within 60 s")
    if "network" in installed.stderr or "ENOTFOUND" in installed.stderr:
        pytest.skip(f"npm's registry cannot be reached: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    return tmp_path


def test_npm_package(served: Served, package: Path) -> None:
    """Answers, streams and refusals look to a JavaScript client as OpenAI's own do."""
    with openai.OpenAI(base_url=served.base_url, api_key=served.keys["npm"], max_retries=0) as spender:
        spender.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=1)
    run = subprocess.run(
        ["node", "conformance.mjs"],
        cwd=package,
        env={
            **os.environ,
            "BASE_URL": served.base_url,
            "OPEN_KEY": served.keys["open"],
            "HURRIED_KEY": served.keys["npm"],
            "BROKE_KEY": served.keys["broke"],
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_lock_file_names_no_registry() -> None:
    """The lock holds versions and hashes; where packages come from is the business of whoever installs them."""
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    assert all("resolved" not in package for package in packages.values())
    assert all("integrity" in package for name, package in packages.items() if name)
