"""The dialect of each engine, by the name that policies give it."""

from __future__ import annotations

from typing import Final

from ._dialect import Dialect
from ._llamacpp import LlamaCpp
from ._openai import OpenAI
from ._sglang import SGLang
from ._tgi import TGI
from ._triton import Triton
from ._trtllm import TensorRTLLM
from ._vllm import VLLM

DIALECTS: Final[dict[str, Dialect]] = {
    dialect.name: dialect for dialect in (VLLM(), SGLang(), TGI(), TensorRTLLM(), LlamaCpp(), Triton(), OpenAI())
}


def dialect_of(engine: str) -> Dialect:
    """The engine's ways. Raises `KeyError` for a name that no policy may have."""
    return DIALECTS[engine]
