"""Refusals surface as the exception class OpenAI's SDK has for them, with a code, a parameter and the request's id."""

from __future__ import annotations

from collections.abc import Callable

import openai
import pytest

from tests.conformance.sdk.conftest import MODEL, Served

HELLO = [{"role": "user", "content": "Hello"}]


def test_unknown_key_is_an_authentication_error(served: Served) -> None:
    """401 `invalid_api_key`."""
    with (
        openai.OpenAI(base_url=served.base_url, api_key="mtok-nobody-xyz") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id


@pytest.mark.parametrize("model", ["no-such-model", "hidden"])
def test_missing_and_forbidden_model_are_the_same_not_found_error(client: openai.OpenAI, model: str) -> None:
    """404 `model_not_found`: a tenant cannot find out which models others have."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=model, messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert str(caught.value).count(model) == 1
    assert caught.value.request_id


def test_unknown_path_is_a_not_found_error(client: openai.OpenAI) -> None:
    """404 in OpenAI's shape, not a page of the web server."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.list()
    assert caught.value.code == "unknown_url"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"


BAD: dict[str, tuple[str | None, Callable[[openai.OpenAI], object]]] = {
    "no messages": ("messages", lambda c: c.chat.completions.create(model=MODEL, messages=[])),
    "max_tokens 0": ("max_tokens", lambda c: c.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=0)),
    "n 0": ("n", lambda c: c.chat.completions.create(model=MODEL, messages=HELLO, n=0)),
    "wrong type": (
        "stream_options",
        lambda c: c.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"stream_options": 3}),
    ),
    "refused by the engine": (
        "temperature",
        lambda c: c.chat.completions.create(model=MODEL, messages=HELLO, temperature=-1),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_request_names_its_parameter(client: openai.OpenAI, what: str) -> None:
    """400 with `param`, whether the gateway or the engine found it."""
    param, call = BAD[what]
    with pytest.raises(openai.BadRequestError) as caught:
        call(client)
    assert caught.value.param == param
    assert caught.value.code == "invalid_request"
    assert caught.value.request_id


@pytest.mark.parametrize("stream", [False, True])
def test_long_prompt_is_a_bad_request_with_both_counts(client: openai.OpenAI, stream: bool) -> None:
    """400 `context_length_exceeded`, before a stream begins."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 6000}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "4096" in caught.value.message


def test_rate_limit_is_a_rate_limit_error_with_its_headers(served: Served) -> None:
    """429 `rate_limit_exceeded` says when to come back; the limits are on every answer."""
    with openai.OpenAI(base_url=served.base_url, api_key=served.keys["hurried"], max_retries=0) as client:
        first = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=2)
        assert first.headers["x-ratelimit-limit-requests"] == "1"
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    headers = caught.value.response.headers
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.request_id
    assert 0 < float(headers["retry-after-ms"]) <= 60_000
    assert 0 < float(headers["retry-after"]) <= 60
    assert "x-ratelimit-reset-requests" in headers


def test_spent_budget_is_a_rate_limit_error_that_is_not_retried(served: Served) -> None:
    """429 `insufficient_quota`: the SDK, told not to, sends the request once."""
    before = served.usage("broke")["totals"]["refused"].get("insufficient_quota", 0)
    with (
        openai.OpenAI(base_url=served.base_url, api_key=served.keys["broke"], max_retries=5) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=100)
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"
    totals = served.usage("broke")["totals"]
    assert totals["refused"] == {"insufficient_quota": before + 1}
    assert totals["requests"] == totals["output_tokens"] == 0
