"""llama.cpp's streams of chat and text completions: what was used so far stands in `timings`, beside each token.

Asked for with `timings_per_token`; `stream_options` alone brings usage in the last event only. `prompt_n` tokens of the
prompt were computed and `cache_n` were in the slot's cache, so that, unlike vLLM's running usage, these tell both.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ._readers import CompletionUsage, InputDetails
from ._requests import RequestView
from ._sse import CompletionScanner, payload_of, without_member
from ._usage import Usage

_MEMBER = b',"timings":'


class _Timings(Struct, gc=False):
    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0

    def usage(self) -> CompletionUsage:
        return CompletionUsage(
            prompt_tokens=self.cache_n + self.prompt_n,
            completion_tokens=self.predicted_n,
            prompt_tokens_details=InputDetails(cached_tokens=self.cache_n),
        )


class _Choice(Struct):
    index: int = 0


class _Chunk(Struct):
    choices: list[_Choice] = []
    timings: _Timings | None = None


_timings = msgspec.json.Decoder(_Timings)
_chunk = msgspec.json.Decoder(_Chunk)


class TimingsScanner(CompletionScanner):
    """Takes the timings of every event with a choice as that choice's running usage, and cuts them: no client asked.
    Of several answers each ends with a last event of its own, so that their sum is of the timings."""

    def _event(self, block: bytes) -> bytes:
        start = block.rfind(_MEMBER)
        if start < 0 or b'"choices":[{' not in block:
            return super()._event(block)
        if self._single and block.endswith(b"}\n\n"):
            try:
                self._running[0] = _timings.decode(block[start + len(_MEMBER) : -3]).usage()
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                pass  # it does not stand last: the whole event has to be read
            else:
                return block[:start] + b"}\n\n"
        return self._read_timings(block)

    def usage(self) -> Usage | None:
        return super().usage() if self._single else self._running_usage()

    @property
    def usage_is_final(self) -> bool:
        return self.ended if not self._single else super().usage_is_final

    def _read_timings(self, block: bytes) -> bytes:
        payload = payload_of(block)
        try:
            chunk = _chunk.decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return super()._event(block)
        if chunk.timings is None:
            return super()._event(block)
        self._running[chunk.choices[0].index] = chunk.timings.usage()
        return without_member(block, payload, b"timings")


def timings_scanner_for(view: RequestView) -> TimingsScanner:
    """The scanner that fits a chat or text completion."""
    return TimingsScanner(
        cut_usage_event=not view.wants_usage,
        cut_running_usage=not view.wants_running_usage,
        samples=view.samples,
        prompts=view.prompts,
    )
