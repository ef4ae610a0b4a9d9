"""Replicas that stand in a file: a YAML or JSON list of URLs, read again when it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import yaml

from gateway.policy import check_origin, check_url

from ._source import DiscoveryFailed

LOOK_S = 1.0


class FileList:
    """A file with a list of addresses; `- http://HOST:PORT` a line is one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def changes(self) -> AsyncGenerator[tuple[str, ...], None]:
        """As `Source`. A file that is not there, or holds something else, fails."""
        seen: tuple[int, int, int] | None = None
        while True:
            looks, urls = await asyncio.to_thread(self._read, seen)
            if urls is not None:
                yield urls
            seen = looks
            await asyncio.sleep(LOOK_S)

    def _read(self, seen: tuple[int, int, int] | None) -> tuple[tuple[int, int, int], tuple[str, ...] | None]:
        """What the file looks like, and what it says if that is something else than was `seen`."""
        try:
            told = self._path.stat()
            looks = told.st_mtime_ns, told.st_size, told.st_ino
            if looks == seen:
                return looks, None
            content: object = yaml.safe_load(self._path.read_bytes())
        except (OSError, yaml.YAMLError) as error:
            raise DiscoveryFailed(f"{self._path} cannot be read: {error}") from error
        if not isinstance(content, list):
            raise DiscoveryFailed(f"{self._path} is not a list of addresses: write - http://HOST:PORT a line")
        urls: list[str] = []
        for number, one in enumerate(cast(list[object], content), 1):
            problem = (check_url(one) or check_origin(one)) if isinstance(one, str) else "is not an address"
            if problem is not None:
                raise DiscoveryFailed(f"{self._path}, entry {number}: {one!r} {problem}")
            urls.append(str(one).rstrip("/"))
        return looks, tuple(dict.fromkeys(urls))
