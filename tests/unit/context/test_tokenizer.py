"""Counting by a model's own tokenizer.json: the same numbers as Hugging Face's `tokenizers`, or a reason why not.

The files hold a tokenizer trained by `tokenizers` 0.23.3 and its counts of some texts; where that library is installed,
any text is compared with it.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.context import LocalCounts, PromptTexts, Tokenizer, UnsupportedTokenizer, load_tokenizer, prompt_texts
from gateway.wire import Endpoint, parse

FILES = Path(__file__).parent / "tokenizers"
NAMES = ("gpt2", "llama3", "qwen")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXT = st.text(max_size=120) | st.text(alphabet="aeinst <|userbg>_='\n\t09.é\u0301中🙂", max_size=200)


def document(name: str) -> dict[str, Any]:
    return json.loads((FILES / f"{name}.json").read_text())


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path, Any]:
    told = document(request.param)
    path = written(tmp_path_factory.mktemp(request.param), told["tokenizer"])
    return load_tokenizer(path), path, told


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(written(tmp_path_factory.mktemp("gpt2"), document("gpt2")["tokenizer"]))


def test_the_recorded_counts(loaded: tuple[Tokenizer, Path, Any]) -> None:
    """Every text that was recorded has as many tokens here."""
    tokenizer, _, told = loaded
    assert [(text, tokenizer.count(text)) for text, _ in told["counted"]] == [(t, n) for t, n in told["counted"]]


def test_what_would_break_the_counting_is_left_to_the_engine(loaded: tuple[Tokenizer, Path, Any]) -> None:
    """A run of white space that tiktoken panics at, and a text that would hold up all others; shorter ones count."""
    tokenizer, _, _ = loaded
    assert not tokenizer.can_count(" " * 1_000_000)
    assert not tokenizer.can_count("x" * 1_000_001)
    assert tokenizer.can_count("a " * 60_000)
    assert tokenizer.count(" " * 100_000) > 0
    counts = LocalCounts(tokenizer)
    assert counts.tokens(PromptTexts(b"", ("a", "b" + " " * 999_000 + "c"))) is None


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_any_text_has_as_many_tokens_as_by_the_library(loaded: tuple[Tokenizer, Path, Any], text: str) -> None:
    """Where `tokenizers` is installed it is the judge."""
    library = pytest.importorskip("tokenizers")
    tokenizer, path, _ = loaded
    judge = library.Tokenizer.from_file(str(path))
    assert tokenizer.count(text) == len(judge.encode(text, add_special_tokens=False).ids)


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_any_text_has_as_many_tokens_as_by_the_merges(gpt2: Tokenizer, text: str) -> None:
    """Against byte-pair encoding as it is written down: the lowest merge first, the leftmost of equals."""
    content = document("gpt2")["tokenizer"]
    merges = {tuple(pair): rank for rank, pair in enumerate(content["model"]["merges"])}
    added = [token["content"] for token in content["added_tokens"]]
    letters = _letters()

    def pieces(plain: str) -> int:
        total = 0
        for word in regex.findall(GPT2, plain):
            parts = [letters[byte] for byte in word.encode()]
            while pairs := [(merges[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in merges]:
                _, at = min(pairs)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            total += len(parts)
        return total

    cut = regex.split("|".join(map(regex.escape, sorted(added, key=len, reverse=True))), text)
    expected = sum(map(pieces, cut)) + len(cut) - 1
    assert gpt2.count(text) == expected


def _letters() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def changed(**changes: Any) -> dict[str, Any]:
    return document("llama3")["tokenizer"] | changes


def with_model(**changes: Any) -> dict[str, Any]:
    content = document("llama3")["tokenizer"]
    return content | {"model": content["model"] | changes}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def split(**changes: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False} | changes
    return changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [step, BYTES]})


def with_added(**changes: Any) -> dict[str, Any]:
    return changed(added_tokens=[{"id": 0, "content": "<mask>", "special": True} | changes])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": {"type": "Unigram", "vocab": [["a", 0.1]]}}, "its model is Unigram, not byte-level BPE"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
        ({"no": "tokenizer"}, "no tokenizer.json as Hugging Face writes it"),
        (with_model(byte_fallback=True), "byte_fallback"),
        (with_model(dropout=0.1), "dropout"),
        (with_model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (with_model(vocab={"a": 0}), "lacks the byte"),
        (with_model(merges=["▁ a"]), "'▁', which stands for no byte"),
        (changed(normalizer={"type": "NFKC"}), "its normalizer is NFKC"),
        (changed(normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "Lowercase"),
        (changed(pre_tokenizer=None), "has no pre_tokenizer"),
        (changed(pre_tokenizer={"type": "Metaspace"}), "ends with Metaspace"),
        (changed(pre_tokenizer={"type": "Sequence", "pretokenizers": []}), "ends with Sequence"),
        (changed(pre_tokenizer=BYTES), "splits 0 times"),
        (changed(pre_tokenizer=BYTES | {"add_prefix_space": True, "use_regex": True}), "add_prefix_space"),
        (split(behavior="MergedWithNext"), "Split MergedWithNext"),
        (split(invert=True), "Split Isolated"),
        (split(pattern={"String": " "}), "by a text"),
        (split(pattern={"Regex": "(?<open"}), "regular expression cannot be used"),
        (with_added(lstrip=True), "takes the space around it"),
        (with_added(single_word=True), "only whole words"),
    ],
)
def test_what_is_not_known_to_count_the_same_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    """With the reason; nothing is counted by a tokenizer that is only nearly understood."""
    with pytest.raises(UnsupportedTokenizer) as refused:
        load_tokenizer(written(tmp_path, content))
    assert reason in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It may go between the check of the policies and the reading."""
    with pytest.raises(UnsupportedTokenizer, match="cannot be read: No such file"):
        load_tokenizer(tmp_path / "none.json")


# What is around the texts.


class Words(Tokenizer):
    """A token for each word; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def count(self, text: str) -> int:
        self.asked.append(text)
        return len(text.split())


def chat(*texts: str, **fields: Any) -> PromptTexts | None:
    messages = [{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(texts)]
    return of(Endpoint.CHAT, messages=messages, **fields)


def of(endpoint: Endpoint, **fields: Any) -> PromptTexts | None:
    body = json.dumps({"model": "tiny", **fields}).encode()
    return prompt_texts(parse(endpoint, body), body)


def shape(prompt: PromptTexts | None) -> bytes:
    assert prompt is not None
    return prompt.shape


def learnt(counts: LocalCounts, *texts: str, around: int, **fields: Any) -> int | None:
    """The engine counts this chat with so many tokens around its texts; what would be said here before."""
    prompt = chat(*texts, **fields)
    assert prompt is not None
    tokens = counts.tokens(prompt)
    total = counts.total(prompt, tokens)
    counts.learn(prompt, tokens, tokens + around)
    return total


def test_a_shape_is_counted_here_once_three_prompts_agree() -> None:
    """Three of different lengths: the same prompt again proves nothing. Another shape has to be learnt by itself."""
    counts = LocalCounts(Words())
    assert [learnt(counts, "a b", around=7) for _ in range(5)] == [None] * 5
    assert learnt(counts, "a b c", around=7) is None
    assert learnt(counts, "a", around=7) is None
    assert learnt(counts, "a b c d", around=7) == 11
    assert learnt(counts, "a b c d", "e", "f", around=15) is None
    assert learnt(counts, "a b", around=30, tools=[{"type": "function"}]) is None
    assert not counts.disagreed


def test_one_disagreement_ends_counting_here() -> None:
    """Also after many agreements, and for every shape."""
    counts = LocalCounts(Words())
    for text in ("a", "a b", "a b c"):
        learnt(counts, text, around=7)
    assert learnt(counts, "a b c d", around=8) == 11
    assert "the engine counted 12 tokens for a prompt of 7 characters, and here it has 4 and 7" in counts.disagreed
    assert learnt(counts, "a", around=7) is None
    assert learnt(LocalCounts(Words()), "a", around=-1) is None


@given(turns=st.lists(st.text(alphabet="ab ", min_size=300, max_size=400), min_size=1, max_size=6, unique=True))
def test_a_conversation_that_goes_on_is_counted_once(turns: list[str]) -> None:
    """Each turn repeats all before it, and costs its own text alone."""
    words = Words()
    counts = LocalCounts(words)
    for end in range(1, len(turns) + 1):
        prompt = PromptTexts(b"", tuple(turns[:end]))
        assert counts.tokens(prompt) == sum(len(turn.split()) for turn in turns[:end])
    assert words.asked == turns


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two generations: what is still asked for stays, the rest goes."""
    monkeypatch.setattr("gateway.context._local.KNOWN_MAX", 4)
    words = Words()
    counts = LocalCounts(words)
    texts = [f"{number} " * 200 for number in range(40)]
    for text in texts:
        counts.tokens(PromptTexts(b"", (texts[0], text)))
    assert words.asked.count(texts[0]) == 1
    counts.tokens(PromptTexts(b"", (texts[1],)))
    assert words.asked.count(texts[1]) == 2


def test_what_says_nothing_about_the_prompt_is_not_in_its_shape() -> None:
    """Sampling and limits may differ; tools, template arguments and fields nobody knows may not."""
    plain = shape(chat("a"))
    assert plain == shape(chat("b c", temperature=1, max_tokens=5, stream=True, n=2, user="x"))
    others = [
        shape(prompt)
        for prompt in (
            chat("a", "b"),
            chat("a", tools=[{}]),
            chat("a", tools=[{"a": 1}]),
            chat("a", chat_template_kwargs={"enable_thinking": False}),
            chat("a", new_field=1),
            chat("a", new_field=2),
            of(Endpoint.CHAT, messages=[{"role": "system", "content": "a"}]),
            of(Endpoint.CHAT, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}]),
            of(Endpoint.COMPLETIONS, prompt="a"),
            of(Endpoint.COMPLETIONS, prompt="a", add_special_tokens=False),
            of(Endpoint.EMBEDDINGS, input="a"),
        )
    ]
    assert len({plain, *others}) == len(others) + 1


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": " a"}]}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": ""}]}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": "a", "name": "x"}]}),
        (Endpoint.CHAT, {"messages": [{"role": "assistant", "content": "<think>x</think>a"}]}),
        (Endpoint.CHAT, {"messages": [{"role": "assistant", "tool_calls": []}]}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": "a"}], "chat_template": "x"}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": "a"}], "truncate_prompt_tokens": 5}),
        (Endpoint.COMPLETIONS, {"prompt": ["a", "b"]}),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2]}),
        (Endpoint.RESPONSES, {"input": "a"}),
    ],
)
def test_prompts_whose_tokens_may_not_add_up(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    """Those are the engine's to count: templates trim, cut and rewrite."""
    assert of(endpoint, **fields) is None
