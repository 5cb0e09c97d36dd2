"""Networks that `sample` prepared by itself, kept with the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edm_fast.plan.lowering import can_lower
from edm_fast.plan.prepared import Prepared
from edm_fast.reference.preconditioning import Precond

_ATTRIBUTE = "_edm_fast_prepared"


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

    That is so in training mode, and if something of the network was replaced, compiled or hooked into. On CUDA the
    network says in which dtype it runs, unless it is forced to float32; on the CPU it is float32.
    """
    known = device.type in ("cpu", "cuda")
    if not isinstance(net, Precond) or net.training or not known or not _is_untouched(net):
        return None
    dtype = torch.float32 if device.type == "cpu" else net.network_dtype(device, force_fp32)
    kept = vars(net).get(_ATTRIBUTE)
    if kept is None:
        kept = _Kept()
        setattr(net, _ATTRIBUTE, kept)
    if dtype not in kept.by_dtype:
        kept.by_dtype[dtype] = Prepared(net, dtype, "auto")
    found: Prepared = kept.by_dtype[dtype]
    found.refresh()
    return found


def _is_untouched(net: Precond) -> bool:
    """Every part is one of ours with its own forward, uncompiled and without hooks, and float32."""
    if type(net).forward is not Precond.forward or not can_lower(net.model):
        return False
    for module in net.modules():
        ours = type(module).__module__.startswith("edm_fast.") or type(module) is nn.ModuleDict
        hooked = module._forward_hooks or module._forward_pre_hooks
        if not ours or hooked or "forward" in vars(module) or module._compiled_call_impl is not None:
            return False
    return all(parameter.dtype == torch.float32 for parameter in net.parameters())
