"""The short form of `make prove-admission`: three gateways over one Valkey, and hundreds of clients at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.admission import limits

LEAST_SHARE = 0.85
"""Of the budget that is used up: what is left is less than the most that one more request might cost, and what those
who were refused at the end would have used, had they come once more."""
LEAST_AGENTS_SHARE = 0.95
"""Of one of which slices are reserved, though each request asks for more than twice what there is."""


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_limits_are_never_exceeded_by_one(tmp_path: Path) -> None:
    """Budgets, requests/min and concurrent requests; also while a gateway is killed and Valkey is restarted."""
    calm, struck = await limits.run(limits.SHORT, tmp_path)
    for verdict in (calm, struck):
        assert verdict.broken == [], "\n".join(verdict.lines())
        assert verdict.at_once == limits.SHORT.concurrent_requests
        assert verdict.minute_seen >= limits.SHORT.requests_per_minute
    assert calm.money.share >= LEAST_SHARE, "\n".join(calm.lines())
    assert calm.agents.share >= LEAST_AGENTS_SHARE, "\n".join(calm.lines())
    outcomes = {(answer.status, answer.error.partition(":")[0]) for story in struck.stories for answer in story.answers}
    assert (0, "ConnectionError") in outcomes, "the gateway was killed while nobody asked"
