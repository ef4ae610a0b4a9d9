"""What an engine says a request used, in one rule for all endpoints: OpenAI's."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens of one request, as OpenAI counts: `input_tokens` and `output_tokens` are everything, the others are parts
    of them that an engine may tell apart. Absent is 0.

    `input_cache_write_tokens` were written to a cache on request (Anthropic's `cache_creation_input_tokens`).
    """

    input_tokens: int = 0
    input_cached_tokens: int = 0
    input_cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_tokens: int = 0
    output_reasoning_tokens: int = 0
    output_audio_tokens: int = 0

    @property
    def has_parts(self) -> bool:
        """Whether the engine told more apart than cached input."""
        return bool(
            self.input_cache_write_tokens
            or self.input_audio_tokens
            or self.input_image_tokens
            or self.output_reasoning_tokens
            or self.output_audio_tokens
        )

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()


def sum_usage(prompts: Iterable[Usage], answers: Iterable[Usage]) -> Usage:
    """The input of `prompts` and the output of `answers`, added up."""
    total = dict.fromkeys(Usage.__struct_fields__, 0)
    for reports, kind in ((prompts, "input_"), (answers, "output_")):
        for report in reports:
            for name in Usage.__struct_fields__:
                if name.startswith(kind):
                    total[name] += getattr(report, name)
    return Usage(**total)
