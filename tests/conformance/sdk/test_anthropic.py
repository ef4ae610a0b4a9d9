"""Anthropic's official SDK on `/v1/messages`, its key in `x-api-key`."""

from __future__ import annotations

import anthropic
import pytest

from tests.conformance.sdk.conftest import MODEL, Served

HELLO = [{"role": "user", "content": "Hello"}]


def test_message(claude: anthropic.Anthropic) -> None:
    """A whole answer."""
    raw = claude.messages.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=9)
    assert raw.headers["x-request-id"]
    answer = raw.parse()
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert answer.usage.output_tokens == 9


def test_stream(claude: anthropic.Anthropic) -> None:
    """The SDK's accumulating stream sees a well-formed one, with usage."""
    with claude.messages.stream(model=MODEL, messages=HELLO, max_tokens=9, system="Be brief.") as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text
    assert final.content[0].type == "text"
    assert final.content[0].text == text
    assert final.usage.output_tokens == 9


def test_count_tokens(claude: anthropic.Anthropic) -> None:
    """Counting is relayed, and agrees with what the answer is billed."""
    counted = claude.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
    usage = claude.messages.create(model=MODEL, messages=HELLO, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_unknown_key_is_an_authentication_error(served: Served) -> None:
    """401 as the SDK's own class."""
    with (
        anthropic.Anthropic(base_url=served.url, api_key="mtok-nobody-xyz", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        client.messages.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert caught.value.status_code == 401


def test_unknown_model_is_a_not_found_error(claude: anthropic.Anthropic) -> None:
    """404 as the SDK's own class."""
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="no-such-model", messages=HELLO, max_tokens=1)


def test_bad_request_error(claude: anthropic.Anthropic) -> None:
    """400 as the SDK's own class."""
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model=MODEL, messages=[], max_tokens=1)


def test_spent_budget_is_a_rate_limit_error(served: Served) -> None:
    """429 as the SDK's own class."""
    with (
        anthropic.Anthropic(base_url=served.url, api_key=served.keys["broke"], max_retries=0) as client,
        pytest.raises(anthropic.RateLimitError),
    ):
        client.messages.create(model=MODEL, messages=HELLO, max_tokens=100)
