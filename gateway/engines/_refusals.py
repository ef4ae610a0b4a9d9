"""An engine's error answer, told to the client in OpenAI's shape and without the engine's own insides.

Engines write errors in four shapes: OpenAI's `{"error": {"message": ...}}` (vLLM, llama.cpp, hosted providers), the
same without `error` around it (SGLang, TensorRT-LLM), `{"error": "text"}` (TGI), and FastAPI's `{"detail": ...}`
(Triton, and vLLM on some paths). vLLM 0.24 puts Python source paths and excerpts of the request into messages.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from gateway.errors import Refusal


class _Error(Struct):
    message: str = ""
    param: str | None = None
    type: str | None = None


class _Body(Struct):
    error: _Error | str | None = None
    detail: Raw = Raw()
    message: str = ""
    param: str | None = None


_body = msgspec.json.Decoder(_Body)
_LOCATION = re.compile(r"'loc': (\((?:[^()']|'[^']*')*\)|'[^']*')")
_MESSAGE = re.compile(r"""'msg': (?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")""")
_CONTEXT = re.compile(
    r"maximum context length|max_model_len|context window"
    r"|available context size"  # llama.cpp
    r"|model's context length"  # SGLang
    r"|max_num_tokens|max_seq_len"  # TensorRT-LLM
    r"|`?inputs`? (?:tokens \+ `max_new_tokens` )?must (?:be <=|have less than)"  # TGI
    r"|context length",  # hosted providers
    re.IGNORECASE,
)
_UNION_MEMBER = re.compile(r"\.[A-Z]\w*(?=\.|$)")
"""pydantic puts the engine's class names into a location, one for each shape a value might have had."""
_SUFFIX = re.compile(r"\s*\(parameter=[^()]*\)\s*$")
_MAX_MESSAGE = 1000
_MAX_SENTENCES = 4
"""A message of a wrong shape fails against every shape there is: 22 complaints, of which the first few say it."""
_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 422: "invalid_request"}


def engine_refusal(status: int, body: bytes) -> Refusal:
    """The refusal a client reads for an engine's answer of `status` >= 400.

    A 4xx keeps its status and its message, cleaned. An engine's 5xx is 502: it is not the gateway's fault, and a retry
    may find another replica.
    """
    message, param = _told(body)
    if status >= 500:
        return Refusal(status=502, code="engine_error", message="The model's engine failed on this request. Try again.")
    message, param = _cleaned(message, param)
    code = _CODES.get(status, f"engine_{status}")
    if status in (400, 413, 422) and _CONTEXT.search(message):
        status, code = 400, "context_length_exceeded"
    return Refusal(
        status=status, code=code, message=message or f"The engine refused the request ({status}).", param=param
    )


def _told(body: bytes) -> tuple[str, str | None]:
    try:
        told = _body.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "", None
    if isinstance(told.error, str):
        return told.error, None
    if told.error is not None:
        return told.error.message, told.error.param
    if bytes(told.detail)[:1] == b'"':
        return msgspec.json.decode(told.detail, type=str), None
    return told.message, told.param


def _cleaned(message: str, param: str | None) -> tuple[str, str | None]:
    """pydantic's report as the sentences in it; anything from a source path on is dropped."""
    if "validation error" in message and (reasons := _MESSAGE.findall(message)):
        locations = [_location(raw) for raw in _LOCATION.findall(message)]
        told: list[str] = []
        for position, (single, double) in enumerate(reasons):
            where = locations[position] if position < len(locations) else ""
            reason = (single or double).replace("\\'", "'").removeprefix("Value error, ")
            sentence = f"{where}: {reason}" if where else reason
            if sentence not in told:
                told.append(sentence)
        param = _path(param or "") or (locations[0] if locations else None) or None
        message = "; ".join(told[:_MAX_SENTENCES])
    message = message.split("\n\n  File ")[0].split("\n  File ")[0]
    return _SUFFIX.sub("", message)[:_MAX_MESSAGE], param


def _location(raw: str) -> str:
    """`('body', 'messages', 0)` or `'body.messages'` as `messages.0`."""
    parts = re.findall(r"'([^']*)'|(\d+)", raw)
    return _path(".".join(name or number for name, number in parts))


def _path(location: str) -> str:
    """A location as the client knows it: without the body around it and the engine's classes in it."""
    return _UNION_MEMBER.sub("", location.removeprefix("body.").removeprefix("body"))
