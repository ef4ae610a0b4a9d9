"""Counting a model's prompts here, for as long as that agrees with what its engine counts."""

from __future__ import annotations

from hashlib import blake2b

from msgspec import Struct

from ._texts import PromptTexts
from ._tokenizer import Tokenizer

AGREEMENTS = 3
"""So many prompts of different lengths have to agree on a shape's tokens before it is counted here."""
SHAPES_MAX = 4096
KNOWN_MAX = 16_384
"""Texts whose counts are remembered, in each of two generations: some 2 MB."""
KNOWN_FROM_CHARS = 256
"""A shorter text is counted as fast as it is looked up."""


class _Around(Struct):
    """The tokens around the texts of one shape. `seen` are the texts' tokens in the prompts that agree on it."""

    tokens: int
    seen: set[int]


class LocalCounts:
    """One model's tokenizer, and what has been learnt of its template. `disagreed` is why it is not used any more,
    empty while it is. `tokens` may run in any thread; all else belongs to one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.disagreed = ""
        self._tokenizer = tokenizer
        self._shapes: dict[bytes, _Around] = {}
        self._known: dict[bytes, int] = {}
        self._known_before: dict[bytes, int] = {}

    def tokens(self, prompt: PromptTexts) -> int | None:
        """The tokens of its texts alone; None where one cannot be counted here. A text is counted once: a conversation
        that goes on costs its last message."""
        if not all(map(self._tokenizer.can_count, prompt.texts)):
            return None
        return sum(map(self._tokens_of, prompt.texts))

    def total(self, prompt: PromptTexts, tokens: int) -> int | None:
        """The tokens of the whole prompt, whose texts have `tokens`; None while too little is known of its shape."""
        around = self._shapes.get(prompt.shape)
        if self.disagreed or around is None or len(around.seen) < AGREEMENTS:
            return None
        return tokens + around.tokens

    def learn(self, prompt: PromptTexts, tokens: int, counted: int) -> None:
        """The engine has counted `counted` tokens for a prompt whose texts have `tokens` here."""
        around = self._shapes.get(prompt.shape)
        if around is None:
            if len(self._shapes) >= SHAPES_MAX:
                del self._shapes[next(iter(self._shapes))]
            around = self._shapes[prompt.shape] = _Around(counted - tokens, set())
        if counted - tokens != around.tokens or around.tokens < 0:
            self.disagreed = (
                f"the engine counted {counted} tokens for a prompt of {prompt.length} characters, and here it has "
                f"{tokens} and {max(0, around.tokens)} around them"
            )
        elif len(around.seen) < AGREEMENTS:
            around.seen.add(tokens)

    def _tokens_of(self, text: str) -> int:
        if len(text) < KNOWN_FROM_CHARS:
            return self._tokenizer.count(text)
        key = blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        count = self._known.get(key)
        if count is not None:
            return count
        count = self._known_before.get(key)
        if count is None:
            count = self._tokenizer.count(text)
        if len(self._known) >= KNOWN_MAX:
            self._known_before, self._known = self._known, {}
        self._known[key] = count
        return count
