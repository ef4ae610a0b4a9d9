"""What a price costs the gateway: finding a request's price when it is admitted and charging it when it has ended, in
microseconds of CPU. Nothing of it waits for Redis. `make bench` prints it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gateway.costing import Tariffs
from gateway.policy import load
from gateway.wire import Usage

ROUNDS, TIMES = 7, 100_000
GOAL_US = 3.0
POLICY = """
models:
  tiny: {replicas: [{url: "http://a:1"}], gpu: {sku: H100}, price: {mode: live, output_usd_per_mtok: 0.35}}
tenants:
  acme: {prices: {tiny: {discount: 0.123456789, off_peak: {from_hour: 0, to_hour: 24, discount: 0.333333333}}}}
"""


def best_us(work: Callable[[], object]) -> float:
    """Microseconds of CPU a time, of the fastest round."""
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(TIMES):
            work()
        found.append((time.process_time() - start) / TIMES * 1e6)
    return min(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "policy.yaml").write_text(POLICY)
        policies = load(Path(directory))
    tariffs, tenant = Tariffs(policies), policies.tenants["acme"]
    price = tariffs.of(tenant, "tiny")
    assert price is not None
    usage = Usage(input_tokens=1783, input_cached_tokens=1024, output_tokens=311)
    rows = {
        "the tenant's price": best_us(lambda: tariffs.of(tenant, "tiny")),
        "charging an ended request": best_us(lambda: price.cost_nanousd(usage)),
        "holding the most it can cost": best_us(lambda: price.ceiling_nanousd(2000, 500)),
    }
    for name, cost_us in rows.items():
        print(f"{name:<30} {cost_us:6.2f} us")
    print(f"{'both ends of a request':<30} {sum(rows.values()):6.2f} us   goal {GOAL_US:g}")


if __name__ == "__main__":
    main()
