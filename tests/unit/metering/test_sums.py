"""Usage sums of a batch of events."""

from __future__ import annotations

from msgspec import structs

from gateway.metering import Dimensions, UsageEvent, dimensions, split_field, sum_field
from gateway.metering._sums import usage_sums
from gateway.wire import Usage

DAY_MS = 1_789_948_800_000


def event(
    ended_ms: int, *, model: str = "tiny", key: str = "ci", refused: str = "", estimated: bool = False
) -> UsageEvent:
    return UsageEvent(
        id="r",
        tenant="acme",
        key=key,
        model=model,
        endpoint="chat",
        status="refused" if refused else "client_gone",
        code=refused,
        usage=Usage(input_tokens=10, input_cached_tokens=4, output_tokens=3),
        estimated=estimated,
        cost_nanousd=7,
        user="ann",
        tags={"team": "search", "app": "chat & more"},
        arrived_ms=ended_ms,
        ended_ms=ended_ms,
    )


OF_ANN = Dimensions("tiny", "ci", "chat", "client_gone", "", "ann", "app=chat+%26+more&team=search")


def test_a_batch_is_summed_before_it_is_sent() -> None:
    """Two events of one minute and group are one increment per metric and bucket size."""
    second = DAY_MS // 1000
    one = {
        sum_field(OF_ANN, metric): n
        for metric, n in {
            "requests": 2,
            "input": 20,
            "cached": 8,
            "output": 6,
            "cost_nanousd": 14,
            "estimated": 1,
        }.items()
    }
    assert usage_sums([event(DAY_MS), event(DAY_MS + 59_999, estimated=True)]) == [
        ("1m", second, one),
        ("1h", second, one),
        ("1d", second, one),
    ]


def test_an_event_counts_where_it_ended() -> None:
    """Events of two minutes share their hour; those of two hours share their day."""
    sums = usage_sums([event(DAY_MS + 59_999), event(DAY_MS + 60_000), event(DAY_MS + 3_600_000)])
    second = DAY_MS // 1000
    counts = [(size, start - second, fields[sum_field(OF_ANN, "requests")]) for size, start, fields in sums]
    assert counts == [
        ("1m", 0, 1),
        ("1m", 60, 1),
        ("1m", 3600, 1),
        ("1h", 0, 2),
        ("1h", 3600, 1),
        ("1d", 0, 3),
    ]


def test_refused_requests_count_by_code_and_nothing_else() -> None:
    """A refused request has no tokens and no cost, whatever its event says."""
    sums = usage_sums([event(DAY_MS, refused="rate_limit_exceeded"), event(DAY_MS, refused="insufficient_quota")])
    counts = {split_field(field)[1]: n for field, n in sums[2][2].items()}
    assert counts == {"refused:rate_limit_exceeded": 1, "refused:insufficient_quota": 1}


def test_a_correction_adds_its_difference_and_no_request() -> None:
    """What was billed too much comes back in the bucket of the correction; the request is not counted twice."""
    wrong = event(DAY_MS)
    correction = structs.replace(wrong, status="correction", usage=Usage(), cost_nanousd=-7, corrects=wrong.id)
    counts = {split_field(field)[1]: n for field, n in usage_sums([correction])[0][2].items()}
    assert counts == {"cost_nanousd": -7}


def test_parts_of_the_tokens_are_summed_where_an_engine_tells_them() -> None:
    """Reasoning, audio, images and cache writes; and what an engine counts again for each sample."""
    told = Usage(
        input_tokens=10, input_cache_write_tokens=1, input_audio_tokens=2, input_image_tokens=3, output_tokens=9,
        output_reasoning_tokens=4, output_audio_tokens=5,
    )  # fmt: skip
    several = structs.replace(event(DAY_MS), usage=told, samples=3, cost_nanousd=0)
    counts = {split_field(field)[1]: n for field, n in usage_sums([several])[0][2].items()}
    assert counts == {
        "requests": 1,
        "input": 10,
        "output": 9,
        "engine_input": 20,
        "cache_write": 1,
        "input_audio": 2,
        "input_image": 3,
        "reasoning": 4,
        "output_audio": 5,
    }


def test_what_is_split_by_is_read_back() -> None:
    """Every dimension of an event, and each of its tags."""
    group, metric = split_field(sum_field(dimensions(event(DAY_MS, model="org/model|v2")), "refused:x"))
    assert metric == "refused:x"
    assert group == OF_ANN._replace(model="org/model|v2")
    assert (group.tag("app"), group.tag("team"), group.tag("other")) == ("chat & more", "search", "")
