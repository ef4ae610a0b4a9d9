"""Prompt length: bounds, limits, and what to ask an engine's tokenizer. Pure: whoever calls does the asking."""

from ._count import questions, text_questions
from ._limits import ContextLimits, PromptSize, check, estimate, least, most, output_most, prompt_most, surely_fits

__all__ = [
    "ContextLimits",
    "PromptSize",
    "check",
    "estimate",
    "least",
    "most",
    "output_most",
    "prompt_most",
    "questions",
    "surely_fits",
    "text_questions",
]
