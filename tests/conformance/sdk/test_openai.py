"""OpenAI's official Python SDK, pointed at the gateway, works as it does against OpenAI."""

from __future__ import annotations

from itertools import pairwise

import openai
import pytest

from tests.conformance.sdk.conftest import MODEL, Served

HELLO = [{"role": "user", "content": "Hello"}]


def test_chat(client: openai.OpenAI) -> None:
    """A chat answer has text, a reason to end, and usage that adds up."""
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7


def test_chat_has_as_many_answers_as_asked_for(client: openai.OpenAI) -> None:
    """`n` answers come with the usage of all of them."""
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15


def test_stream_without_usage_has_none(client: openai.OpenAI) -> None:
    """The gateway asks the engine for usage in every chunk; a client that did not ask sees none of it."""
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=6, stream=True))
    assert all(len(chunk.choices) == 1 for chunk in chunks), "a chunk without choices breaks clients that index them"
    assert all(chunk.usage is None and "usage" not in chunk.model_fields_set for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_stream_with_usage_ends_with_it(client: openai.OpenAI) -> None:
    """`include_usage` gives one last chunk without choices, and usage nowhere else."""
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_running_usage_has_it_in_every_chunk(client: openai.OpenAI) -> None:
    """A client that asks for vLLM's `continuous_usage_stats` itself keeps them."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=6, stream=True, extra_body={"stream_options": options}
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert all(later >= earlier for earlier, later in pairwise(counts))
    assert counts[-1] == 6


def test_stream_helper(client: openai.OpenAI) -> None:
    """The SDK's own accumulating stream sees a well-formed one."""
    with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == text


def test_raw_response_carries_the_request_id(client: openai.OpenAI) -> None:
    """`with_raw_response` shows the gateway's headers; the id is the client's own when it sent one."""
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=2, extra_headers={"x-request-id": "my-own-id-1"}
    )
    assert raw.headers["x-request-id"] == "my-own-id-1"
    assert raw.headers["content-type"] == "application/json"
    answer = raw.parse()
    assert answer._request_id == "my-own-id-1"
    assert answer.choices


def test_streaming_response(client: openai.OpenAI) -> None:
    """`with_streaming_response` reads the relayed bytes as they come."""
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO, max_tokens=3, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_completions(client: openai.OpenAI) -> None:
    """Several prompts in one call, streamed and not."""
    answer = client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=4)
    assert len(answer.choices) == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    texts: dict[int, str] = {}
    for chunk in client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=4, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
        assert chunk.choices
    assert len(texts) == 2


def test_responses(client: openai.OpenAI) -> None:
    """The Responses API, whole and as typed events that end in `response.completed`."""
    answer = client.responses.create(model=MODEL, input="Hello", max_output_tokens=8)
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens == 8
    events = list(client.responses.create(model=MODEL, input="Hello", max_output_tokens=8, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.usage is not None


def test_embeddings(client: openai.OpenAI) -> None:
    """Embeddings of several inputs, with the tokens they took."""
    answer = client.embeddings.create(model=MODEL, input=["one", "two", "three"])
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert all(item.embedding for item in answer.data)
    assert answer.usage.prompt_tokens > 0


def test_models(client: openai.OpenAI) -> None:
    """A tenant sees the models it may use, aliases included, and no other."""
    assert {model.id for model in client.models.list()} == {MODEL, "small"}
    assert client.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("hidden")
    assert caught.value.code == "model_not_found"


def test_alias(client: openai.OpenAI) -> None:
    """An alias works like the model's own name."""
    assert client.chat.completions.create(model="small", messages=HELLO, max_tokens=2).choices


async def test_async(served: Served) -> None:
    """The asynchronous client, whole and streamed."""
    async with openai.AsyncOpenAI(base_url=served.base_url, api_key=served.keys["open"]) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3, stream=True)
        assert [chunk.choices[0].finish_reason async for chunk in stream][-1] == "length"


def test_usage_is_what_the_answers_said(served: Served) -> None:
    """`GET /v1/usage` holds the sums of the answers, streamed ones without visible usage included."""
    with openai.OpenAI(base_url=served.base_url, api_key=served.keys["counted"]) as client:
        whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7, n=2)
        assert whole.usage is not None
        list(client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=6, stream=True))
        told = client.responses.create(model=MODEL, input="Hello", max_output_tokens=5)
        assert told.usage is not None
    totals = served.usage("counted")["totals"]
    assert totals["requests"] == 3
    assert totals["output_tokens"] == 14 + 6 + 5
    assert totals["input_tokens"] == 2 * whole.usage.prompt_tokens + told.usage.input_tokens
