"""Replicas that die, hang, talk nonsense, come and go, under load: who of the clients notices?

    python -m loadtest.fleet_chaos --requests 20000

Eight simulated replicas behind a gateway of two workers, found by a file that goes from 8 to 2 and back to 8 of them.
Meanwhile replicas are killed and started again, stand still, break streams off, answer 500, or HTML. At the end: how
many requests that could be served failed, how many streams that were cut in the middle went on elsewhere and to their
end, whether each whole answer has the tokens that were asked for, and whether the ledger is right: `mtok audit` over
all of it, and every event's tokens against what its client was told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

import httpx
import msgspec
import yaml
from redis.asyncio import Redis

from gateway.metering import UsageEvent
from gateway.store import TenantKeys, client
from gateway.tenants import hash_key, new_key

from .chaos._clients import MODEL, Question, Seen, ask
from .processes import free_port, mtok
from .services import Valkey, WebService

REPLICAS, FEWEST = 8, 2
CLIENTS: Final = 32
SPEED: Final = "0.3"
"""About 3 ms a token: a stream of 200 tokens can be cut."""
TENANT = "open"
HANG_S, DOWN_S = 8.0, 1.0
FAULTS: Final = (
    {"kind": "die", "after_chunks": 7, "times": 6},
    {"kind": "error_event", "after_chunks": 5, "times": 4},
    {"kind": "status", "status": 500, "times": 4},
    {"kind": "reset", "times": 4},
    {"kind": "garbage", "times": 3},
)
SETTLE_S = 90.0
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")

Strike = Callable[[], Coroutine[None, None, None]]


def draw(dice: random.Random, number: int) -> Question:
    """A request that any replica can serve: a third share a long beginning, a third are long streams."""
    words = ["system"] * 200 if dice.random() < 0.3 else []
    words += dice.choices(_WORDS, k=dice.randint(1, 60))
    long = dice.random() < 0.3
    output = dice.randint(80, 250) if long else dice.randint(1, 24)
    body: dict[str, object] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": " ".join(words)}],
        "max_tokens": output,
        "ignore_eos": True,
    }
    if long or dice.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Question(f"f{number}-{dice.getrandbits(32):x}", TENANT, json.dumps(body).encode(), output)


class Fleet:
    """The processes, for a `with` block. `struck` counts what befell them."""

    def __init__(self, directory: Path, dice: random.Random) -> None:
        self.key = new_key(TENANT)
        self.struck: Counter[str] = Counter()
        self.valkey = Valkey(directory / "valkey", directory / "valkey.log")
        self.engines = [self._engine(directory, number) for number in range(REPLICAS)]
        self._listed = directory / "replicas.yaml"
        self._dice = dice
        self._policies = directory / "policies"
        port = free_port()
        self.gateway = WebService(
            "gateway",
            port=port,
            page="/readyz",
            command=mtok("serve", "--policies", str(self._policies), "--port", str(port), "--workers", "2"),
            log=directory / "gateway.log",
            environment={"MTOK_REDIS_URL": self.valkey.url, "MTOK_DATA_DIR": str(directory / "data")},
        )

    async def __aenter__(self) -> Fleet:
        self._policies.mkdir()
        document = {
            "models": {
                MODEL: {"discover": {"file": str(self._listed)}, "price": {"output_usd_per_mtok": 1}},
            },
            "tenants": {TENANT: {"keys": [{"id": TENANT, "sha256": hash_key(self.key)}]}},
        }
        (self._policies / "policy.yaml").write_text(yaml.safe_dump(document))
        self.list(REPLICAS)
        try:
            await asyncio.gather(self.valkey.start(), *(engine.start() for engine in self.engines))
            await self.gateway.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(one.destroy() for one in (self.gateway, *self.engines, self.valkey)))

    def list(self, count: int) -> None:
        """From now on so many replicas are there."""
        urls = [f"http://127.0.0.1:{engine.port}" for engine in self.engines[:count]]
        partly = self._listed.with_suffix(".new")
        partly.write_text(yaml.safe_dump(urls))
        partly.replace(self._listed)

    def redis(self) -> Redis:
        return client(self.valkey.url)

    async def kill(self) -> None:
        """A replica's process is gone, and comes back."""
        engine = self._dice.choice(self.engines)
        await engine.until_up()
        self.struck["killed"] += 1
        await engine.kill()
        await asyncio.sleep(DOWN_S)
        await engine.start()

    async def hang(self) -> None:
        """A replica's process stands still: its connections stay, nothing comes."""
        engine = self._dice.choice(self.engines)
        await engine.until_up()
        self.struck["stood still"] += 1
        os.kill(engine.pid, signal.SIGSTOP)
        await asyncio.sleep(HANG_S)
        os.kill(engine.pid, signal.SIGCONT)

    async def fall_ill(self) -> None:
        """A replica does one wrong thing a few times."""
        engine, fault = self._dice.choice(self.engines), self._dice.choice(FAULTS)
        await engine.until_up()
        self.struck[str(fault["kind"])] += 1
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as http:
            try:
                await http.post(f"http://127.0.0.1:{engine.port}/simulator/faults", json=fault)
            except httpx.HTTPError:
                self.struck[str(fault["kind"])] -= 1  # it is down or stands still just now

    def _engine(self, directory: Path, number: int) -> WebService:
        port = free_port()
        command = mtok("simulate", "--port", str(port), "--profile", "tiny", "--speed", SPEED)
        return WebService(
            f"engine-{number}", port=port, page="/health", command=command, log=directory / f"engine-{number}.log"
        )


async def load(fleet: Fleet, dice: random.Random, requests: int) -> list[Seen]:
    """All requests, from `CLIENTS` clients, with strikes between."""
    seen: list[Seen] = []
    numbers = iter(range(requests))
    questions = [draw(dice, number) for number in range(requests)]
    strikes: list[tuple[int, Strike]] = []
    for at in range(requests // 40, requests, max(1, requests // 60)):
        strikes.append((at, dice.choice((fleet.kill, fleet.hang, fleet.fall_ill, fleet.fall_ill))))
    begun = 0
    tasks: set[asyncio.Task[None]] = set()

    async def one_client() -> None:
        nonlocal begun
        for number in numbers:
            begun += 1
            if begun == requests * 4 // 10:
                fleet.list(FEWEST)
                fleet.struck["8 to 2"] += 1
            if begun == requests * 6 // 10:
                fleet.list(REPLICAS)
                fleet.struck["2 to 8"] += 1
            while strikes and strikes[0][0] <= begun:
                few = requests * 4 // 10 <= begun < requests * 6 // 10
                strike = strikes.pop(0)[1]
                if not few:  # with two left, a strike at one would be a strike at half of all
                    tasks.add(asyncio.create_task(strike()))
            seen.append(await ask(questions[number], fleet.gateway.port, fleet.key))

    await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
    await asyncio.gather(*tasks)
    return seen


async def settled(fleet: Fleet, requests: int) -> list[UsageEvent]:
    """All events, once there is one for each request."""
    deadline_s = time.monotonic() + SETTLE_S
    async with fleet.redis() as redis:
        while True:
            entries = await redis.xrange(TenantKeys(TENANT).events)
            if len(entries) >= requests or time.monotonic() > deadline_s:
                return [msgspec.json.decode(fields[b"event"], type=UsageEvent) for _, fields in entries]
            await asyncio.sleep(0.5)


def wrong(seen: list[Seen], events: list[UsageEvent]) -> list[str]:
    """What clients and ledger disagree on."""
    found: list[str] = []
    by_id: dict[str, UsageEvent] = {}
    for event in events:
        if by_id.setdefault(event.id, event) is not event:
            found.append(f"{event.id} was booked twice")
    for one in seen:
        event, question = by_id.get(one.question.id), one.question
        if event is None:
            if one.outcome != "unsent":
                found.append(f"{question.id} ({one.outcome}) was not booked")
            continue
        if one.outcome == "complete":
            told = one.tokens
            if told is None or told.output != question.output_most:
                found.append(f"{question.id}: {question.output_most} tokens were asked for, {told} told")
            elif (event.usage.input_tokens, event.usage.output_tokens) != (told.input, told.output):
                found.append(f"{question.id}: {told} was told, {event.usage} booked")
    return found


async def run(requests: int, seed: int, directory: Path) -> int:
    dice = random.Random(seed)  # noqa: S311 - a draw to repeat, not a secret
    async with Fleet(directory, dice) as fleet:
        began_s = time.time()
        seen = await load(fleet, dice, requests)
        took_s = time.time() - began_s
        events = await settled(fleet, requests)
        await asyncio.sleep(25)  # the engines' counters are read once more
        audit = await asyncio.create_subprocess_exec(
            *mtok("audit", "--start", f"{int(time.time() - began_s) + 120}s"),
            env={**os.environ, "MTOK_REDIS_URL": fleet.valkey.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await audit.communicate()
    outcomes = Counter(one.outcome for one in seen)
    served = outcomes["complete"]
    continued = [event for event in events if event.continued]
    whole = {one.question.id for one in seen if one.outcome == "complete"}
    went_on = sum(event.id in whole for event in continued)
    broken = outcomes["failed"] + outcomes["cut"]
    print(f"struck     {', '.join(f'{kind} {n}' for kind, n in sorted(fleet.struck.items()))}")
    print(f"seen       {', '.join(f'{name} {n}' for name, n in outcomes.most_common())} in {took_s:.0f} s")
    codes = Counter(f"{one.status} {one.code}" for one in seen if one.outcome in ("refused", "failed"))
    print(f"refusals   {', '.join(f'{name}: {n}' for name, n in codes.most_common()) or 'none'}")
    print(f"not served {requests - served} of {requests}")
    cut = went_on + broken
    share = went_on / cut if cut else 1.0
    print(f"cut        {cut} streams in the middle, of which {went_on} went on and ended ({share:.2%})")
    lost = Counter(attempt.code for event in events for attempt in event.failed_attempts)
    print(f"attempts   {', '.join(f'{code} {n}' for code, n in lost.most_common()) or 'none failed'}")
    found = wrong(seen, events)
    for one in found[:20]:
        print(one)
    exact = not found and audit.returncode == 0
    if audit.returncode:
        print(told.decode())
    print("billing is exact" if exact else f"{len(found)} differences; mtok audit ended with {audit.returncode}")
    return 0 if exact and served == requests and share >= 0.99 else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.fleet_chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, help="draws requests and strikes; by default a new one")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"seed {seed}: {given.requests} requests", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="mtok-fleet-"))
    failed = asyncio.run(run(given.requests, seed, directory))
    if failed:
        print(f"logs and data: {directory}")
    else:
        shutil.rmtree(directory)
    return failed


if __name__ == "__main__":
    sys.exit(main())
