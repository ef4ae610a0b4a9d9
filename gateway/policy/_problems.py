"""What is wrong with policy documents, told to the person who will mend them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ._keys import looks_like_key

Step = str | int
Steps = tuple[Step, ...]
"""Where a value is in a document: mapping keys and list positions from the top."""

SHOWN_CHARACTERS_MAX = 60

_PLAIN_STEP = re.compile(r"[A-Za-z0-9_-]+")
_LIKE_SECRET = re.compile(r"(?:mtok|sk)-\S{12,}|[A-Za-z0-9]{40,}")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing to mend. `line` counts from 1, 0 when it is a whole file's; `field_path` is the dotted path."""

    file: str
    line: int
    field_path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field_path}: {self.message}" if self.field_path else f"{place}: {self.message}"


class PolicyError(Exception):
    """The documents cannot be used. `problems` holds everything that is wrong with them, by file and line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an error says what is wrong"
        self.problems: list[Problem] = sorted(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def is_like_secret(text: str) -> bool:
    """Whether it could be one, or the hash of one."""
    return looks_like_key(text) or _LIKE_SECRET.search(text) is not None


def shown(text: str) -> str:
    """A value as a message may quote it: shortened, and never something that could be a secret."""
    if is_like_secret(text):
        return "(hidden: it may be a secret)"
    if len(text) > SHOWN_CHARACTERS_MAX:
        text = text[:SHOWN_CHARACTERS_MAX] + "…"
    return repr(text)


def dotted(steps: Steps) -> str:
    """A path as messages write it, e.g. `tenants.acme.keys[0].sha256`; names with dots in them are quoted."""
    path = ""
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            plain = _PLAIN_STEP.fullmatch(step) and not looks_like_key(step)
            path += ("." if path else "") + (step if plain else shown(step))
    return path
