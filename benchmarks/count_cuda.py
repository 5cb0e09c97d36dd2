"""Launches and bytes of a forward on CUDA, counted from shapes on the meta device; nothing runs, no weight exists.

Ours: the operations of the device's graph, and the activations that they read and write, in 16 bits. Eager: the
operations that PyTorch dispatches for the reference network with float16 activations and float32 weights, as EDM runs
it, without views and allocations; and the activations among their arguments and results. Tensors made of weights
alone, such as casts, count as launches and not as bytes. Both are counts of calls: what a call launches inside, and
what caches save, is not in them.

Run: python benchmarks/count_cuda.py        writes results/counted_cuda.json
"""

from __future__ import annotations

import json
from typing import Any

import torch
from harness import RESULTS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from variants import PRESETS

from edm_fast.plan.costs import activation_bytes, launches
from edm_fast.plan.lowering import lower
from edm_fast.plan.passes import for_library_convolutions
from edm_fast.reference.preconditioning import EDMPrecond, Precond

_ALLOCATIONS = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")


class EagerCount(TorchDispatchMode):
    """Counts dispatched operations that are no views, and the bytes of the activations that they touch."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        # Kept alive, so that no other tensor gets the identity of one of them.
        self._weights = {id(weight): weight for weight in weights}
        self.launches = 0
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if given and all(id(tensor) in self._weights for tensor in given):
            self._weights.update((id(tensor), tensor) for tensor in made)
        if not _is_free(function):
            self.launches += 1
            touched = [tensor for tensor in (*given, *made) if id(tensor) not in self._weights]
            self.bytes += sum(tensor.nbytes for tensor in touched)
        return result


def _is_free(function: Any) -> bool:
    """Whether it launches nothing: a view, or memory that is not written."""
    schema = function._schema
    view = any(part.alias_info is not None and not part.alias_info.is_write for part in schema.returns)
    return view or schema.name in _ALLOCATIONS


def on_meta(name: str) -> Precond:
    with torch.device("meta"):
        return EDMPrecond(**PRESETS[name]).eval().requires_grad_(False)


def eager(net: Precond) -> EagerCount:
    """The count of F for one image, noise level and label."""
    size = net.img_resolution
    x = torch.empty([1, net.img_channels, size, size], dtype=torch.float16, device="meta")
    noise, labels = torch.empty([1], device="meta"), torch.empty([1, net.label_dim], device="meta")
    with torch.no_grad(), EagerCount([*net.parameters(), *net.buffers()]) as count:
        net.model(x, noise, labels)
    return count


def counts(name: str) -> dict[str, int]:
    net = on_meta(name)
    graph = for_library_convolutions(lower(_with_filters(net, name), *[net.img_resolution] * 2, plain_skips=True)).graph
    theirs = eager(net)
    return {
        "launches": launches(graph),
        "bytes_per_image": sum(activation_bytes(operation, 2) for operation in graph.operations),
        "eager_launches": theirs.launches,
        "eager_bytes_per_image": theirs.bytes,
    }


def _with_filters(net: Precond, name: str) -> Any:
    """The network with resample filters that have values; the lowering reads them."""
    taps = torch.tensor(PRESETS[name].get("resample_filter", [1, 1]), dtype=torch.float32)
    for module in net.modules():
        if getattr(module, "resample_filter", None) is not None:
            module.resample_filter = taps.outer(taps)[None, None] / taps.sum().square()
    return net.model


def main() -> None:
    networks = {name: counts(name) for name in PRESETS}
    (RESULTS / "counted_cuda.json").write_text(json.dumps({"networks": networks}, indent=1) + "\n")
    for name, figures in networks.items():
        print(name, ", ".join(f"{what} {value:,}" for what, value in figures.items()))


if __name__ == "__main__":
    main()
