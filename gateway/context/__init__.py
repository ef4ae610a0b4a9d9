"""Prompt length: bounds, limits, and what to ask an engine's tokenizer. Pure: whoever calls does the asking."""

from ._count import questions, text_questions
from ._limits import (
    ContextLimits,
    PromptSize,
    check,
    estimate,
    granted,
    least,
    most,
    output_most,
    prompt_most,
    surely_fits,
)
from ._merge import limits_for

__all__ = [
    "ContextLimits",
    "PromptSize",
    "check",
    "estimate",
    "granted",
    "least",
    "limits_for",
    "most",
    "output_most",
    "prompt_most",
    "questions",
    "surely_fits",
    "text_questions",
]
