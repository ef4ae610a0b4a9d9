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
from . import LimitsOptions, run_limits

Told = tuple[list[str], list[str]]
"""The lines of its table, and what was promised and not kept."""


async def limits(directory: Path) -> Told:
    """Eight workers in three gateways."""
    lines, broken = [], []
    for verdict in await run_limits(LimitsOptions(), directory):
        lines += verdict.lines()
        broken += [f"{verdict.phase.name}: {what}" for what in verdict.broken]
    return lines, broken


PROOFS: Mapping[str, Callable[[Path], Awaitable[Told]]] = {"limits": limits}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.admission", description="What admission promises, shown.")
    parser.add_argument("proofs", nargs="*", choices=[[], *PROOFS], help=f"of {', '.join(PROOFS)}; all by default")
    broken = []
    directory = Path(tempfile.mkdtemp(prefix="mtok-admission-"))
    for name in parser.parse_args().proofs or PROOFS:
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
