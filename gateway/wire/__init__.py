"""OpenAI's bytes: request view, body edits, SSE scanner, usage readers. No I/O: bytes in, bytes and values out."""

from ._continuable import ContinuableScanner
from ._continuation import Continuation
from ._ending import length_end, with_cost
from ._first_event import FIRST_EVENT_MAX_BYTES, first_event_is_whole, in_band_error
from ._prompt_text import prompt_text
from ._readers import read_answer
from ._requests import Endpoint, RequestView, parse
from ._splice import add_fields, ask_usage, end_with_field, set_fields
from ._sse import StreamScanner, scanner_for
from ._texts import answer_texts
from ._timings import TimingsScanner, timings_scanner_for
from ._usage import NO_USAGE, Usage

__all__ = [
    "FIRST_EVENT_MAX_BYTES",
    "NO_USAGE",
    "ContinuableScanner",
    "Continuation",
    "Endpoint",
    "RequestView",
    "StreamScanner",
    "TimingsScanner",
    "Usage",
    "add_fields",
    "answer_texts",
    "ask_usage",
    "end_with_field",
    "first_event_is_whole",
    "in_band_error",
    "length_end",
    "parse",
    "prompt_text",
    "read_answer",
    "scanner_for",
    "set_fields",
    "timings_scanner_for",
    "with_cost",
]
