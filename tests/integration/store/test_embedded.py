"""The embedded Valkey: one per data directory, started and stopped with its owner."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as sync_redis

from gateway.store import EmbeddedStoreFailed, connect, embedded

OWNER = """
import sys
from pathlib import Path
from gateway.store import embedded
with embedded(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Settings:
    data_dir: Path
    redis_url: str | None = None


def owner(data_dir: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that owns the Valkey of `data_dir`, and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def server_pid(url: str) -> int:
    with sync_redis.Redis.from_url(url) as connection:
        return int(connection.info("server")["process_id"])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_data_outlives_the_server(tmp_path: Path) -> None:
    """What was written is there when the store is opened again, and no server is left in between."""
    settings = Settings(data_dir=tmp_path / "data")
    async with connect(settings) as redis:
        await redis.set("a", "1")
        pid = (await redis.info("server"))["process_id"]
    assert not is_running(pid)
    async with connect(settings) as redis:
        assert await redis.get("a") == b"1"


async def test_a_second_user_joins_the_running_server(tmp_path: Path) -> None:
    """A command beside a running gateway talks to the gateway's store, and leaves it running."""
    settings = Settings(data_dir=tmp_path)
    with embedded(tmp_path) as url:
        async with connect(settings) as redis:
            assert (await redis.info("server"))["process_id"] == server_pid(url)
        assert is_running(server_pid(url))


async def test_a_redis_of_your_own_is_used_as_it_is(tmp_path: Path, valkey_url: str) -> None:
    """With `redis_url` nothing is started, and nothing is written to the data directory."""
    async with connect(Settings(data_dir=tmp_path / "unused", redis_url=valkey_url)) as redis:
        assert await redis.ping()
    assert not (tmp_path / "unused").exists()


def test_of_many_starters_one_starts(tmp_path: Path) -> None:
    """Processes that start at the same moment share one server."""
    owners = [tmp_path] * 4
    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(owner, owners))
    try:
        assert len({server_pid(url) for _, url in started}) == 1
    finally:
        for process, _ in started:
            process.kill()
            process.communicate()


def test_the_last_user_killed_leaves_no_server_and_its_data(tmp_path: Path) -> None:
    """SIGKILL to the only user stops the server soon; who comes then finds the data."""
    process, url = owner(tmp_path)
    pid = server_pid(url)
    with sync_redis.Redis.from_url(url) as connection:
        connection.set("a", "1")
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)
    with embedded(tmp_path) as again, sync_redis.Redis.from_url(again) as connection:
        assert connection.get("a") == b"1"


def test_who_started_the_server_may_leave_first(tmp_path: Path) -> None:
    """A command that happened to start the store does not take it from a gateway when it ends."""
    process, url = owner(tmp_path)
    pid = server_pid(url)
    with embedded(tmp_path):
        process.communicate("")
        assert process.returncode == 0
        assert server_pid(url) == pid
    assert not is_running(pid)


def test_the_terminals_interrupt_does_not_reach_the_server(tmp_path: Path) -> None:
    """Ctrl-C goes to the terminal's process group; the server is in a session of its own."""
    with embedded(tmp_path) as url:
        assert os.getsid(server_pid(url)) != os.getsid(0)


def test_a_path_too_long_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    """Unix sockets allow about a hundred bytes; longer data directories have their socket elsewhere, written down."""
    deep = tmp_path / ("long-" * 20) / "data"
    with embedded(deep) as url:
        path = url.removeprefix("unix://")
        assert len(path) <= 103
        assert (deep / "valkey.socket").read_text() == path
        assert os.stat(Path(path).parent).st_mode & 0o777 == 0o700
        with embedded(deep) as joined:
            assert joined == url


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error names the directory and ends with the server's own words."""
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    started = time.monotonic()
    with pytest.raises(EmbeddedStoreFailed, match=r"(?s)did not start.*manifest") as failure, embedded(tmp_path):
        pass
    assert str(tmp_path) in str(failure.value)
    assert time.monotonic() - started < 5


def test_a_clean_stop_waits_for_the_server(tmp_path: Path) -> None:
    """When the block is left the server has written everything and is gone."""
    with embedded(tmp_path) as url:
        pid = server_pid(url)
    assert not is_running(pid)
    assert "Received SIGTERM" in (tmp_path / "valkey.log").read_text()
