"""What vLLM 0.24 says when it refuses: the texts, types and shapes of the recorded `err_*.http`."""

from __future__ import annotations

from typing import Final

from ._json import Json, dumps

_SOURCE: Final = '  File "/srv/v/site/vllm/entrypoints/serve/utils/api_utils.py", line 40, in '


class ApiError(Exception):
    """A refusal in vLLM's error shape. `late` ones left the application's own handlers: no `vary`, counted as 5xx."""

    def __init__(
        self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None, late: bool = False
    ) -> None:
        """`kind` is the error's `type`; its `code` is the status."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.late = late

    def body(self) -> bytes:
        """The JSON answered."""
        return dumps(self.as_json())

    def as_json(self) -> Json:
        """The same, not encoded: an error event in a stream carries it too."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status},
        }


class Invalid(Exception):
    """A field that pydantic would not accept; becomes an `ApiError` where the endpoint is known."""

    def __init__(self, kind: str, loc: tuple[str | int, ...], text: str, value: Json, context: str = "") -> None:
        """`kind` and `text` are pydantic's; `context` is the repr of its `ctx`, where it has one."""
        super().__init__(text)
        self.entry = f"{{'type': {kind!r}, 'loc': {loc!r}, 'msg': {text!r}, 'input': {value!r}{context}}}"
        self.param = ".".join(map(str, loc))

    def as_error(self, path: str, function: str) -> ApiError:
        """vLLM's rendering, with its source path and the request in the message."""
        message = f"1 validation error:\n  {self.entry}\n\n{_SOURCE}{function}\n    POST {path} [{self.entry}]"
        return ApiError(400, message, kind="Bad Request", param=self.param)


def stream_options_without_stream(body: Json) -> Invalid:
    """Stream options on an answer that is not streamed."""
    said = "Stream options can only be defined when `stream=True`."
    error = Invalid(
        "value_error",
        ("body",),
        f"Value error, {said} (parameter=stream_options)",
        body,
        f", 'ctx': {{'error': VLLMValidationError({said!r})}}",
    )
    error.param = "stream_options"
    return error


def out_of_range(name: str, rule: str, value: float) -> ApiError:
    """A sampling parameter with a value that vLLM does not take."""
    return ApiError(400, f"{name} must be {rule}, got {value}. (parameter={name}, value={value})", param=name)


def unknown_model(model: str) -> ApiError:
    """404 for a model that is not served here."""
    return ApiError(404, f"The model `{model}` does not exist.", kind="NotFoundError", param="model")


def prompt_too_long(limit: int, prompt_tokens: int, output_tokens: int) -> ApiError:
    """Prompt, or prompt and answer together, over the context."""
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens. However, you requested {output_tokens} output tokens "
        f"and your prompt contains {prompt_tokens} input tokens, for a total of {prompt_tokens + output_tokens} "
        "tokens. Please reduce the length of the input prompt or the number of requested output tokens. "
        f"(parameter=input_tokens, value={prompt_tokens})",
        param="input_tokens",
    )


def output_too_long(limit: int, max_tokens: int) -> ApiError:
    """An answer longer than the context by itself."""
    return ApiError(
        400,
        f"max_tokens={max_tokens} cannot be greater than max_model_len=max_total_tokens={limit}. Please request fewer "
        f"output tokens. (parameter=max_tokens, value={max_tokens})",
        param="max_tokens",
    )
