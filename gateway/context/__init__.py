"""Prompt length: bounds and limits, and tokenizers of our own. Pure: whoever calls does the asking."""

from ._limits import (
    ContextLimits,
    PromptSize,
    bounded,
    check,
    estimate,
    granted,
    least,
    most,
    output_most,
    prompt_most,
    surely_fits,
)
from ._local import LocalCounts
from ._merge import limits_for
from ._texts import PromptTexts, prompt_texts
from ._tokenizer import Tokenizer, UnsupportedTokenizer, load_tokenizer

__all__ = [
    "ContextLimits",
    "LocalCounts",
    "PromptSize",
    "PromptTexts",
    "Tokenizer",
    "UnsupportedTokenizer",
    "bounded",
    "check",
    "estimate",
    "granted",
    "least",
    "limits_for",
    "load_tokenizer",
    "most",
    "output_most",
    "prompt_most",
    "prompt_texts",
    "surely_fits",
]
