"""Tokenizer, answers and samples: what is counted, and what is sent."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator._answers import Answer
from gateway.simulator._params import Sampling
from gateway.simulator._samples import Sample
from gateway.simulator._tokenizer import END, SPECIAL, Tokenizer, word

VOCABULARY = 128_256
TOKENIZER = Tokenizer(VOCABULARY)


def sample(**fields: object) -> Sample:
    """A sample of ten tokens unless told otherwise."""
    sampling = replace(Sampling(max_tokens=10), **fields)  # type: ignore[arg-type]
    answer = Answer(seed=1, length=10, ends_itself=False, vocabulary=VOCABULARY)
    return Sample(job_id="one", index=0, prompt_tokens=3, answer=answer, sampling=sampling)


@given(st.lists(st.integers(SPECIAL, VOCABULARY - 1), max_size=50))
def test_an_answer_is_read_back_as_the_tokens_it_was(ids: list[int]) -> None:
    """Encoding the text of ids gives the ids, so that the next turn finds the answer in the prefix cache."""
    assert TOKENIZER.encode(TOKENIZER.decode(ids)) == ids


@given(st.text(max_size=200))
def test_any_text_has_tokens(text: str) -> None:
    """No text is dropped: there are tokens if and only if there are characters, all within the vocabulary."""
    ids = TOKENIZER.encode(text)
    assert bool(ids) == bool(text)
    assert all(SPECIAL <= one < VOCABULARY for one in ids)
    assert ids == Tokenizer(VOCABULARY).encode(text)


def test_prose_has_about_four_bytes_a_token() -> None:
    """Between 3 and 5, as real tokenizers have it for English."""
    prose = (
        "The gateway decides whether a request may run, where it should run, relays the answer, and writes it down. "
        * 5
    )
    assert 3 <= len(prose) / len(TOKENIZER.encode(prose)) <= 5


def test_answers_end_by_themselves_around_their_median() -> None:
    """Nine in ten unlimited answers have between 90 and 220 tokens, and the same seed gives the same answer."""
    plans = [
        Answer.plan(seed=seed, median=140, max_tokens=4000, min_tokens=0, ignore_eos=False, vocabulary=VOCABULARY)
        for seed in range(1000)
    ]
    assert sum(90 <= plan.length <= 220 for plan in plans) > 900
    assert all(plan.ends_itself and plan.token_at(plan.length - 1) == END for plan in plans)
    assert plans[7].token_at(3) == replace(plans[7]).token_at(3)


def test_a_sample_that_lags_gets_several_tokens_at_once() -> None:
    """Text and count of one piece are those of the tokens made since the last one."""
    one = sample()
    for _ in range(4):
        assert not one.push()
    delta = one.take()
    assert delta.text == "".join(word(token) for token in delta.ids)
    assert (len(delta.ids), one.taken, delta.finish_reason) == (4, 4, None)
    for _ in range(6):
        ended = one.push()
    assert ended
    assert (len(one.take().ids), one.taken, one.finish_reason) == (6, 10, "length")


@given(st.integers(0, 9), st.integers(1, 5), st.booleans())
def test_a_stop_string_ends_the_sample_where_it_begins(place: int, length: int, keep: bool) -> None:
    """However the pieces are taken, nothing of the stop string or after it is sent, unless it is asked for."""
    whole = "".join(word(sample().answer.token_at(index)) for index in range(10))
    stop = whole[place * 3 : place * 3 + length]
    expected = whole[: whole.find(stop) + (len(stop) if keep else 0)]
    one = sample(stop=(stop,), keep_stop=keep)
    text = ""
    for _ in range(10):
        ended = one.push()
        text += one.take().text
        if ended:
            break
    assert text == expected
    assert (one.finish_reason, one.stop_reason) == ("stop", stop)


def test_min_tokens_hold_a_stop_back() -> None:
    """A stop string among the first `min_tokens` tokens does not end the sample."""
    one = sample(stop=(" ",), min_tokens=5)
    while not one.push():
        pass
    assert one.tokens == 6
