"""OpenAI's bytes: request view, body edits, SSE scanner, usage readers, rate-limit headers. No I/O."""

from ._usage import NO_USAGE, Usage

__all__ = ["NO_USAGE", "Usage"]
