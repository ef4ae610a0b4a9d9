"""The request by which another replica goes on: what it says, and where there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.wire import Continuation, Endpoint, parse
from gateway.wire._continuation import continuation
from gateway.wire._delivered import Delivered

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "m", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
IDS = Delivered(ids=b"7,8,9", id_count=3)
TEXT = Delivered(text="Once upon a time \n\n")


def after(
    delivered: Delivered, endpoint: Endpoint = Endpoint.CHAT, *, prompt_ids: bytes = b"1,2", **fields: Any
) -> Continuation | None:
    """How a request with these fields goes on."""
    body = json.dumps((CHAT if endpoint is Endpoint.CHAT else {"model": "m", "stream": True}) | fields).encode()
    told = delivered.id_count or 4
    return continuation(parse(endpoint, body), body, delivered, prompt_ids=prompt_ids, told_tokens=told)


def sent(found: Continuation | None) -> dict[str, Any]:
    assert found is not None
    told: dict[str, Any] = json.loads(found.body)
    return told


def test_by_ids_a_chat_goes_on_as_a_text_completion() -> None:
    """Prompt and answer as the first engine had them, so many tokens less, and the client's own sampling."""
    sampling = {"temperature": 0.7, "seed": 5, "top_k": 3, "logit_bias": {"5": -1}, "cache_salt": "s", "priority": -2}
    found = after(IDS, max_tokens=10, min_tokens=5, metadata={"a": "b"}, user="u", **sampling)
    assert sent(found) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "u",
        **sampling,
        "prompt": [1, 2, 7, 8, 9],
        "max_tokens": 7,
        "min_tokens": 2,
        "return_token_ids": True,
    }
    assert found is not None
    assert (found.by, found.endpoint, found.tokens) == ("token_ids", Endpoint.COMPLETIONS, 3)


@pytest.mark.parametrize(
    ("endpoint", "fields", "left"),
    [
        (Endpoint.CHAT, {}, None),
        (Endpoint.CHAT, {"max_tokens": None}, None),
        (Endpoint.CHAT, {"max_completion_tokens": 5, "max_tokens": 9}, 2),
        (Endpoint.COMPLETIONS, {"prompt": "x"}, 13),
        (Endpoint.COMPLETIONS, {"prompt": "x", "max_tokens": None}, None),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2], "max_tokens": 4}, 1),
    ],
)
def test_as_many_tokens_as_are_left(endpoint: Endpoint, fields: dict[str, Any], left: int | None) -> None:
    """Of the client's own bound, or of the default that it has by not saying any; null where there is none."""
    assert sent(after(IDS, endpoint, **fields))["max_tokens"] == left


def test_by_text_the_answer_begins_with_what_was_said() -> None:
    """Chat templates trim messages: white space at the end is not sent, and may come once more."""
    found = after(TEXT, prompt_ids=b"", max_completion_tokens=10, stop=["END"], temperature=0)
    told = sent(found)
    assert told["messages"] == [*MESSAGES, {"role": "assistant", "content": "Once upon a time"}]
    assert (told["add_generation_prompt"], told["continue_final_message"]) == (False, True)
    assert (told["max_completion_tokens"], told["stop"], told["temperature"]) == (6, ["END"], 0)
    assert found is not None
    assert (found.by, found.endpoint, found.dropped, found.tokens) == ("text", Endpoint.CHAT, " \n\n", 4)


def test_by_text_a_completion_goes_on_after_its_prompt() -> None:
    """Nothing is trimmed there."""
    found = after(TEXT, Endpoint.COMPLETIONS, prompt_ids=b"", prompt="Tell: ", max_tokens=10)
    assert sent(found)["prompt"] == "Tell: Once upon a time \n\n"
    assert sent(found)["max_tokens"] == 6
    assert found is not None
    assert found.dropped == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"structured_outputs": {"regex": "a+"}},
        {"guided_json": {"type": "object"}},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2},
        {"echo": True},
        {"use_beam_search": True},
        {"what_nobody_knows": 1},
    ],
)
@pytest.mark.parametrize("delivered", [IDS, TEXT])
def test_where_it_cannot_be_right_there_is_none(fields: dict[str, Any], delivered: Delivered) -> None:
    """An engine's state beyond tokens cannot be taken along: what is not known to be harmless is not tried."""
    assert after(delivered, prompt_ids=b"1" if delivered is IDS else b"", **fields) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"tools": []},
        {"response_format": {"type": "text"}},
        {"logprobs": False, "top_logprobs": 0, "n": 1, "echo": False},
        {"what_nobody_knows": None, "store": True},
    ],
)
def test_fields_that_ask_for_nothing_special(fields: dict[str, Any]) -> None:
    """Defaults that clients write out do not stand in the way."""
    assert after(IDS, **fields) is not None
    assert after(TEXT, prompt_ids=b"", **fields) is not None


@pytest.mark.parametrize(
    "delivered",
    [
        Delivered(ids=b"7", id_count=1, is_plain=False),
        Delivered(text="x", is_plain=False),
        Delivered(ids=b"7", id_count=1, ended=True),
        Delivered(text="   "),
    ],
)
def test_thoughts_ends_and_nothing_to_go_on_from(delivered: Delivered) -> None:
    """Half a thought or a call, an answer that has ended, and white space alone are not gone on from."""
    assert after(delivered, prompt_ids=b"1" if delivered.ids else b"") is None


def test_an_answer_with_all_its_tokens_has_none_left() -> None:
    assert after(IDS, max_tokens=3) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [*MESSAGES, {"role": "assistant", "content": "On"}], "continue_final_message": True,
         "add_generation_prompt": False},
        {"add_generation_prompt": False},
    ],
)  # fmt: skip
def test_by_text_only_where_the_template_begins_an_answer(fields: dict[str, Any]) -> None:
    """A client that continues a message of its own, or none, has said how messages become text."""
    assert after(TEXT, prompt_ids=b"", **fields) is None


def test_before_the_first_word_it_begins_anew_whatever_was_asked() -> None:
    """The same request: of tools and schemas too, since nothing has been said."""
    body = json.dumps(CHAT | {"response_format": {"type": "json_object"}, "n": 1}).encode()
    nothing = Delivered(nothing=True)
    found = continuation(parse(Endpoint.CHAT, body), body, nothing, prompt_ids=b"", told_tokens=None)
    assert found == Continuation(by="anew", endpoint=Endpoint.CHAT, body=body)
