"""Processes a run needs beside it: started on free ports, waited for, each with a log, none left behind.

Shared by the benchmark and by the tests that talk to a gateway as its users do, through its command line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

POLL_S = 0.02
STOP_TIMEOUT_S = 15.0


class DidNotStart(Exception):
    """A process ended, or did not answer in time; the message ends with its log."""


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    ready_url: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, ready when `ready_url` answers 200; stopped with all its children.

    Raises `DidNotStart`.
    """
    with open(log, "ab") as output:
        process = subprocess.Popen(  # noqa: S603 - commands of this repository
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        if ready_url is not None:
            _wait_until_ready(process, ready_url, log, timeout_s)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to end; takes it and all of its session down if it does not."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def mtok(*arguments: str) -> list[str]:
    """The command line of `mtok` with these arguments, in this interpreter."""
    return [sys.executable, "-m", "gateway.cli", *arguments]


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise DidNotStart(f"ended with status {process.returncode} before it answered {url}\n{_tail(log)}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(POLL_S)
    raise DidNotStart(f"{url} did not answer within {timeout_s:g} s\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
