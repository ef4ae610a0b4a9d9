"""Counting prompts: by the model's own tokenizer here where that has proven to agree, else by asking its engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gateway.context import (
    LocalCounts,
    PromptSize,
    PromptTexts,
    Tokenizer,
    UnsupportedTokenizer,
    load_tokenizer,
    prompt_texts,
)
from gateway.engines import Question
from gateway.fleet import Fleet, ModelFleet
from gateway.policy import ModelSpec
from gateway.wire import RequestView

log = logging.getLogger(__name__)

INLINE_CHARS = 8_000
"""Longer prompts are counted in a thread: this is about 1 ms of work, twice what handing over costs at its worst. Rare
letters cost twenty times as much, so that whatever is not ASCII goes there too."""
LEARN_ALL = 256
LEARN_EVERY = 16
"""Answers whose usage is compared with the count here: so many first ones, then one of so many, for ever."""
LEARNING_MAX = 4
"""Comparisons waiting for the thread at a time; further answers teach nothing."""


class PromptCounter:
    """Counts for one worker. Use it as an async context manager; it does all its work on that loop and one thread."""

    def __init__(self, fleet: Fleet, models: Iterable[ModelSpec]) -> None:
        self._fleet = fleet
        self._models = tuple(models)
        self._paths: dict[str, str] = {}
        self._locals: dict[str, LocalCounts] = {}
        self._answers: dict[str, int] = {}
        self._learning: set[asyncio.Future[int | None]] = set()
        self._loading: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def __aenter__(self) -> PromptCounter:
        self.use(self._models)
        await asyncio.gather(*self._loading)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._loading:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def use(self, models: Iterable[ModelSpec]) -> None:
        """From now on these are the models. New tokenizers are read in the thread; engines count until then."""
        paths = {model.name: model.tokenizer for model in models if model.tokenizer is not None}
        for name in [name for name, path in self._paths.items() if paths.get(name) != path]:
            self._locals.pop(name, None)
        new = {name: path for name, path in paths.items() if self._paths.get(name) != path}
        self._paths = paths
        for name, path in new.items():
            task = asyncio.create_task(self._load(name, path), name=f"tokenizer-{name}")
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)

    async def _load(self, name: str, path: str) -> None:
        try:
            loaded: Tokenizer = await self._run(partial(load_tokenizer, Path(path)))
        except UnsupportedTokenizer as error:
            log.error("model %s: its engine counts prompts, since %s cannot be used: %s", name, path, error)
            return
        if self._paths.get(name) == path:
            self._locals[name] = LocalCounts(loaded)

    async def count(self, model: ModelFleet, view: RequestView, body: bytes) -> PromptSize | None:
        """Prompt tokens; None when nobody can tell."""
        local = self._agreeing(model)
        texts = prompt_texts(view, body) if local is not None else None
        if local is None or texts is None:
            return await count_prompt(self._fleet, model, view, body)
        tokens = await self._tokens(local, texts)
        if tokens is None:
            return await count_prompt(self._fleet, model, view, body)
        total = local.total(texts, tokens)
        if total is not None:
            return PromptSize(total=total, longest=total, exact=True)
        size = await count_prompt(self._fleet, model, view, body)
        if size is not None:
            self._learn(model, local, texts, tokens=tokens, counted=size.total)
        return size

    def answered(self, model: ModelFleet, view: RequestView, body: bytes, input_tokens: int) -> None:
        """The engine has told `input_tokens` with its answer: some of them are compared, after the answer has gone."""
        local = self._agreeing(model)
        if local is None:
            return
        number = self._answers[model.spec.name] = self._answers.get(model.spec.name, 0) + 1
        if (number > LEARN_ALL and number % LEARN_EVERY) or len(self._learning) >= LEARNING_MAX:
            return
        texts = prompt_texts(view, body)
        if texts is None:
            return
        counting = asyncio.get_running_loop().run_in_executor(self._thread, local.tokens, texts)
        self._learning.add(counting)
        counting.add_done_callback(partial(self._compare, model, local, texts, input_tokens))

    def _compare(
        self,
        model: ModelFleet,
        local: LocalCounts,
        texts: PromptTexts,
        input_tokens: int,
        counting: asyncio.Future[int | None],
    ) -> None:
        self._learning.discard(counting)
        tokens = None if counting.cancelled() else counting.result()
        if tokens is not None:
            self._learn(model, local, texts, tokens=tokens, counted=input_tokens)

    def _learn(self, model: ModelFleet, local: LocalCounts, texts: PromptTexts, *, tokens: int, counted: int) -> None:
        if local.disagreed:
            return
        local.learn(texts, tokens, counted)
        if local.disagreed:
            log.error("model %s: its tokenizer is not used any more: %s", model.spec.name, local.disagreed)

    def _agreeing(self, model: ModelFleet) -> LocalCounts | None:
        local = self._locals.get(model.spec.name)
        return None if local is None or local.disagreed else local

    async def _tokens(self, local: LocalCounts, texts: PromptTexts) -> int | None:
        if texts.length <= INLINE_CHARS and all(map(str.isascii, texts.texts)):
            return local.tokens(texts)
        return await asyncio.get_running_loop().run_in_executor(self._thread, local.tokens, texts)

    async def _run(self, load: partial[Tokenizer]) -> Tokenizer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, load)


async def count_prompt(fleet: Fleet, model: ModelFleet, view: RequestView, body: bytes) -> PromptSize | None:
    """Prompt tokens by the engine's own tokenizer; None when it cannot tell."""
    counts = await count_texts(fleet, model, model.dialect.questions(view, body, model.spec.engine_name))
    return PromptSize(total=sum(counts), longest=max(counts), exact=True) if counts else None


async def count_texts(fleet: Fleet, model: ModelFleet, asked: Sequence[Question]) -> list[int] | None:
    """The answers to questions to an engine's tokenizer; None when one is missing."""
    told = await asyncio.gather(*(fleet.count_tokens(model, question) for question in asked))
    counts = [count for count in told if count is not None]
    return counts if len(counts) == len(asked) else None
