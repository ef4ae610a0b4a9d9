"""What an engine says a request used, in one rule for all endpoints: OpenAI's."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request. `input_tokens` includes `input_cached_tokens`, as OpenAI counts."""

    input_tokens: int = 0
    input_cached_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()
