"""What routing is worth, in virtual time: the same arrivals, content and engines for every policy, cold each time.

`python -m loadtest.routing`, or `make bench-routing`. Nothing here opens a socket or reads a clock; a run of some
thousand requests over 8 replicas takes seconds.
"""

from .measured import MEASURED, measured
from .policies import POLICIES, STICKY, Policy
from .workloads import WORKLOADS, Workload
from .world import Asked, Seen, World

__all__ = [
    "MEASURED",
    "POLICIES",
    "STICKY",
    "WORKLOADS",
    "Asked",
    "Policy",
    "Seen",
    "Workload",
    "World",
    "measured",
]
