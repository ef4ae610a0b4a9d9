"""What the fleet's money became: cost, use, idle dollars, each tenant's margin, hosted prices beside it, and what would
change with another GPU or lever."""

from ._levers import LEVERS, Lever, LeverEffect, what_if
from ._plan import BYTES, Candidate, Need, Plan, plan, weights_gb
from ._read import economics, idle_of_tenant, ratios
from ._report import HOSTED_ALERT, Beside, Economics, ModelEconomics, TenantEconomics, make_economics

__all__ = [
    "BYTES",
    "HOSTED_ALERT",
    "LEVERS",
    "Beside",
    "Candidate",
    "Economics",
    "Lever",
    "LeverEffect",
    "ModelEconomics",
    "Need",
    "Plan",
    "TenantEconomics",
    "economics",
    "idle_of_tenant",
    "make_economics",
    "plan",
    "ratios",
    "weights_gb",
    "what_if",
]
