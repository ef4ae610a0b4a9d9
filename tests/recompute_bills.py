"""Every bill once more, from an export and the price book alone: nothing of the gateway is imported here.

    python tests/recompute_bills.py usage.jsonl prices.json

`usage.jsonl` is `mtok usage export --format jsonl`; `prices.json` the hash `mtok:prices` as one JSON object. Prints
what each tenant owes in each month of UTC, in nano-dollars, and every event whose cost is not what the book makes it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any


def cost_nanousd(row: dict[str, Any], price: dict[str, str]) -> int:
    """Dollars per million tokens are thousands of nano-dollars per token; one rounding, half to even."""
    cached = min(row["input_cached_tokens"], row["input_tokens"])
    exact = 1000 * (
        (row["input_tokens"] - cached) * Fraction(price["input"])
        + cached * Fraction(price["cached"])
        + row["output_tokens"] * Fraction(price["output"])
    )
    return round(exact)


def recompute(
    rows: Iterable[dict[str, Any]], book: dict[str, dict[str, str]]
) -> tuple[dict[tuple[str, str], int], list[str]]:
    """What each tenant owes in each month, and what is wrong."""
    owed: defaultdict[tuple[str, str], int] = defaultdict(int)
    wrong: list[str] = []
    for row in rows:
        if row["status"] == "refused":
            continue
        month = (row["tenant"], row["time"][:7])
        if row["status"] == "correction":  # a human's decision: it is the amount that was decided
            owed[month] += row["cost_nanousd"]
            continue
        if not row["price_epoch"]:
            computed = 0
        else:
            price = book.get(f"{row['price_epoch']}|{row['model']}")
            if price is None:
                wrong.append(f"{row['event_id']}: no price {row['price_epoch']} of {row['model']}")
                continue
            computed = cost_nanousd(row, price)
        if computed != row["cost_nanousd"]:
            wrong.append(f"{row['event_id']}: {row['cost_nanousd']} was billed, {computed} is right")
        owed[month] += computed
    return dict(owed), wrong


def main() -> int:
    usage, prices = (Path(name) for name in sys.argv[1:3])
    with usage.open() as lines:
        owed, wrong = recompute((json.loads(line) for line in lines), json.loads(prices.read_text()))
    for (tenant, month), nanousd in sorted(owed.items()):
        print(f"{tenant} {month} {nanousd}")
    for one in wrong:
        print(one, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
