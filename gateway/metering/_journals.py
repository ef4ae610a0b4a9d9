"""The directory of journals: each file belongs to whoever holds its lock, and a dead worker's to the first who asks.

`NAME.journal` is a journal, `NAME.lock` its lock, held as long as its worker lives: the kernel lets go of it however
the worker dies. A file that no gateway can read is renamed to `NAME.corrupt` and left to a person.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_SUFFIX = ".journal"


class Claim:
    """A journal file and its lock, ours until `release`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.producer = path.stem
        self._lock = lock

    def release(self) -> None:
        """Lets another worker have the file."""
        os.close(self._lock)

    def remove(self) -> None:
        """Deletes the journal, then lets go of its name."""
        for suffix in (_SUFFIX, f"{_SUFFIX}-wal", f"{_SUFFIX}-shm", ".lock"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        self.release()

    def set_aside(self) -> Path:
        """Renames a journal that cannot be read, so that nobody tries it again, and lets go of it."""
        aside = self.path.with_suffix(".corrupt")
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        self.release()
        return aside


class JournalDirectory:
    """Where the journals of this machine's workers are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def new(self) -> Claim:
        """A name nobody has.

        Raises:
            OSError: the directory cannot be written.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            claim = self._claim(self.path / f"{secrets.token_hex(6)}{_SUFFIX}")
            if claim is not None:
                return claim

    def abandoned(self) -> Iterator[Claim]:
        """Claims the journals whose workers are gone, one after the other."""
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self.path.glob(f"*{_SUFFIX}")):
                claim = self._claim(path)
                if claim is None:
                    continue
                if path.exists():
                    yield claim
                else:
                    claim.remove()

    def _claim(self, path: Path) -> Claim | None:
        lock_path = path.with_suffix(".lock")
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever removed the journal took the lock file's name with it: then this is a lock on nothing.
            if os.fstat(lock).st_ino == os.stat(lock_path).st_ino:
                return Claim(path, lock)
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(lock)
        return None


def is_corrupt(error: BaseException | None) -> bool:
    """Whether an error means that a file is no journal (any more), rather than that it cannot be used right now."""
    if not isinstance(error, sqlite3.Error):
        return isinstance(error, ValueError)
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
