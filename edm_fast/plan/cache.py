"""Networks that `sample` prepared by itself, kept with the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from edm_fast.plan.lowering import can_lower
from edm_fast.plan.prepared import Prepared
from edm_fast.reference.preconditioning import Precond

_ATTRIBUTE = "_edm_fast_prepared"
# Methods that a plan stands for, and that an attribute of the same name on a module would replace.
_CALLED = frozenset({"forward", "network_output", "embed"})


class _Kept:
    """Prepared forms by dtype. A copy or a pickle of the network starts without them."""

    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, Prepared] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return (_Kept, ())


def prepared_for(net: Any, device: torch.device, force_fp32: bool = False) -> Prepared | None:
    """The prepared form of a network, made at the first call; None if its plan would not be the network.

    That is so in training mode, and if something of the network was replaced, compiled or hooked into. The plan's dtype
    is the network's own choice for the device, float32 if it is forced to; on the CPU another choice than float32 has
    no plan. The caller refreshes it.
    """
    if not isinstance(net, Precond) or device.type not in ("cpu", "cuda") or not _is_untouched(net):
        return None
    dtype = net.network_dtype(device, force_fp32)
    if device.type == "cpu" and dtype != torch.float32:
        return None
    kept = vars(net).get(_ATTRIBUTE)
    if kept is None:
        kept = _Kept()
        setattr(net, _ATTRIBUTE, kept)
    found: Prepared | None = kept.by_dtype.get(dtype)
    if found is None or found.net is not net:  # a shallow copy has the attributes of the original
        found = kept.by_dtype[dtype] = Prepared(net, dtype, "auto")
    return found


def _is_untouched(net: Precond) -> bool:
    """Every part is one of ours with its own forward, not in training, uncompiled, without hooks, and float32."""
    if type(net).forward is not Precond.forward or not can_lower(net.model):
        return False
    if _global_forward_hooks or _global_forward_pre_hooks:
        return False
    for module in net.modules():
        ours = type(module).__module__.startswith("edm_fast.") or type(module) is nn.ModuleDict
        hooked = module._forward_hooks or module._forward_pre_hooks
        replaced = not _CALLED.isdisjoint(vars(module))
        if not ours or hooked or replaced or module.training or module._compiled_call_impl is not None:
            return False
    return all(parameter.dtype == torch.float32 for parameter in net.parameters())
