"""What would these policies have done to that day? Arrivals of the past through policies and a simulated fleet, in
virtual time.

What decides is what decides in the gateway: `admission.Account` for limits, `FairQueue`, `Knee`, the placement. The
replicas are coarse: steps that read prompts one by one, those between them as one stretch. No I/O and no clock: whoever
calls brings arrivals, policies and engine profiles.
"""

from ._arrivals import Arrival, Prepared, arrival_of, prepared, read_lines
from ._before import UsedHour
from ._outcome import Outcome, Spread, TenantOutcome
from ._replay import replay
from ._replica import Replica, Run

__all__ = [
    "Arrival",
    "Outcome",
    "Prepared",
    "Replica",
    "Run",
    "Spread",
    "TenantOutcome",
    "UsedHour",
    "arrival_of",
    "prepared",
    "read_lines",
    "replay",
]
