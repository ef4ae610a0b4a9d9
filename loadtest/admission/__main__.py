"""The command line of the proofs."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from ..processes import DidNotStart
from . import fairness, limits, lost, overload, returns

Told = tuple[list[str], list[str]]
"""The lines of its table, and what was promised and not kept."""


LEAST_SHARE = 0.95
"""Of a budget that can be used."""


async def _limits(directory: Path) -> Told:
    lines, broken = [], []
    for verdict in await limits.run(limits.Options(), directory):
        lines += verdict.lines()
        broken += [f"{verdict.phase.name}: {what}" for what in verdict.broken]
        for money in (verdict.money, verdict.agents):
            if money.share < LEAST_SHARE:
                broken.append(f"{money.tenant} could use {money.share:.1%} of its budget")
    return lines, broken


async def _lost(directory: Path) -> Told:
    verdict = await lost.run(directory)
    return verdict.lines(), verdict.broken


async def _fairness(directory: Path) -> Told:
    verdict = await fairness.run(fairness.Options(), directory)
    return verdict.lines(), verdict.broken


async def _overload(directory: Path) -> Told:
    verdict = await overload.run(overload.Options(), directory)
    return verdict.lines(), verdict.broken


async def _returns(directory: Path) -> Told:
    verdict = await returns.run(returns.Options(), directory)
    return verdict.lines(), verdict.broken


PROOFS: Mapping[str, Callable[[Path], Awaitable[Told]]] = {
    "limits": _limits,
    "lost": _lost,
    "fairness": _fairness,
    "overload": _overload,
    "returns": _returns,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.admission", description="What admission promises, shown.")
    parser.add_argument("proofs", nargs="*", metavar="PROOF", help=f"of {', '.join(PROOFS)}; all by default")
    proofs = parser.parse_args().proofs or list(PROOFS)
    if unknown := set(proofs) - set(PROOFS):
        parser.error(f"no such proof: {', '.join(sorted(unknown))}")
    broken = []
    directory = Path(tempfile.mkdtemp(prefix="mtok-admission-"))
    for name in proofs:
        (directory / name).mkdir()
        try:
            lines, found = asyncio.run(PROOFS[name](directory / name))
        except DidNotStart as error:
            print(f"{name}: nothing was shown: {error}\nlogs and data: {directory}", file=sys.stderr)
            return 2
        print("\n".join([name, *(f"  {line}" for line in lines), ""]), flush=True)
        broken += [f"{name}: {what}" for what in found]
    if broken:
        print("\n".join(["not kept:", *broken, f"logs and data: {directory}"]))
        return 1
    shutil.rmtree(directory)
    print("everything was kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
