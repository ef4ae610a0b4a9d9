"""Simulated replicas that write down what they get: who asked, when it began there and when it had ended.

    python -m loadtest.admission._replicas --profile NAME --port PORT [--port PORT ..]

All replicas share one process and one book, so that "at once" is counted over all of them. `GET /seen` on any of them
is the book: a JSON array of [user, began, ended or null], times in Unix seconds, `user` being the request's own field.
A request has ended when the last piece of its answer is about to leave: whoever reads that may send the next.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import time
from dataclasses import replace
from typing import Final

import uvicorn
import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.simulator import PROFILES, ApiTimes, Profile, StepTimes, build_app

_USER: Final = re.compile(rb'"user":\s*"([^"]*)"')

QUICK: Final = replace(
    PROFILES["instant"],
    name="quick",
    max_num_seqs=1024,
    answer_tokens=60,
    steps=replace(PROFILES["instant"].steps, decode_base_ms=4.0, prefill_base_ms=4.0, prefill_floor_ms=4.0),
)
"""Limits are what is tried, not the engine: 4 ms a token however many run, answers of about 60 tokens."""

NARROW: Final = Profile(
    name="narrow",
    model="tiny",
    max_model_len=8192,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
    kv_blocks=8192,
    vocabulary=128_256,
    answer_tokens=60,
    steps=StepTimes(
        decode_base_ms=16.0,
        per_sequence_ms=2.0,
        per_context_kt_ms=0.03,
        per_context_beside_kt_ms=0.05,
        prefill_base_ms=16.0,
        per_prefill_kt_ms=20.0,
        per_attention_kt2_ms=0.5,
        per_admitted_kt_ms=0.4,
        per_hit_kt_ms=1.0,
        prefill_floor_ms=20.0,
        wake_ms=5.0,
    ),
    api=ApiTimes(fixed_ms=1.5, serial_ms=0.7, per_prompt_kt_ms=0.4, metrics_ms=11.0),
)
"""The shape of the H200's step at a twentieth of its rate: a step is 48 ms with 16 streams and 80 ms with 32, so that
its knee is at some hundred tokens a second and two cores are mostly idle while a fleet of them is at its limit."""

ENGINES: Final = {profile.name: profile for profile in (QUICK, NARROW)}


class Book:
    """What all replicas of this process have got."""

    def __init__(self) -> None:
        self.seen: list[list[object]] = []

    def watched(self, app: ASGIApp) -> ASGIApp:
        """`app`, written down."""

        async def watch(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] != "POST":
                await (self._tell(send) if scope.get("path") == "/seen" else app(scope, receive, send))
                return
            line: list[object] = ["", time.time(), None]
            self.seen.append(line)

            async def read() -> Message:
                message = await receive()
                if found := _USER.search(message.get("body", b"")):
                    line[0] = found[1].decode()
                return message

            async def write(message: Message) -> None:
                body = message.get("body", b"")
                is_last = message["type"] == "http.response.body" and not message.get("more_body")
                if line[2] is None and (is_last or b"data: [DONE]" in body):
                    line[2] = time.time()
                await send(message)

            try:
                await app(scope, read, write)
            finally:
                line[2] = line[2] or time.time()

        return watch

    async def _tell(self, send: Send) -> None:
        body = json.dumps(self.seen).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def serve(profile: Profile, ports: list[int]) -> None:
    """One replica on each port, until told to stop."""
    book = Book()
    servers = []
    for port in ports:
        config = uvicorn.Config(
            book.watched(build_app(profile)),
            host="127.0.0.1",
            port=port,
            log_level="warning",
            access_log=False,
            backlog=4096,
            timeout_graceful_shutdown=1,
        )
        servers.append(uvicorn.Server(config))

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    await asyncio.gather(*(server._serve() for server in servers))  # its `serve` would take the signals for one of them


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", choices=ENGINES, required=True)
    parser.add_argument("--port", type=int, action="append", required=True)
    options = parser.parse_args()
    uvloop.run(serve(ENGINES[options.profile], options.port))


if __name__ == "__main__":
    main()
