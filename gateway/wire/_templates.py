"""What templates and tokenizers make of a prompt's JSON beyond its bytes: bounds, for limits and reservations."""

from __future__ import annotations

import unicodedata
from itertools import accumulate
from typing import Annotated

import msgspec
from msgspec import Meta

TOOLS_TEMPLATE_BYTES = 1024
"""How to call tools, as templates tell it to models; Command R's is the longest that is known, some 700 tokens,
and a bound of tokens is all that this is for."""
SCHEMA_BYTES_MAX = 262_144
"""Longer tools are not measured: they bound nothing."""
INDENT = 4
"""Llama's template writes tools with as many spaces for each level; no known one has more."""
SWITCH_CHARS_MAX = 16
"""Longer texts for a template may be what makes the prompt. `high`, `26 Jul 2025` are none such."""
SWITCHES_MAX = 16

_STEPS = bytes.maketrans(b"[{,]}", b"\x02\x02\x01\x00\x00")
_NO_STRUCTURE = bytes(set(range(256)) - set(b"[{,]}"))

_switches = msgspec.json.Decoder(
    Annotated[
        dict[str, Annotated[str, Meta(max_length=SWITCH_CHARS_MAX)] | float | bool | None],
        Meta(max_length=SWITCHES_MAX),
    ]
    | None
)


def tools_bytes(tools: bytes) -> int | None:
    """What a template may write of tools or of an answer's schema beyond their JSON, with all that it says about them;
    None for what is too long to tell."""
    if len(tools) > SCHEMA_BYTES_MAX:
        return None
    unescaped = tools.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in tools else tools
    structure = b"".join(unescaped.split(b'"')[::2]).translate(_STEPS, _NO_STRUCTURE)
    lines = len(structure)
    # A step is 1 more than the change of depth, so that the depths' sum needs no loop in Python.
    depths = sum(accumulate(structure)) - lines * (lines + 1) // 2
    escapes = 0 if tools.isascii() else len(tools)
    return TOOLS_TEMPLATE_BYTES + len(tools) + escapes + lines + INDENT * depths + tools.count(b":")


def only_switches(template_kwargs: bytes) -> bool:
    """Whether they just choose among what the model's own template can do, and put no texts into it."""
    try:
        _switches.decode(template_kwargs)
    except msgspec.ValidationError:
        return False
    return True


def composing_bytes(prompt: bytes) -> int:
    """How much longer the text gets for tokenizers that compose it (NFC, as Qwen's do): U+1D160 threefold.

    For JSON that has such letters as escapes there is room in those.
    """
    if prompt.isascii():
        return 0
    text = prompt.decode()
    if unicodedata.is_normalized("NFC", text):
        return 0
    return max(0, len(unicodedata.normalize("NFC", text).encode()) - len(prompt))
