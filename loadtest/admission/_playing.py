"""The clients' process: `python -m loadtest.admission._playing < plan.json > stories.json`."""

from __future__ import annotations

import sys

import msgspec
import uvloop

from .clients import Plan, play


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(play(plan.visits))))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
