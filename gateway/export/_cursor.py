"""Where the last complete export ended, so that the next one begins there: the cursor file and its commit.

An export appears under its name whole or not at all, and the cursor moves exactly when it does:

    1. the events go to OUTPUT.partial, which is synced
    2. the cursor file is replaced by one that still holds the old positions, and the new ones as `pending`
    3. OUTPUT.partial is renamed to OUTPUT
    4. the cursor file is replaced by one with the new positions

Killed before 2, the next run starts over from the old positions; after it, the next run finishes 3 and 4 first. So the
files of all completed runs hold each event exactly once, wherever a run was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from ._stream import BEGINNING, StreamEnd, entry_order, is_entry

PARTIAL = ".partial"


class CursorError(Exception):
    """A cursor that cannot be used; the message says why and what to do."""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of one tenant's stream up to and with `entry` has been exported. `entries` is how many the stream had
    ever been given by then, 0 if that is not known."""

    entry: str
    entries: int = 0


Positions = Mapping[str, Position]


class _Pending(msgspec.Struct, frozen=True, kw_only=True):
    output: str
    tenants: dict[str, Position]


class _File(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    v: int = 1
    tenants: dict[str, Position] = {}
    pending: _Pending | None = None


class Gap(NamedTuple):
    """What an export cannot hold. `missing` events left the stream before they were exported; `rewound` says that the
    stream is behind the cursor, since Redis lost its last writes."""

    missing: int
    rewound: bool


def gap(position: Position, end: StreamEnd) -> Gap:
    """What lies between an export's last end and what the stream still holds."""
    rewound = entry_order(end.entry) < entry_order(position.entry) or end.entries < position.entries
    missing = end.entries - end.kept - position.entries if position.entries and not rewound else 0
    return Gap(max(0, missing), rewound)


def parse_after(text: str, tenants: list[str] | None) -> dict[str, Position]:
    """Positions in `1790000000000-0` (of the one tenant asked for) or `acme=1790000000000-0,rival=...`.

    Raises:
        CursorError: it is neither.
    """
    if is_entry(text):
        if tenants is None or len(tenants) != 1:
            raise CursorError(f"--after {text} does not say whose entry it is; write TENANT={text}, or name --tenant")
        return {tenants[0]: Position(entry=text)}
    positions = {}
    for part in text.split(","):
        tenant, separator, entry = part.partition("=")
        if not separator or not tenant or not is_entry(entry):
            raise CursorError(f"--after is {text[:80]!r}; write what an export printed, e.g. acme=1790000000000-0")
        positions[tenant] = Position(entry=entry)
    return positions


def shown_after(positions: Positions) -> str:
    """The inverse of `parse_after`."""
    return ",".join(f"{tenant}={position.entry}" for tenant, position in sorted(positions.items()))


class CursorFile:
    """One cursor file. Use `opened`."""

    def __init__(self, path: Path, positions: dict[str, Position]) -> None:
        self._path = path
        self.positions = positions

    def commit(self, positions: Positions, output: Path | None) -> None:
        """Moves the cursor to `positions`, and `output`'s partial file, if there is one, to its name."""
        tenants = self.positions | dict(positions)
        if output is not None:
            pending = _Pending(output=str(output.absolute()), tenants=tenants)
            _replace(self._path, _File(tenants=self.positions, pending=pending))
            publish(output)
        _replace(self._path, _File(tenants=tenants))
        self.positions = tenants


@contextlib.contextmanager
def opened(path: Path) -> Iterator[CursorFile]:
    """The cursor of `path`, for one export at a time; what a killed one had ready is finished first. A file that is
    not there is a cursor before the first event.

    Raises:
        CursorError: the file is no cursor, or another export uses it.
    """
    with open(path.with_name(path.name + ".lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CursorError(f"another export uses the cursor {path} just now") from None
        file = _read(path)
        if file.pending is not None:
            output = Path(file.pending.output)
            if partial(output).exists():
                publish(output)
            file = _File(tenants=file.pending.tenants)
            _replace(path, file)
        yield CursorFile(path, dict(file.tenants))


def partial(output: Path) -> Path:
    """Where an export is written until it is complete."""
    return output.with_name(output.name + PARTIAL)


def publish(output: Path) -> None:
    """Gives a complete export its name."""
    os.replace(partial(output), output)
    _sync_directory(output)


def position_at(end: StreamEnd) -> Position:
    """The position after everything the stream holds."""
    return Position(entry=end.entry, entries=end.entries)


def start_of(positions: Positions, tenant: str) -> str:
    """The entry after which to read."""
    return positions[tenant].entry if tenant in positions else BEGINNING


def _read(path: Path) -> _File:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return _File()
    except (msgspec.DecodeError, IsADirectoryError) as error:
        raise CursorError(f"{path} is no cursor of an export ({error}); name a new file to begin anew") from error
    positions = [*file.tenants.values(), *(file.pending.tenants.values() if file.pending else ())]
    if file.v != 1 or not all(is_entry(position.entry) for position in positions):
        raise CursorError(f"{path} is no cursor that this version can read; name a new file to begin anew")
    return file


def _replace(path: Path, file: _File) -> None:
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as target:
        target.write(msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")
        sync(target.fileno())
    os.replace(new, path)
    _sync_directory(path)


def sync(descriptor: int) -> None:
    """Returns when the file is on disk."""
    os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
