"""Lua scripts: one file each under `scripts/`, known to Redis by the SHA-1 of their text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the name EVALSHA calls it by."""

    text: bytes
    sha1: bytes


def load_script(name: str) -> Script:
    """The script of `scripts/<name>.lua`, without the header and other whole-line comments, which Redis would keep."""
    source = files(__package__).joinpath("scripts", f"{name}.lua").read_bytes()
    text = b"\n".join(line for line in source.splitlines() if not line.lstrip().startswith(b"--"))
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())
