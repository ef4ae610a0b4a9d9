"""The command line of the chaos run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ..processes import DidNotStart
from . import SHORT, Options, run

SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description="Kill everything; audit the bill.")
    parser.add_argument("--seed", type=int, help="draws requests and strikes; by default a new one")
    parser.add_argument("--requests", type=int, help="how many (20000; short: 600)")
    parser.add_argument("--kills", type=int, help="SIGKILLs, beside what else befalls Valkey (34; short: 10)")
    parser.add_argument("--pause", type=float, metavar="S", help="seconds that Valkey stands still (60; short: 3)")
    parser.add_argument("--restore", type=float, metavar="S", help="age of the files Valkey is given (15; short: 2)")
    parser.add_argument("--short", action="store_true", help="what the tests run: under a minute")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    chosen = {"requests": given.requests, "kills": given.kills, "pause_s": given.pause, "restore_s": given.restore}
    named = {name: value for name, value in chosen.items() if value is not None}
    options = replace(SHORT if given.short else Options(seed=0), seed=seed, **named)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("loadtest").setLevel(logging.INFO)
    print(f"seed {seed}: {options.requests} requests, {options.kills} kills", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="mtok-chaos-"))
    try:
        verdict = asyncio.run(run(options, directory))
    except DidNotStart as error:
        print(f"nothing was shown: {error}\nseed {seed}; logs and data: {directory}", file=sys.stderr)
        return 2
    print(verdict.table())
    if not verdict.differences:
        shutil.rmtree(directory)
        print("\neverything agrees")
        return 0
    print(f"\n{len(verdict.differences)} differences; the first {min(SHOWN, len(verdict.differences))}:")
    print("\n".join(verdict.differences[:SHOWN]))
    print(f"\nagain: python -m loadtest.chaos --seed {seed}{' --short' * given.short}; logs and data: {directory}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
