"""A tokenizer of the simulator's own: deterministic, cheap, about four bytes of prose a token, nothing to download.

Text is cut into pieces by one regular expression and each piece is hashed into the vocabulary. The other way, every
id is a word of three syllables (`" kamoru"`), and exactly those words are read back as the ids they stand for: an
answer that comes back in the next turn's prompt is found in the prefix cache, as it is in a real engine.

The chat template is a marker before each message and one where the answer begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final
from zlib import crc32

END: Final = 3
"""The id that ends an answer; its text is empty."""
SPECIAL: Final = 256
"""Ids below it have no text."""
_MARKERS: Final = {"system": 4, "user": 2, "assistant": 5, "tool": 6, "developer": 7, "function": 8}
_CACHE_LIMIT: Final = 200_000

_WORDS: Final = 1_000_000
_SCATTER: Final = 389_171
"""Without it the small ids in use would all begin alike; it has no factor in common with the number of words."""
_GATHER: Final = pow(_SCATTER, -1, _WORDS)
_SYLLABLES: Final = [consonant + vowel for consonant in "bdfghjklmnprstvwyzcq" for vowel in "aeiou"]
_SYLLABLE_INDEX: Final = {syllable: index for index, syllable in enumerate(_SYLLABLES)}
_PIECES: Final = re.compile(
    r" ?[A-Za-z]{1,6}| ?[0-9]{1,3}|[^\x00-\x7f]| ?[^\sA-Za-z0-9\x80-\U0010ffff]{1,4}|\s{1,8}", re.ASCII
)


def word(token: int) -> str:
    """The text of a token id; special ones have none."""
    if token < SPECIAL:
        return ""
    code = token * _SCATTER % _WORDS
    return " " + _SYLLABLES[code // 10_000] + _SYLLABLES[code // 100 % 100] + _SYLLABLES[code % 100]


def said_so_far(ids: Sequence[int]) -> int:
    """How many tokens of the answer a prompt already has: those after the marker where the assistant begins, if that is
    its last marker."""
    for said, token in enumerate(reversed(ids)):
        if token < SPECIAL:
            return said if token == _MARKERS["assistant"] else 0
    return 0


class Tokenizer:
    """Text to ids and back, for a vocabulary of a given size."""

    __slots__ = ("_ids", "vocabulary")

    def __init__(self, vocabulary: int) -> None:
        """Ids run from 0 to `vocabulary - 1`, at most one for each word."""
        assert SPECIAL < vocabulary <= _WORDS
        self.vocabulary = vocabulary
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a text; nothing is added."""
        known = self._ids
        ids = []
        for piece in _PIECES.findall(text):
            token = known.get(piece)
            if token is None:
                token = self._learn(piece)
            ids.append(token)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text that these ids stand for."""
        return "".join(map(word, ids))

    def chat(self, messages: Sequence[tuple[str, str]], *, answer: bool = True) -> list[int]:
        """The ids of a conversation of (role, text), ready for the assistant to answer."""
        ids = []
        for role, text in messages:
            ids.append(_MARKERS.get(role, 9))
            ids += self.encode(text)
        if answer:
            ids.append(_MARKERS["assistant"])
        return ids

    def _learn(self, piece: str) -> int:
        token = self._word_id(piece)
        if token is None:
            token = SPECIAL + crc32(piece.encode("utf-8", "surrogatepass")) % (self.vocabulary - SPECIAL)
        if len(self._ids) >= _CACHE_LIMIT:
            self._ids.clear()
        self._ids[piece] = token
        return token

    def _word_id(self, piece: str) -> int | None:
        if len(piece) != 7 or piece[0] != " ":
            return None
        code = 0
        for start in (1, 3, 5):
            index = _SYLLABLE_INDEX.get(piece[start : start + 2])
            if index is None:
                return None
            code = code * 100 + index
        token = code * _GATHER % _WORDS
        return token if SPECIAL <= token < self.vocabulary else None
