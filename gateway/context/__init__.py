"""Prompt length: bounds, limits, and what to ask an engine's tokenizer. Pure: whoever calls does the asking."""

from ._count import questions, text_questions
from ._limits import ContextLimits, PromptSize, check, estimate, least, most, output_most, prompt_most

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
    "text_questions",
]
