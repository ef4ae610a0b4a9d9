"""A model's own byte-level BPE tokenizer, read from its `tokenizer.json` into tiktoken, to count with.

What is not known to count the same is refused, with the reason: then the engine's own tokenizer is asked instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import tiktoken
from msgspec import Struct

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How Hugging Face's `ByteLevel` splits where it is told to split by itself."""

_BLANK = re.compile(r"\s+")
COUNTED_CHARS_MAX = 1_000_000
"""Longer texts take seconds of the only thread."""
BLANKS_MAX = 100_000
"""tiktoken panics at a run of white space some three times as long."""


class UnsupportedTokenizer(Exception):
    """Why a tokenizer cannot be counted with here."""


class _Pattern(Struct):
    Regex: str | None = None


class _PreTokenizer(Struct):
    type: str
    add_prefix_space: bool = False
    use_regex: bool = True
    pattern: _Pattern | None = None
    behavior: str = ""
    invert: bool = False
    pretokenizers: list[_PreTokenizer] = []


class _Normalizer(Struct):
    type: str
    normalizers: list[_Normalizer] = []


class _Added(Struct):
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class _Model(Struct):
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    type: str = "BPE"
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class _Kind(Struct):
    type: str = "BPE"
    vocab: object = None


class _AnyFile(Struct):
    model: _Kind


class _File(Struct):
    model: _Model
    added_tokens: list[_Added] = []
    normalizer: _Normalizer | None = None
    pre_tokenizer: _PreTokenizer | None = None


class Tokenizer:
    """Counts texts as the model's tokenizer does, without the tokens that a template or the tokenizer puts around them.
    Counting holds no lock of Python's for most of its time: 1 ms for about 10 kB."""

    def __init__(self, encoding: tiktoken.Encoding, added: Iterable[str], *, composes: bool) -> None:
        """`added` are tokens that are cut out of a text before anything else; `composes`: texts are put into NFC."""
        self._encoding = encoding
        longest_first = sorted(added, key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._composes = composes

    @staticmethod
    def can_count(text: str) -> bool:
        """Whether `count` may be asked about it."""
        return len(text) <= BLANKS_MAX or (len(text) <= COUNTED_CHARS_MAX and not _has_long_blank(text))

    def count(self, text: str) -> int:
        if self._added is None:
            return self._count_plain(text)
        total = end = 0
        for match in self._added.finditer(text):
            total += self._count_plain(text[end : match.start()]) + 1
            end = match.end()
        return total + self._count_plain(text[end:] if end else text)

    def _count_plain(self, text: str) -> int:
        if self._composes and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        return len(self._encoding.encode_ordinary(text)) if text else 0


def _has_long_blank(text: str) -> bool:
    return any(len(blank) > BLANKS_MAX for blank in _BLANK.findall(text))


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a `tokenizer.json`. Takes a second for 128,000 tokens; call it in a thread.

    Raises `UnsupportedTokenizer`, also for a file that cannot be read.
    """
    try:
        content = path.read_bytes()
        kind = msgspec.json.decode(content, type=_AnyFile).model.type
        if kind != "BPE":
            raise UnsupportedTokenizer(f"its model is {kind}, not byte-level BPE")
        file = msgspec.json.decode(content, type=_File)
    except OSError as error:
        raise UnsupportedTokenizer(f"it cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UnsupportedTokenizer(f"it is no tokenizer.json as Hugging Face writes it: {error}") from error
    model = file.model
    for wrong, name in (
        (model.dropout, "dropout"),
        (model.continuing_subword_prefix, "continuing_subword_prefix"),
        (model.end_of_word_suffix, "end_of_word_suffix"),
        (model.byte_fallback, "byte_fallback"),
    ):
        if wrong:
            raise UnsupportedTokenizer(f"its model uses {name}")
    for token in file.added_tokens:
        if token.single_word or token.lstrip or token.rstrip:
            raise UnsupportedTokenizer(
                f"its added token {token.content!r} takes the space around it, or only whole words"
            )
    encoding = _encoding(path.parent.name, _pattern(file.pre_tokenizer), _ranks(model))
    return Tokenizer(
        encoding, (token.content for token in file.added_tokens if token.content), composes=_composes(file.normalizer)
    )


def _encoding(name: str, pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    try:
        return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        raise UnsupportedTokenizer(f"its regular expression cannot be used here: {error}") from error


def _composes(normalizer: _Normalizer | None) -> bool:
    if normalizer is None:
        return False
    steps = normalizer.normalizers if normalizer.type == "Sequence" else [normalizer]
    for step in steps:
        if step.type != "NFC":
            raise UnsupportedTokenizer(f"its normalizer is {step.type}; only NFC is known here")
    return bool(steps)


def _pattern(pre_tokenizer: _PreTokenizer | None) -> str:
    """The regular expression whose matches are encoded one by one."""
    if pre_tokenizer is None:
        raise UnsupportedTokenizer("it has no pre_tokenizer, so it is not byte-level BPE")
    steps = pre_tokenizer.pretokenizers if pre_tokenizer.type == "Sequence" else [pre_tokenizer]
    *splits, last = steps or [pre_tokenizer]
    if last.type != "ByteLevel":
        raise UnsupportedTokenizer(f"its pre_tokenizer ends with {last.type}, not with ByteLevel")
    if last.add_prefix_space:
        raise UnsupportedTokenizer("its pre_tokenizer puts a space before texts (add_prefix_space)")
    if len(splits) + last.use_regex != 1:
        raise UnsupportedTokenizer(f"its pre_tokenizer splits {len(splits) + last.use_regex} times; one is known here")
    if not splits:
        return _GPT2
    split = splits[0]
    if split.type != "Split" or split.behavior != "Isolated" or split.invert:
        raise UnsupportedTokenizer(
            f"its pre_tokenizer is {split.type} {split.behavior}; only Split Isolated is known here"
        )
    if split.pattern is None or split.pattern.Regex is None:
        raise UnsupportedTokenizer("its pre_tokenizer splits by a text, not by a regular expression")
    # What the expression does not match is a piece of its own there, and would be left out by tiktoken.
    return rf"{split.pattern.Regex}|(?:(?!{split.pattern.Regex})[\s\S])+"


def _ranks(model: _Model) -> dict[bytes, int]:
    """Every token that can be made, by when it is: bytes, then merges in their order, then those taken whole."""
    bytes_of = _bytes_of_letters()
    ranks: dict[bytes, int] = {}
    for letter, byte in bytes_of.items():
        if letter not in model.vocab:
            raise UnsupportedTokenizer(f"its vocabulary lacks the byte {byte[0]}, so it is not byte-level BPE")
        ranks[byte] = byte[0]
    try:
        for token in _merged(model.merges):
            ranks.setdefault(b"".join([bytes_of[letter] for letter in token]), len(ranks))
    except KeyError as error:
        raise UnsupportedTokenizer(f"its merges hold {error.args[0]!r}, which stands for no byte") from error
    if model.ignore_merges:
        for token in sorted(model.vocab, key=model.vocab.__getitem__):
            if all(letter in bytes_of for letter in token):
                ranks.setdefault(b"".join([bytes_of[letter] for letter in token]), len(ranks))
    return ranks


def _merged(merges: Iterable[str | tuple[str, str]]) -> Iterator[str]:
    for merge in merges:
        yield merge.replace(" ", "", 1) if isinstance(merge, str) else merge[0] + merge[1]


def _bytes_of_letters() -> dict[str, bytes]:
    """GPT-2's letters for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}
