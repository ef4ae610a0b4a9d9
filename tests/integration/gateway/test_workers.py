"""Several workers and the process that keeps them running: what it passes on, and what it does when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from gateway.app import Gateway
from gateway.policy import load
from gateway.settings import Settings
from gateway.tenants import hash_key
from loadtest.processes import free_port, mtok, running
from tests.integration.gateway.serving import eventually, key_of

MODELS = {"tiny": {"replicas": [{"url": "http://127.0.0.1:9"}]}}


@contextmanager
def two_workers(place: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`mtok serve` with the policies of `place`: the parent process, and where it serves."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(
        mtok("serve", "--policies", str(place / "policies"), "--port", str(port), "--workers", "2"),
        log=place / "mtok.log",
        ready_url=f"{url}/healthz",
        environment={"MTOK_DATA_DIR": str(place / "data")},
        timeout_s=60,
    ) as gateway:
        yield gateway, url


def workers_of(gateway: subprocess.Popen[bytes]) -> list[int]:
    """Their process ids."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_sighup_reaches_every_worker(tmp_path: Path) -> None:
    """Two workers; after the parent's SIGHUP a key that was taken out is known to neither."""
    directory = tmp_path / "policies"
    directory.mkdir()
    key = key_of("acme")
    tenant = {"keys": [{"id": "acme", "sha256": hash_key(key)}]}
    document = {"models": MODELS, "tenants": {"acme": tenant}}
    (directory / "policy.yaml").write_text(yaml.safe_dump(document))
    with two_workers(tmp_path) as (gateway, url):

        def statuses() -> set[int]:
            headers = {"authorization": f"Bearer {key}"}
            return {httpx.get(f"{url}/v1/models", headers=headers, timeout=10).status_code for _ in range(20)}

        assert statuses() == {200}
        tenant["keys"] = []
        (directory / "policy.yaml").write_text(yaml.safe_dump(document))
        gateway.send_signal(signal.SIGHUP)
        for _ in range(100):
            if statuses() == {401}:
                break
        assert statuses() == {401}


def test_a_worker_that_dies_comes_back_though_the_policies_are_broken(tmp_path: Path) -> None:
    """With those that were good last."""
    directory = tmp_path / "policies"
    directory.mkdir()
    (directory / "policy.yaml").write_text(yaml.safe_dump({"models": MODELS}))
    with two_workers(tmp_path) as (gateway, url):
        (directory / "policy.yaml").write_text("models: [")
        workers = workers_of(gateway)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
    assert "last good policies" in (tmp_path / "mtok.log").read_text()


async def test_a_gateway_that_is_told_to_stop_while_a_worker_comes_back_stops(tmp_path: Path) -> None:
    """The worker that is missing is not started any more, or is told too."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "policy.yaml").write_text(yaml.safe_dump({"models": MODELS}))
    with two_workers(tmp_path) as (gateway, _):
        os.kill(workers_of(gateway)[0], signal.SIGKILL)
        await eventually(lambda: "starting another" in (tmp_path / "mtok.log").read_text())
        gateway.terminate()
        assert gateway.wait(10) == 0


async def test_a_worker_that_is_told_to_stop_while_it_starts_stops(tmp_path: Path, valkey_url: str) -> None:
    """Its server asks whether it is draining once it has started."""
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"models": MODELS}))
    gateway = Gateway(load(tmp_path), Settings(data_dir=tmp_path / "data"), valkey_url)
    gateway.drain()
    async with gateway._lifespan(None):
        assert gateway.draining
        assert gateway.idle
        assert gateway._lifecycle is not None
        assert gateway._lifecycle.draining
