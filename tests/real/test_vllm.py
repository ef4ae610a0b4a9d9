"""The gateway in front of real vLLM: what is billed is what the engines counted, whatever clients do.

In the order in which they run: the last two tests kill a replica each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import httpx
import msgspec
import openai
import pytest

from gateway.metering import UsageEvent
from gateway.wire import NO_USAGE
from loadtest.processes import mtok
from tests.real.conftest import CONTEXT_TOKENS, MODEL, Counters, Engine, Served
from tests.real.workload import Ask, Told, ask_all, ask_one, draw

SEED = 20_261
FINISHED, CUT_TOGETHER, CUT_ALONE = 400, 60, 40
AT_ONCE = 16
ABORT_S = 0.5
HANG_UPS = 4
MINUTE_S = 60
READ_S = 45
"""By then the engines' counters have been read again, and what was read is settled."""
RUNNING = {"include_usage": True, "continuous_usage_stats": True}
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS: dict[str, Any] = {"messages": HELLO, "max_tokens": 3000, "extra_body": {"ignore_eos": True}}
"""An answer of many seconds, which only a hang-up ends."""


def connected(served: Served, tenant: str) -> openai.AsyncOpenAI:
    """OpenAI's SDK with a tenant's key; what fails is not tried again."""
    return openai.AsyncOpenAI(base_url=served.base_url, api_key=served.keys[tenant], max_retries=0)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    """A tenant without limits."""
    async with connected(served, "plain") as client:
        yield client


def counted(served: Served) -> dict[str, Counters]:
    """Every engine's counters, once it is idle."""
    return {engine.name: engine.idle_counters() for engine in served.engines}


def since(served: Served, before: dict[str, Counters]) -> dict[str, Counters]:
    """How much every engine has counted since."""
    return {name: counters - before[name] for name, counters in counted(served).items()}


async def test_finished_requests_are_billed_what_the_engines_counted(served: Served) -> None:
    """400 mixed requests: no wrong answer, and the sums of events, `/v1/usage` and the engines' counters are equal.

    vLLM counts a prompt once for each of its samples; OpenAI's usage counts it once.
    """
    before = counted(served)
    asks = draw(SEED, FINISHED, cut=False, prefix="finished")
    async with connected(served, "exact") as client:
        told = await ask_all(client, asks, at_once=AT_ONCE)
    counts = since(served, before)
    events = served.events("exact")

    problems = [problem for one in told for problem in one.problems]
    problems += [problem for one in told for problem in compared(one, events.get(one.ask.id))]
    assert not problems, "\n".join(problems[:20])
    assert set(events) == {ask.id for ask in asks}

    billed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for event in events.values():
        billed[event.replica][0] += event.usage.input_tokens * event.samples
        billed[event.replica][1] += event.usage.output_tokens
    print(f"\n{FINISHED} finished requests{'':<12} prompt (billed, counted)   generated (billed, counted)")
    for name, count in counts.items():
        print(f"  {name:<32} {billed[name][0]:>9} {count.prompt:>9} {billed[name][1]:>19} {count.generation:>9}")
    assert billed == {name: [count.prompt, count.generation] for name, count in counts.items()}

    totals = served.usage_totals("exact")
    assert totals["requests"] == FINISHED
    assert totals["output_tokens"] == sum(count.generation for count in counts.values())
    assert totals["input_tokens"] == sum(event.usage.input_tokens for event in events.values())
    assert not any(event.estimated for event in events.values())


def compared(told: Told, event: UsageEvent | None) -> list[str]:
    """What differs between the usage in an answer and in its event."""
    if event is None:
        return [f"{told.ask.id}: no event"]
    usage = (event.usage.input_tokens, event.usage.output_tokens)
    wrong = [] if event.status == "ok" else [f"{told.ask.id}: status {event.status}"]
    if told.usage is not None and told.usage != usage:
        wrong.append(f"{told.ask.id} ({told.ask.label}): the answer said {told.usage}, the event {usage}")
    return wrong


def explained(events: list[UsageEvent]) -> tuple[range, range]:
    """What an engine can have counted for these events: prompt tokens and generated tokens, both ends included."""
    prompt = sum(event.usage.input_tokens * event.samples for event in events)
    output = sum(event.usage.output_tokens for event in events)
    prompt_more = sum(event.undelivered_input_max for event in events)
    output_more = sum(event.undelivered_output_max for event in events)
    return range(prompt, prompt + prompt_more + 1), range(output, output + output_more + 1)


async def test_what_engines_counted_for_cut_requests_is_explained(served: Served) -> None:
    """60 requests cut at random among each other: the engines counted at least what is billed, and at most what the
    events say may have been counted beyond."""
    before = counted(served)
    asks = draw(SEED + 1, CUT_TOGETHER, cut=True, prefix="together")
    async with connected(served, "cut") as client:
        told = await ask_all(client, asks, at_once=AT_ONCE)
    counts = since(served, before)
    assert not [problem for one in told for problem in one.problems]
    events = served.events("cut")
    assert {one.ask.id for one in told if one.events} <= set(events), "an answer that began has no event"
    wrong = [event for event in events.values() if event.status not in ("ok", "client_gone")]
    assert not wrong, "a client that left is no fault of an engine"
    for name, count in counts.items():
        prompts, outputs = explained([event for event in events.values() if event.replica == name])
        print(f"\n{name}: prompt {count.prompt} of {prompts}, generated {count.generation} of {outputs}")
        assert count.prompt in prompts
        assert count.generation in outputs


async def test_what_engines_counted_for_each_cut_request_is_explained(served: Served) -> None:
    """40 cut requests, one after the other, so that each one's own count is known; the difference is printed."""
    asks = draw(SEED + 2, CUT_ALONE, cut=True, prefix="alone")
    rows: list[tuple[Ask, Told, Counters, UsageEvent | None]] = []
    async with connected(served, "cut") as client:
        before = counted(served)
        for ask in asks:
            told = await ask_one(client, ask)
            assert not told.problems
            after = counted(served)
            used = sum((after[name] - before[name] for name in after), start=Counters(0, 0, 0, 0))
            rows.append((ask, told, used, served.events("cut").get(ask.id)))
            before = after
    print(f"\n{'cut request':<38} {'events read':>11} {'prompt: billed, counted':>25} {'output: billed, counted':>25}")
    wrong = []
    for ask, told, used, event in rows:
        usage = event.usage if event else NO_USAGE
        status = (f"{event.status}{', estimated' if event.estimated else ''}") if event else "never arrived"
        line = f"{ask.label:<38} {told.events:>11} {usage.input_tokens:>17} {used.prompt:>7}"
        line += f" {usage.output_tokens:>17} {used.generation:>7}  {status}"
        print(line)
        prompts, outputs = explained([event] if event else [])
        if used.prompt not in prompts or used.generation not in outputs:
            wrong.append(f"{line}; explained {prompts}, {outputs}")
    generated = sum(used.generation for _, _, used, _ in rows)
    billed = sum(event.usage.output_tokens for *_, event in rows if event)
    print(
        f"of {generated} tokens generated {generated - billed} are not billed: {(generated - billed) / generated:.1%}"
    )
    assert not wrong, "counted less than billed, or more than explained:\n" + "\n".join(wrong)


async def test_the_audit_explains_every_token(served: Served) -> None:
    """Finished and cut requests alike: `mtok audit` finds all that the engines counted, and a request that went to a
    replica directly, in another minute than cut ones, is not ours."""
    counted(served)

    def audited(*options: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MTOK_REDIS_URL": served.valkey_url}
        command = mtok("audit", "--start", "2h", *options)
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    async def spans() -> list[Any]:
        found = msgspec.json.decode((await asyncio.to_thread(audited, "--json")).stdout)
        return [span for verdict in found["replicas"].values() for span in verdict["spans"]]

    def not_ours(of: list[Any]) -> list[int]:
        """Requests, output and input tokens of others: of earlier tests, which have used these engines too."""
        return [
            sum(span["requests_not_ours"] for span in of),
            sum(span["output"]["not_ours"] for span in of),
            sum(span["input"]["not_ours"] for span in of),
        ]

    await asyncio.sleep(MINUTE_S + READ_S)
    before = not_ours(await spans())
    url = f"{served.engines[0].url}/v1/completions"
    body = {"model": MODEL, "prompt": "import", "max_tokens": 40, "ignore_eos": True}
    direct = httpx.post(url, json=body, timeout=60, trust_env=False).json()["usage"]
    await asyncio.sleep(READ_S)
    shown = await asyncio.to_thread(audited)
    print(f"\n{shown.stdout}{shown.stderr}")
    assert shown.returncode == 0, "something is unexplained"
    after = await spans()
    added = [more - less for more, less in zip(not_ours(after), before, strict=True)]
    assert added == [1, direct["completion_tokens"], direct["prompt_tokens"]]
    assert direct["completion_tokens"] == 40
    events = [event for tenant in ("exact", "cut") for event in served.events(tenant).values()]
    assert sum(span["output"]["billed"] for span in after) == sum(event.usage.output_tokens for event in events)
    again = await asyncio.to_thread(audited, "--recompute")
    assert again.returncode == 0, again.stdout


async def engine_with(served: Served, running: int, timeout_s: float = 2.0) -> Engine | None:
    """The busiest replica once all together run `running` requests; None when that does not come."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        counters = [await asyncio.to_thread(engine.counters) for engine in served.engines]
        if sum(one.running for one in counters) == running:
            return served.engines[max(range(len(counters)), key=lambda position: counters[position].running)]
        await asyncio.sleep(0.01)
    return None


async def seconds_until_idle(served: Served) -> float:
    """How long until no replica runs anything."""
    started_s = time.monotonic()
    assert await engine_with(served, 0, timeout_s=10), "a request that nobody waits for runs on"
    return time.monotonic() - started_s


async def quickest_hang_up(served: Served, hang_up: Callable[[str], Awaitable[bool]]) -> tuple[float, list[UsageEvent]]:
    """Seconds from hanging up to idle engines, the least of several, and the events of the requests.

    `hang_up` starts a request of that id and hangs up; False when it had ended before: an answer of 3,000 tokens
    takes 3 s, and vLLM's API server may spend them reading its engine's tokens, deaf to hang-ups and scrapes.
    """
    times_s: list[float] = []
    events = []
    for attempt in range(HANG_UPS):
        request_id = f"hang-up-{time.time_ns()}-{attempt}"
        try:
            ran = await hang_up(request_id)
        except openai.InternalServerError as error:
            print(f"\n{error}")  # deaf for two seconds, and the gateway took it for dead
            await asyncio.sleep(2)
            continue
        took_s = await seconds_until_idle(served)
        event = await asyncio.to_thread(served.event, "plain", request_id)
        if ran and event.status != "ok":
            times_s.append(took_s)
            events.append(event)
    assert times_s, f"none of {HANG_UPS} requests ran long enough to be hung up on"
    print(f"\nhung up, idle after (ms): {', '.join(f'{one * 1000:.0f}' for one in times_s)}")
    return min(times_s), events


@pytest.mark.parametrize("read", [0, 1, 20])
async def test_stream_that_is_hung_up_on_stops_at_the_engine(
    served: Served, client: openai.AsyncOpenAI, read: int
) -> None:
    """`vllm:num_requests_running` is 0 again within 500 ms, and what was delivered is billed, exactly counted."""

    async def hang_up(request_id: str) -> bool:
        stream = await client.chat.completions.create(
            model=MODEL, stream=True, extra_headers={"x-request-id": request_id}, **ENDLESS
        )
        for _ in range(read):
            await anext(stream)
        running = await engine_with(served, 1)
        await stream.close()
        return running is not None

    took_s, events = await quickest_hang_up(served, hang_up)
    assert took_s < ABORT_S
    for event in events:
        assert event.status == "client_gone"
        assert event.usage.output_tokens >= read - 1, "the first event has no token"
        assert not event.estimated


@pytest.mark.parametrize("path", ["chat", "responses"])
async def test_whole_answer_that_is_hung_up_on_stops_at_the_engine(
    served: Served, client: openai.AsyncOpenAI, path: str
) -> None:
    """The same for an answer that is not streamed, of which nobody has said what it used."""

    async def hang_up(request_id: str) -> bool:
        headers = {"x-request-id": request_id}
        endless = {"extra_headers": headers, "extra_body": {"ignore_eos": True}}
        if path == "chat":
            call = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3000, **endless)
        else:
            call = client.responses.create(model=MODEL, input="Hello", max_output_tokens=3000, **endless)
        task = asyncio.ensure_future(call)
        running = await engine_with(served, 1)
        if running is None or task.done():
            await task
            return False
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return True

    took_s, events = await quickest_hang_up(served, hang_up)
    assert took_s < ABORT_S
    assert {(event.status, event.usage) for event in events} == {("client_gone", NO_USAGE)}
    assert {event.undelivered_output_max for event in events} == {3000}


async def test_refusals_are_the_sdks_exception_classes(served: Served, client: openai.AsyncOpenAI) -> None:
    """401, 404, 400 and 429, with code and parameter."""
    async with openai.AsyncOpenAI(base_url=served.base_url, api_key="mtok-nobody-xyz") as stranger:
        with pytest.raises(openai.AuthenticationError, check=lambda e: e.code == "invalid_api_key"):
            await stranger.chat.completions.create(model=MODEL, messages=HELLO)
    with pytest.raises(openai.NotFoundError, check=lambda e: e.code == "model_not_found" and e.param == "model"):
        await client.chat.completions.create(model="gpt-7", messages=HELLO)
    with pytest.raises(openai.BadRequestError, check=lambda e: e.param == "n"):
        await client.chat.completions.create(model=MODEL, messages=HELLO, n=0)
    async with connected(served, "hurried") as hurried:
        await hurried.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
        with pytest.raises(openai.RateLimitError, check=lambda e: e.code == "rate_limit_exceeded") as caught:
            await hurried.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert float(caught.value.response.headers["retry-after"]) > 0
    async with connected(served, "broke") as broke:
        with pytest.raises(openai.RateLimitError, check=lambda e: e.code == "insufficient_quota"):
            await broke.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=100)


@pytest.mark.parametrize("stream", [False, True])
async def test_long_prompt_is_refused_with_the_engines_own_count(
    served: Served, client: openai.AsyncOpenAI, stream: bool
) -> None:
    """400 `context_length_exceeded` says the tokens that the engine's tokenizer counts, template included."""
    messages = [{"role": "user", "content": "import naïve 日本 " * 1500}]
    answer = httpx.post(
        f"{served.url}/tokenize",
        json={"model": MODEL, "messages": messages},
        headers={"Authorization": f"Bearer {served.keys['plain']}"},
        timeout=30,
    )
    count = answer.json()["count"]
    assert count > CONTEXT_TOKENS
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=10, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert str(count) in caught.value.message
    assert str(CONTEXT_TOKENS) in caught.value.message


async def test_the_longest_prompt_that_fits_is_served(served: Served, client: openai.AsyncOpenAI) -> None:
    """One token below the context is an answer of one token; one more is refused."""
    fits = [[7] * (CONTEXT_TOKENS - 1)]
    answer = await client.completions.create(model=MODEL, prompt=fits, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == CONTEXT_TOKENS - 1
    with pytest.raises(openai.BadRequestError, check=lambda e: e.code == "context_length_exceeded"):
        await client.completions.create(model=MODEL, prompt=[[7] * CONTEXT_TOKENS], max_tokens=1)


INVALID: dict[str, dict[str, Any]] = {
    "temperature -1": {"temperature": -1},
    "temperature as text": {"temperature": "hot"},
    "a message without a role": {"messages": [{"content": "Hello"}]},
    "an unknown role": {"messages": [{"role": "wizard", "content": [{"type": "teapot"}]}]},
    "tools of a wrong shape": {"tools": [{"type": "function"}]},
    "tool choice without tools": {"tool_choice": "required"},
    "top_logprobs without logprobs": {"top_logprobs": 3},
    "a response format nobody knows": {"response_format": {"type": "yaml"}},
    "a JSON schema that is none": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    },
    "a stop of a wrong type": {"stop": {"at": "once"}},
    "a token out of the vocabulary": {"logit_bias": {"99999999": 1}},
}
INSIDES = (
    "site-packages",
    "Traceback",
    'File "',
    ".py",
    "pydantic",
    "'input':",
    "'ctx':",
    "errors.pydantic.dev",
    "Param.",
)


@pytest.mark.parametrize("what", INVALID)
async def test_the_engines_validation_errors_are_clean(client: openai.AsyncOpenAI, what: str) -> None:
    """400 in OpenAI's shape, with something to read, and nothing of the engine's insides or of the request."""
    body = {"messages": HELLO, "max_tokens": 2, **INVALID[what]}
    secret = "sesame-1701"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.post("/chat/completions", body={"model": MODEL, "user": secret, **body}, cast_to=object)
    told = caught.value.response.json()["error"]
    print(f"\n{what}: {told['message']!r} (param {told['param']})")
    assert told["message"]
    assert set(told) == {"message", "type", "param", "code"}
    shown = caught.value.response.text
    assert not [inside for inside in (*INSIDES, secret) if inside in shown], shown


async def test_anthropic_sdk(served: Served) -> None:
    """Messages, whole and streamed; counting agrees with what is billed."""
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=served.keys["plain"], max_retries=0) as claude:
        counted = await claude.messages.count_tokens(model=MODEL, messages=HELLO)
        raw = await claude.messages.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=5)
        answer = await raw.parse()
        async with claude.messages.stream(model=MODEL, messages=HELLO, max_tokens=5) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()
            stream_id = stream.response.headers["x-request-id"]
    assert final.content[0].text == text
    for request_id, usage in ((raw.headers["x-request-id"], answer.usage), (stream_id, final.usage)):
        event = served.event("plain", request_id)
        assert event.usage.input_tokens == counted.input_tokens
        assert event.usage.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        assert event.usage.output_tokens == usage.output_tokens


async def test_tokenize_is_relayed(served: Served) -> None:
    """`/tokenize` for a permitted model; it is neither billed nor limited."""
    before = served.usage_totals("plain")["input_tokens"]
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {served.keys['plain']}"}) as http:
        answer = await http.post(f"{served.url}/tokenize", json={"model": MODEL, "prompt": "import self"})
        refused = await http.post(f"{served.url}/tokenize", json={"model": "gpt-7", "prompt": "import self"})
    assert answer.json()["count"] == len(answer.json()["tokens"]) > 0
    assert refused.status_code == httpx.codes.NOT_FOUND
    assert served.usage_totals("plain")["input_tokens"] == before


async def stream_in_the_middle(served: Served, client: openai.AsyncOpenAI) -> tuple[Any, int, Engine]:
    """A stream that has begun and cannot end, since its replica's computing process is held; the tokens read of it;
    and that replica.

    Where three processes share two cores an answer of 3,000 tokens may be complete before its first event is read, so
    this may take several streams.
    """
    alive = [engine for engine in served.engines if engine.alive]
    if not alive:
        pytest.skip("the replicas are not ours to kill: MTOK_REAL_VLLM_URLS is set")
    for _ in range(2 * HANG_UPS):
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            max_tokens=3000,
            stream=True,
            extra_body={"ignore_eos": True, "stream_options": RUNNING},
        )
        tokens = [(await anext(stream)).usage.completion_tokens for _ in range(5)][-1]
        for engine in alive:
            engine.pause()
        for engine in alive:
            before = None
            while (counters := await asyncio.to_thread(engine.counters)) != before:
                before = counters
                await asyncio.sleep(0.2)
            if counters.running:
                return stream, tokens, engine
        await stream.close()
        for engine in alive:
            engine.resume()
    raise AssertionError("no stream could be held in the middle")


async def rest(stream: Any, tokens: int) -> tuple[int, openai.APIError | None]:
    """Reads a stream, of which `tokens` have been read, to its end: all of its tokens, and the error it ended with."""
    try:
        async for chunk in stream:
            tokens = chunk.usage.completion_tokens
    except openai.APIError as error:
        return tokens, error
    return tokens, None


async def test_stream_whose_replica_is_killed_ends_with_an_error_event(
    served: Served, client: openai.AsyncOpenAI
) -> None:
    """Never a silent cut: the SDK raises, what was delivered is billed, and the other replica serves on."""
    stream, tokens, victim = await stream_in_the_middle(served, client)
    victim.kill()
    for engine in served.engines:
        if engine is not victim:
            engine.resume()
    delivered, error = await rest(stream, tokens)
    assert error is not None, "the stream ended as if it were complete"
    assert error.code == "upstream_lost"
    event = await asyncio.to_thread(served.event, "plain", stream.response.headers["x-request-id"])
    print(f"\nthe client was told {error!r}; the event says {event.status}, {event.usage.output_tokens} tokens")
    assert (event.status, event.replica) == ("upstream_lost", victim.name)
    assert event.usage.output_tokens == delivered > 0
    answers = await asyncio.gather(
        *(client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5) for _ in range(20))
    )
    late = {served.event("plain", answer._request_id or "").replica for answer in answers}
    assert late == {engine.name for engine in served.engines} - {victim.name}


async def test_engine_that_dies_behind_its_server_ends_the_stream_with_an_error(
    served: Served, client: openai.AsyncOpenAI
) -> None:
    """vLLM's API server outlives its engine for a moment and says so in the stream; then nobody is left: 503."""
    stream, tokens, victim = await stream_in_the_middle(served, client)
    victim.kill_core()
    delivered, error = await rest(stream, tokens)
    assert error is not None, "the stream ended as if it were complete"
    event = await asyncio.to_thread(served.event, "plain", stream.response.headers["x-request-id"])
    print(f"\nthe client was told {error!r}; the event says {event.status}, {event.usage.output_tokens} tokens")
    assert event.status == "engine_error"
    assert event.usage.output_tokens == delivered > 0

    deadline_s = time.monotonic() + 30
    while True:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
        if caught.value.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            break
        assert caught.value.status_code == httpx.codes.BAD_GATEWAY
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.2)
    assert caught.value.code == "no_healthy_replica"
    assert float(caught.value.response.headers["retry-after"]) > 0
    assert httpx.get(f"{served.url}/readyz").status_code == httpx.codes.SERVICE_UNAVAILABLE
