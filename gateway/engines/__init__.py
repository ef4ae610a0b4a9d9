"""Engines' dialects with one face: usage, errors, metrics, health, tokenizers, what a body may hold. Pure."""

from ._body import engine_body
from ._dialect import About, Dialect, EngineName, Load, Question
from ._metrics import Meaning, MetricsPage, Series
from ._refusals import engine_refusal
from ._registry import DIALECTS, dialect_of

__all__ = [
    "DIALECTS",
    "About",
    "Dialect",
    "EngineName",
    "Load",
    "Meaning",
    "MetricsPage",
    "Question",
    "Series",
    "dialect_of",
    "engine_body",
    "engine_refusal",
]
