"""The fields of a generation request that the simulator obeys, checked in the order and words of vLLM 0.24."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from ._errors import ApiError, Invalid, out_of_range, stream_options_without_stream
from ._json import Json

Body = Mapping[str, Json]

MAX_LOGPROBS = 20
"""vLLM's default `--max-logprobs`."""
MAX_N = 1024
"""Samples of one prompt; a bound, since each is a sequence of its own."""

_KINDS: dict[str, tuple[type | tuple[type, ...], str, str]] = {
    "str": (str, "string_type", "Input should be a valid string"),
    "list": (list, "list_type", "Input should be a valid list"),
    "int": (int, "int_type", "Input should be a valid integer"),
    "float": ((int, float), "float_type", "Input should be a valid number"),
    "bool": (bool, "bool_type", "Input should be a valid boolean"),
    "dict": (dict, "dict_type", "Input should be a valid dictionary"),
}
_NONE: Mapping[str, str] = {}
_FIELDS = {
    "model": "str",
    "max_tokens": "int",
    "max_completion_tokens": "int",
    "max_output_tokens": "int",
    "min_tokens": "int",
    "n": "int",
    "seed": "int",
    "temperature": "float",
    "top_p": "float",
    "stream": "bool",
    "stream_options": "dict",
    "ignore_eos": "bool",
    "add_generation_prompt": "bool",
    "continue_final_message": "bool",
    "echo": "bool",
    "cache_salt": "str",
    "tools": "list",
    "stop_token_ids": "list",
    "return_token_ids": "bool",
    "top_logprobs": "int",
    "prompt_logprobs": "int",
    "priority": "int",
    "user": "str",
}


def load_body(raw: bytes) -> Body:
    """The request's JSON object, or the error that FastAPI makes of what is not one."""
    if not raw:
        raise Invalid("missing", ("body",), "Field required", None)
    try:
        value = json.loads(raw)
    except json.JSONDecodeError as error:
        raise Invalid(
            "json_invalid", ("body", error.pos), "JSON decode error", {}, f", 'ctx': {{'error': {error.msg!r}}}"
        ) from None
    except (ValueError, RecursionError):  # not UTF-8, a number of thousands of digits, nested without end
        raise ApiError(400, "There was an error parsing the body", kind="Bad Request") from None
    if not isinstance(value, dict):
        raise Invalid(
            "model_attributes_type",
            ("body",),
            "Input should be a valid dictionary or object to extract fields from",
            value,
        )
    return value


def check_types(body: Body, required: Mapping[str, str], optional: Mapping[str, str] = _NONE) -> None:
    """Missing fields first, then types, as far as the simulator reads them; `optional` adds an endpoint's own."""
    for name, kind in required.items():
        if body.get(name) is None:
            if name in body and kind:
                _check(body, name, kind)
            raise Invalid("missing", ("body", name), "Field required", dict(body))
        if kind:
            _check(body, name, kind)
    for name, kind in {**_FIELDS, **optional}.items():
        if body.get(name) is not None:
            _check(body, name, kind)


def _check(body: Body, name: str, kind: str) -> None:
    value = body[name]
    types, error, text = _KINDS[kind]
    wrong = not isinstance(value, types) or (kind in ("int", "float") and isinstance(value, bool))
    if kind == "int" and isinstance(value, float) and value.is_integer():
        wrong = False
    if kind in ("int", "float") and isinstance(value, str):
        try:
            (int if kind == "int" else float)(value)
        except ValueError:
            error, text = f"{kind}_parsing", f"{text}, unable to parse string as {_PARSED[kind]}"
        else:
            wrong = False
    if wrong:
        raise Invalid(error, ("body", name), text, value)

    if name == "stop_token_ids" and (bad := [one for one in cast("list[Json]", value) if type(one) is not int]):
        raise Invalid("int_type", ("body", name, cast("list[Json]", value).index(bad[0])), _KINDS["int"][2], bad[0])


_PARSED = {"int": "an integer", "float": "a number"}


def integer(body: Body, name: str) -> int | None:
    """An optional integer field, already checked."""
    value = body.get(name)
    return None if value is None else int(cast("int | float | str", value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to answer: limits, ends, and what to send along. Counts are tokens."""

    max_tokens: int | None
    min_tokens: int = 0
    n: int = 1
    seed: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    keep_stop: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False
    return_token_ids: bool = False
    cache_salt: str = ""

    @classmethod
    def read(cls, body: Body, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """From a body whose types are checked; refuses what `SamplingParams` refuses."""
        options = body.get("stream_options")
        stream = bool(body.get("stream"))
        if options is not None and not stream:
            raise stream_options_without_stream(dict(body))
        chosen = options if isinstance(options, dict) else {}
        n = integer(body, "n")
        if n is not None and n < 1:
            raise ApiError(400, f"n must be at least 1, got {n}.", late=True)
        if n is not None and n > MAX_N:
            raise ApiError(400, f"n must be at most {MAX_N}, got {n}.", late=True)
        if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
            raise ApiError(
                400,
                f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {MAX_LOGPROBS}",
                param="logprobs",
            )
        if max_tokens is not None and max_tokens < 1:
            raise out_of_range("max_tokens", "at least 1", max_tokens)
        temperature = body.get("temperature")
        if temperature is not None and (degrees := float(cast("float", temperature))) < 0:
            raise out_of_range("temperature", "non-negative", degrees)
        top_p = body.get("top_p")
        if top_p is not None and not 0 < (share := float(cast("float", top_p))) <= 1:
            raise out_of_range("top_p", "in (0, 1]", share)
        min_tokens = integer(body, "min_tokens") or 0
        if max_tokens is not None and min_tokens > max_tokens:
            raise ApiError(400, f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.")
        usage = bool(chosen.get("include_usage"))
        return cls(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            n=n or 1,
            seed=integer(body, "seed"),
            ignore_eos=bool(body.get("ignore_eos")),
            stop=_stops(body.get("stop")),
            stop_token_ids=frozenset(cast("list[int]", body.get("stop_token_ids") or [])),
            keep_stop=bool(body.get("include_stop_str_in_output")),
            stream=stream,
            include_usage=usage,
            continuous_usage=usage and bool(chosen.get("continuous_usage_stats")),
            logprobs=logprobs,
            prompt_logprobs=body.get("prompt_logprobs") is not None
            or (bool(body.get("echo")) and logprobs is not None),
            return_token_ids=bool(body.get("return_token_ids")),
            cache_salt=str(body.get("cache_salt") or ""),
        )


def _stops(value: Json) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(str(one) for one in value if one) if isinstance(value, list) else ()
