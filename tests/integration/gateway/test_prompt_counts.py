"""Counting near a limit: by the engine until the model's own tokenizer has proven to agree, and told in a header."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.context import Tokenizer, load_tokenizer
from gateway.policy import PolicyError
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine, as_json
from tests.integration.gateway.serving import Answer, Served

TOKENIZERS = Path(__file__).parents[2] / "unit" / "context" / "tokenizers"
AROUND = 5
TOTAL = 100


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads((TOKENIZERS / "llama3.json").read_text())["tokenizer"]))
    return path


@pytest.fixture
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_path)


def text_of(words: int) -> str:
    return " ".join(["word"] * words)


async def ask(served: Served, engine: Engine, text: str, counted: int) -> Answer:
    """One chat, for which the engine's tokenizer and its answer's usage say `counted`."""
    engine.prompt_tokens = counted
    usage = {"prompt_tokens": counted, "completion_tokens": 1, "total_tokens": counted + 1}
    engine.script = as_json({"choices": [], "usage": usage})
    return await served.post({"model": "tiny", "messages": [{"role": "user", "content": text}]})


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


async def test_the_tokenizer_takes_over_from_the_engine(
    engine: Engine, start: Start, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    """Three counts of the engine agree; the fourth prompt is counted here, exactly, and bounded by that count."""
    served = await start(engine, tokenizer=str(tokenizer_path), context={"max_total_tokens": TOTAL, "on_excess": "cap"})
    lengths = [3, 5, 8, 11, 20]
    for number, words in enumerate(lengths):
        exact = tokenizer.count(text_of(words)) + AROUND
        answer = await ask(served, engine, text_of(words), exact)
        assert answer.status == 200
        assert answer.headers["x-mtok-prompt-tokens"] == f"{exact}; exact"
        assert engine.received[-1].json["max_tokens"] == TOTAL - exact
        assert len(engine.tokenized) <= 3
        assert number >= 3 or engine.tokenized
    asked = len(engine.tokenized)
    engine.prompt_tokens = None
    refused = await served.post({"model": "tiny", "messages": [{"role": "user", "content": text_of(400)}]})
    assert refused.status == 400
    assert f"your prompt has {tokenizer.count(text_of(400)) + AROUND} tokens" in refused.error["message"]
    assert len(engine.tokenized) == asked


async def test_answers_teach_it_too(engine: Engine, start: Start, tokenizer_path: Path, tokenizer: Tokenizer) -> None:
    """Prompts far from every limit are not counted for themselves; the usage in their answers is compared afterwards,
    so that the first prompt near a limit needs no engine."""
    served = await start(engine, tokenizer=str(tokenizer_path), limits={"max_input_tokens": 2000})
    for words in (3, 5, 8):
        answer = await ask(served, engine, text_of(words), tokenizer.count(text_of(words)) + AROUND)
        assert "x-mtok-prompt-tokens" not in answer.headers
    lifecycle = served.gateway._lifecycle
    assert lifecycle is not None
    await until(lambda: not lifecycle.counter._learning)
    engine.prompt_tokens = None
    exact = tokenizer.count(text_of(600)) + AROUND
    answer = await ask(served, engine, text_of(600), exact)
    assert answer.headers["x-mtok-prompt-tokens"] == f"{exact}; exact"
    assert engine.tokenized == []


async def test_one_disagreement_gives_counting_back_to_the_engine(
    engine: Engine, start: Start, tokenizer_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """A tokenizer that is not the model's is noticed by its numbers and said once; the engine counts from then on."""
    served = await start(engine, tokenizer=str(tokenizer_path), context={"max_total_tokens": TOTAL, "on_excess": "cap"})
    with caplog.at_level(logging.ERROR):
        for words, more in ((3, 0), (5, 1), (8, 0), (9, 3)):
            exact = tokenizer.count(text_of(words)) + AROUND + more
            answer = await ask(served, engine, text_of(words), exact)
            assert answer.headers["x-mtok-prompt-tokens"] == f"{exact}; exact"
    assert len(engine.tokenized) == 4
    said = [record.getMessage() for record in caplog.records if "is not used any more" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("model tiny: its tokenizer is not used any more: the engine counted")


async def test_a_long_prompt_is_counted_in_the_thread(
    engine: Engine, start: Start, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    """Text of 40 kB and the same count."""
    served = await start(engine, tokenizer=str(tokenizer_path), context_tokens=100_000)
    for words in (3, 5, 8):
        await ask(served, engine, text_of(words), tokenizer.count(text_of(words)) + AROUND)
    lifecycle = served.gateway._lifecycle
    assert lifecycle is not None
    await until(lambda: not lifecycle.counter._learning)
    text = text_of(30_000)
    exact = tokenizer.count(text) + AROUND
    answer = await ask(served, engine, text, exact)
    assert answer.headers["x-mtok-prompt-tokens"] == f"{exact}; exact"


async def test_what_nobody_can_count_is_called_estimated(engine: Engine, start: Start) -> None:
    """An engine without `/tokenize` and no tokenizer here."""
    served = await start(engine, context={"max_total_tokens": 1000})
    engine.script = as_json({})
    engine.prompt_tokens = None
    answer = await served.post({"model": "tiny", "messages": [{"role": "user", "content": "x"}]})
    assert answer.status == 200
    assert answer.headers["x-mtok-prompt-tokens"].endswith("; estimated")


async def test_a_tokenizer_of_another_kind_leaves_counting_to_the_engine(
    engine: Engine, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told why at the start, and the gateway serves."""
    path = tmp_path / "unigram.json"
    path.write_text('{"model": {"type": "Unigram", "vocab": []}}')
    with caplog.at_level(logging.ERROR):
        served = await start(engine, tokenizer=str(path), context={"max_total_tokens": TOTAL})
    said = "its engine counts prompts, since"
    assert [record for record in caplog.records if said in record.getMessage() and "Unigram" in record.getMessage()]
    answer = await ask(served, engine, "x", 6)
    assert answer.headers["x-mtok-prompt-tokens"] == "6; exact"
    assert len(engine.tokenized) == 1


async def test_a_tokenizer_that_is_not_there_is_a_policy_error(engine: Engine, start: Start, tmp_path: Path) -> None:
    """With what to do about it, before anything is served."""
    for path, said in (
        (tmp_path / "none.json", "is not there: copy the model's tokenizer.json to it, or leave the field out"),
        (tmp_path, f"is a directory: write {tmp_path / 'tokenizer.json'}"),
        (Path("tokenizer.json"), "must be the whole path"),
    ):
        with pytest.raises(PolicyError) as refused:
            await start(engine, tokenizer=str(path))
        assert "models.tiny.tokenizer: " in str(refused.value)
        assert said in str(refused.value)
