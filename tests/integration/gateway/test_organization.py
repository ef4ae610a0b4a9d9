"""OpenAI's own usage and costs pages, asked by OpenAI's own SDK."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from openai import AsyncOpenAI, PermissionDeniedError

from gateway.metering import UsageEvent
from gateway.wire import Usage
from tests.integration.gateway.conftest import Start
from tests.integration.gateway.engine import Engine
from tests.integration.gateway.serving import ADMIN_KEY, Served, key_of

DAY_S = 1_789_948_800  # 2026-09-21T00:00:00Z
CHAT = "/v1/chat/completions"


class At:
    """A clock that stands at a moment of that day."""

    def now_ms(self) -> int:
        return (DAY_S + 50_000) * 1000

    def monotonic_s(self) -> float:
        return 0.0


def used(tenant: str, at_s: int, cost_nanousd: int, **said: Any) -> UsageEvent:
    usage = said.pop("usage", Usage(input_tokens=100, input_cached_tokens=60, output_tokens=7))
    said = {"key": tenant, "model": "tiny", "endpoint": CHAT, "status": "ok"} | said
    return UsageEvent(
        id="r",
        tenant=tenant,
        usage=usage,
        cost_nanousd=cost_nanousd,
        arrived_ms=at_s * 1000,
        ended_ms=at_s * 1000,
        **said,
    )


@pytest.fixture
async def served(engine: Engine, start: Start) -> Served:
    """A gateway whose two tenants have used something on two days."""
    served = await start(engine, clock=At())
    write = Usage(input_tokens=50, input_cached_tokens=20, input_cache_write_tokens=10, output_tokens=5)
    for event in (
        used("acme", DAY_S - 10, 1_000_000_001, user="ann"),
        used("acme", DAY_S + 10, 20, user="ann", usage=write),
        used("acme", DAY_S + 20, 300, user="bob", status="client_gone", model="big"),
        used("acme", DAY_S + 30, 4000, endpoint="/v1/embeddings", usage=Usage(input_tokens=9)),
        used("acme", DAY_S + 40, 0, status="refused", code="rate_limit_exceeded"),
        used("rival", DAY_S + 7200, 50_000, model="other"),
    ):
        await served.lifecycle.ledger.record(event)
    await served.booked()
    return served


def sdk(served: Served, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(
        api_key=key, admin_api_key=key, base_url=f"http://127.0.0.1:{served.port}/v1", max_retries=0, timeout=10
    )


async def test_completions_in_openais_format(served: Served) -> None:
    """Every key of the page, the buckets and the results, as dashboards read them."""
    path = f"/v1/organization/usage/completions?start_time={DAY_S - 86_400}"
    answer = await served.get(path)
    assert answer.status == 200, answer.body
    page = answer.json
    nothing_grouped = dict.fromkeys(
        ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source")
    )
    assert page == {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": DAY_S - 86_400,
                "end_time": DAY_S,
                "results": [
                    {
                        "object": "organization.usage.completions.result",
                        "input_tokens": 100,
                        "input_cached_tokens": 60,
                        "input_cache_write_tokens": 0,
                        "input_uncached_tokens": 40,
                        "input_audio_tokens": 0,
                        "input_image_tokens": 0,
                        "output_tokens": 7,
                        "output_audio_tokens": 0,
                        "num_model_requests": 1,
                    }
                    | nothing_grouped
                ],
            },
            {
                "object": "bucket",
                "start_time": DAY_S,
                "end_time": DAY_S + 86_400,
                "results": [
                    {
                        "object": "organization.usage.completions.result",
                        "input_tokens": 150,
                        "input_cached_tokens": 80,
                        "input_cache_write_tokens": 10,
                        "input_uncached_tokens": 60,
                        "input_audio_tokens": 0,
                        "input_image_tokens": 0,
                        "output_tokens": 12,
                        "output_audio_tokens": 0,
                        "num_model_requests": 2,
                    }
                    | nothing_grouped
                ],
            },
        ],
        "has_more": False,
        "next_page": None,
    }
    assert (await served.get(path, if_none_match=answer.headers["etag"])).status == 304


async def test_costs_to_the_last_digit(served: Served) -> None:
    """`value` is a JSON number with all of the sum's digits; what has not a kind of tokens costs all the same."""
    answer = await served.get(f"/v1/organization/costs?start_time={DAY_S - 86_400}")
    amounts = [
        [result["amount"] for result in bucket["results"]]
        for bucket in json.loads(answer.body, parse_float=Decimal)["data"]
    ]
    assert amounts == [
        [{"value": Decimal("1.000000001"), "currency": "usd"}],
        [{"value": Decimal("0.00000432"), "currency": "usd"}],
    ]


async def test_the_sdk_reads_usage(served: Served) -> None:
    """Grouped, filtered and paged, by the official client with a tenant's key."""
    async with sdk(served, served.key) as client:
        ask = client.admin.organization.usage.completions
        page = await ask(start_time=DAY_S, group_by=["user_id", "model", "batch"], bucket_width="1h", limit=5)
        [bucket, *others] = page.data
        assert (len(others), page.has_more) == (4, True)
        seen = [(r.user_id, r.model, r.batch, r.output_tokens) for r in bucket.results]  # type: ignore[union-attr]
        assert seen == [("ann", "tiny", False, 5), ("bob", "big", False, 7)]
        assert page.next_page is not None
        after = await ask(start_time=DAY_S, bucket_width="1h", limit=5, page=page.next_page)
        assert after.data[0].start_time == DAY_S + 5 * 3600
        only = await ask(start_time=DAY_S, models=["big"], user_ids=["bob", "ann"], api_key_ids=["acme"])
        assert [r.num_model_requests for r in only.data[0].results] == [1]  # type: ignore[union-attr]
        assert (await ask(start_time=DAY_S, batch=True)).data[0].results == []
        embeddings = await client.admin.organization.usage.embeddings(start_time=DAY_S)
        assert [r.input_tokens for r in embeddings.data[0].results] == [9]  # type: ignore[union-attr]


async def test_the_sdk_reads_costs_of_all_projects(served: Served) -> None:
    """The admin key sees every tenant as a project, or those it names; a tenant's key itself alone."""
    async with sdk(served, ADMIN_KEY) as client:
        page = await client.admin.organization.usage.costs(start_time=DAY_S, group_by=["project_id", "line_item"])
        seen = [
            (r.project_id, r.line_item, r.amount.value, r.quantity, r.quantity_unit)  # type: ignore[union-attr]
            for r in page.data[0].results
        ]
        assert seen == [
            ("acme", "big", 3e-7, 107, "tokens"),
            ("acme", "tiny", 0.00000402, 64, "tokens"),
            ("rival", "other", 0.00005, 107, "tokens"),
        ]
        only = await client.admin.organization.usage.costs(start_time=DAY_S, project_ids=["rival"])
        assert [r.amount.value for r in only.data[0].results] == [0.00005]  # type: ignore[union-attr]
        everyone = await client.admin.organization.usage.completions(start_time=DAY_S)
        assert [r.num_model_requests for r in everyone.data[0].results] == [3]  # type: ignore[union-attr]
    async with sdk(served, key_of("rival")) as client:
        mine = await client.admin.organization.usage.costs(start_time=DAY_S, group_by=["project_id"])
        assert [(r.project_id, r.amount.value) for r in mine.data[0].results] == [("rival", 0.00005)]  # type: ignore[union-attr]
        with pytest.raises(PermissionDeniedError):
            await client.admin.organization.usage.costs(start_time=DAY_S, project_ids=["acme"])


@pytest.mark.parametrize(
    ("page", "query", "param"),
    [
        ("usage/completions", "", "start_time"),
        ("usage/completions", f"start_time={DAY_S}&limit=32", "limit"),
        ("usage/completions", f"start_time={DAY_S}&bucket_width=1h&limit=169", "limit"),
        ("usage/completions", f"start_time={DAY_S}&group_by=line_item", "group_by"),
        ("usage/completions", f"start_time={DAY_S - 8 * 86_400}&bucket_width=1m", "bucket_width"),
        ("costs", f"start_time={DAY_S}&bucket_width=1h", "bucket_width"),
        ("costs", f"start_time={DAY_S}&limit=181", "limit"),
        ("costs", f"start_time={DAY_S}&models=tiny", "models"),
        ("costs", f"start_time={DAY_S}&page=page_x", "page"),
    ],
)
async def test_a_bad_query_is_told_what_to_send(
    engine: Engine, start: Start, page: str, query: str, param: str
) -> None:
    """400 in OpenAI's shape, with the parameter."""
    served = await start(engine, clock=At())
    answer = await served.get(f"/v1/organization/{page}?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_a_line_item_may_hold_a_comma(served: Served) -> None:
    """Unlike a list of words, names that are filtered by come one to a parameter."""
    path = f"/v1/organization/costs?start_time={DAY_S}&line_items=tiny,big"
    assert (await served.get(path)).json["data"][0]["results"] == []
    path = f"/v1/organization/costs?start_time={DAY_S}&line_items[]=tiny&line_items[]=big"
    assert len((await served.get(path)).json["data"][0]["results"]) == 1


async def test_pages_of_many_projects_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenants times buckets has a bound; the pages get shorter and lead through all the same."""
    monkeypatch.setattr("gateway.usage._organization.ANSWER_BUCKETS", 2)
    path = f"/v1/organization/usage/completions?start_time={DAY_S - 86_400}&end_time={DAY_S + 86_400}"
    first = (await served.get(path, key=ADMIN_KEY)).json
    assert ([len(first["data"]), first["has_more"]]) == [1, True]
    second = (await served.get(f"{path}&page={first['next_page']}", key=ADMIN_KEY)).json
    assert (second["data"][0]["results"][0]["num_model_requests"], second["has_more"]) == (3, False)
