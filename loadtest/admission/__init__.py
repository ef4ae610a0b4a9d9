"""What admission promises, on sockets: limits, fairness, overload and honest refusals. `make prove-admission` runs it.

    python -m loadtest.admission [limits] [..]

Gateways, clients and Valkey are processes; the replicas are simulated, and slow enough that two cores are mostly idle
when the fleet is full: what is measured is who is admitted and when, not how fast this machine is.
"""

from ._limits import SHORT as SHORT_LIMITS
from ._limits import Options as LimitsOptions
from ._limits import Verdict as LimitsVerdict
from ._limits import run as run_limits

__all__ = ["SHORT_LIMITS", "LimitsOptions", "LimitsVerdict", "run_limits"]
