"""Policies that change while the gateway serves: a directory is looked at about once a second, and on SIGHUP.

All or nothing: what cannot be read is told in the log, all of it with file and line, and the policies in force stay.
Every worker looks at the same files, so all of them change within two looks. A directory is read once it looks the same
twice in a row: an editor that is still writing is not half heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from gateway.policy import Policies, PolicyError, load

log = logging.getLogger(__name__)

LOOK_S = 1.0

_Seen = tuple[tuple[str, int, int], ...]


class Reloader:
    """Watches `directory` for one worker, whose policies are `current`. `apply` puts new ones in force; it must not
    raise. `failed` is what is wrong with the directory now, empty when it is what is in force."""

    def __init__(
        self, directory: Path, current: Policies, apply: Callable[[Policies], None], *, look_s: float = LOOK_S
    ) -> None:
        self.failed = ""
        self._directory = directory
        self._current = current
        self._apply = apply
        self._look_s = look_s
        self._asked = asyncio.Event()
        self._read: _Seen | None = None
        self._before: _Seen | None = None

    def now(self) -> None:
        """Reads the directory at once, whatever it looks like: SIGHUP."""
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            await self.look(asked=asked)

    async def look(self, *, asked: bool = False) -> None:
        """One look: reads and applies what has changed."""
        seen = await asyncio.to_thread(_look, self._directory)
        settled, self._before = seen == self._before, seen
        if not asked and (seen == self._read or not settled):
            return
        self._read = seen
        try:
            policies = await asyncio.to_thread(load, self._directory)
        except PolicyError as error:
            self.failed = str(error)
            log.error("the policies have changed and cannot be used; those in force stay:\n%s", error)
            return
        except Exception as error:
            self.failed = repr(error)
            log.exception("the policies cannot be read; those in force stay")
            return
        self.failed = ""
        if policies.sha256 == self._current.sha256:
            return
        before, self._current = self._current, policies
        self._apply(policies)
        log.warning("policies %s are in force instead of %s", policies.version, before.version)


def _look(directory: Path) -> _Seen:
    """What the directory looks like: names, times and sizes of its documents. A directory that is gone has none."""
    seen: list[tuple[str, int, int]] = []
    try:
        for path in sorted(directory.glob("*.yaml")):
            told = path.stat()
            seen.append((path.name, told.st_mtime_ns, told.st_size))
    except OSError as error:
        log.warning("the policies' directory cannot be looked at: %s", error)
    return tuple(seen)
