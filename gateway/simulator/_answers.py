"""What an answer says and how long it is: pseudo-random, the same for the same seed, made token by token on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ._tokenizer import END, SPECIAL

_MASK: Final = (1 << 64) - 1
_SPREAD: Final = 0.25
"""Standard deviation of the logarithm of lengths: four in five answers are within 1.4 times the median."""


def mix(value: int) -> int:
    """64 well mixed bits of an integer (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def seed_of(ids: Sequence[int], seed: int | None, index: int) -> int:
    """The seed of one sample: of the prompt, the request's own seed if it has one, and the sample's number."""
    return mix(hash(tuple(ids[-4096:])) ^ mix((seed or 0) * 1024 + index) ^ len(ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample's tokens. `length` counts the end token, as vLLM's usage does, when the answer ends by itself."""

    seed: int
    length: int
    ends_itself: bool
    vocabulary: int

    @classmethod
    def plan(
        cls, *, seed: int, median: int, max_tokens: int, min_tokens: int, ignore_eos: bool, vocabulary: int
    ) -> Answer:
        """Decide the length: lognormal around the median, at least `min_tokens` and an end, at most `max_tokens`."""
        # Box and Muller; the low bits of one hash and the high bits of it are independent enough for lengths.
        bits = mix(seed ^ 0x5EED)
        radius = math.sqrt(-2.0 * math.log(((bits >> 32) + 1) / 4294967297.0))
        normal = radius * math.cos(2.0 * math.pi * (bits & 0xFFFFFFFF) / 4294967296.0)
        natural = max(2, min_tokens + 1, round(median * math.exp(_SPREAD * normal)))
        ends_itself = not ignore_eos and natural <= max_tokens
        return cls(
            seed=seed,
            length=natural if ends_itself else max_tokens,
            ends_itself=ends_itself,
            vocabulary=vocabulary,
        )

    def after(self, tokens: int) -> Answer:
        """What is left of it after so many tokens; at least one."""
        if not tokens:
            return self
        return replace(self, seed=self.seed + tokens, length=max(1, self.length - tokens))

    def token_at(self, index: int) -> int:
        """Id of the token with that index, the end token included."""
        if self.ends_itself and index == self.length - 1:
            return END
        return SPECIAL + mix(self.seed + index) % (self.vocabulary - SPECIAL)
