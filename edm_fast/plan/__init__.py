"""Networks lowered to plans: a flat list of operations with packed weights and memory laid out in advance."""

from edm_fast.plan.prepared import Prepared, prepare

__all__ = ["Prepared", "prepare"]
