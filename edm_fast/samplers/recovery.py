"""What `sample` does when something goes wrong: batches that do not fit, and images that are not finite."""

from __future__ import annotations

import copy
import enum
import logging
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edm_fast.networks import Precond
from edm_fast.plan import Prepared
from edm_fast.plan.cache import prepared_for

logger = logging.getLogger(__name__)

# What `first_bad` holds for a sample that is finite in every row.
FINITE = torch.iinfo(torch.int64).max
_UNITS = {"bytes": 0, "kib": 1, "mib": 2, "gib": 3, "tib": 4}


def in_batches(
    make: Callable[[slice], object],
    count: int,
    batch: int,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Call make(part) for consecutive parts of range(count), `batch` at a time; halved if memory does not suffice.

    Calls progress(done, count) after each part. MemoryError if a part of one does not fit, with the bytes it wanted.
    """
    done = 0
    while done < count:
        part = slice(done, min(done + batch, count))
        try:
            make(part)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if part.stop - part.start == 1:
                wanted = _bytes_wanted(str(error))
                size = "" if wanted is None else f"; {wanted} bytes more were needed"
                raise MemoryError(f"batch: a single image does not fit in memory{size}: {error}") from error
            batch = (part.stop - part.start) // 2
            logger.warning("out of memory with %d images at a time; going on with %d", part.stop - part.start, batch)
            continue
        done = part.stop
        if progress is not None:
            progress(done, count)


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch's CPU allocator, the CUDA runtime and its libraries report exhaustion as a plain RuntimeError."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in signs)


def _bytes_wanted(message: str) -> int | None:
    """The size that an allocator could not give, as PyTorch's and ours write it."""
    found = re.search(r"allocate ([0-9.]+) (bytes|[KMGT]iB)", message)
    return None if found is None else int(float(found[1]) * 1024 ** _UNITS[found[2].lower()])


class Precision(enum.Enum):
    """How images are made: as the caller asked or in float32; where a layer is looked for, without a plan."""

    GIVEN = enum.auto()
    FLOAT32 = enum.auto()
    GIVEN_LAYERS = enum.auto()
    FLOAT32_LAYERS = enum.auto()

    @property
    def forced(self) -> bool:
        """Whether networks must run in float32."""
        return self in (Precision.FLOAT32, Precision.FLOAT32_LAYERS)

    def of(self, net: Any) -> Any:
        """The network to use, for one that may be prepared."""
        if self is Precision.GIVEN or not isinstance(net, Prepared):
            return net
        if self is Precision.FLOAT32:
            return prepared_for(net.net, net.device, force_fp32=True) or Prepared(net.net, torch.float32, "auto")
        layers = copy.copy(net.net)  # the dtype is the copy's own, the layers are shared
        if self is Precision.GIVEN_LAYERS and isinstance(layers, Precond):
            layers.compute_dtype = net.dtype
        return layers


class NotFiniteError(FloatingPointError):
    """Some images have NaN or infinity, even in float32. `images` holds all, `finite` tells which of them are good."""

    def __init__(self, message: str, images: torch.Tensor, finite: torch.Tensor) -> None:
        super().__init__(message)
        self.images = images
        self.finite = finite


def finite_images(
    make: Callable[[torch.Tensor, Precision], tuple[torch.Tensor, torch.Tensor]],
    seeds: torch.Tensor,
    nets: Sequence[Any],
    half: bool,
    place: Callable[[int], str],
    debug: bool = False,
) -> torch.Tensor:
    """Images for all seeds, none of them with NaN or infinity.

    make(chosen, how) gives the images of the seeds at the indices `chosen`, and for each what `solver_step` left in
    `first_bad`, FINITE if nothing; place(row) says in words which step that is. If a network runs in 16 bits (`half`),
    those that are not finite, and no others, are made again in float32; with `debug` the first layer that overflowed
    is reported.

    Raises NotFiniteError with the seeds of the images that are still not finite, and the first layer that broke.
    """
    everything = torch.arange(len(seeds), device=seeds.device)
    images, first_bad = make(everything, Precision.GIVEN)
    broken = everything[first_bad != FINITE]
    if len(broken) and half:
        layer = first_bad_layer(nets, lambda: make(broken[:1], Precision.GIVEN_LAYERS)) if debug else None
        logger.warning(
            "%d images overflowed in 16 bits and are made again in float32: seeds %s; first %s%s",
            len(broken), _listed(seeds[broken]), place(int(first_bad.min())), _in_layer(layer),
        )  # fmt: skip
        images[broken], first_bad = make(broken, Precision.FLOAT32)
        broken = broken[first_bad != FINITE]
    if len(broken):
        layer = first_bad_layer(nets, lambda: make(broken[:1], Precision.FLOAT32_LAYERS))
        message = f"net: gave NaN or infinity for {len(broken)} of {len(images)} images: seeds {_listed(seeds[broken])}"
        finite = torch.ones_like(everything, dtype=torch.bool)
        finite[broken] = False
        raise NotFiniteError(f"{message}; first {place(int(first_bad.min()))}{_in_layer(layer)}", images, finite)
    return images


def _listed(seeds: torch.Tensor) -> str:
    return ", ".join(str(seed % 2**64) for seed in seeds[:10].tolist()) + (" …" if len(seeds) > 10 else "")


def _in_layer(layer: str | None) -> str:
    return "" if layer is None else f", in layer {layer}"


class _Found(Exception):
    """Ends a run at the first layer whose output is not finite."""


def first_bad_layer(nets: Sequence[Any], run: Callable[[], object]) -> str | None:
    """The name of the first layer of the network whose output is not finite during run(); None if there is none.

    A second network is the one that guides; its layers' names begin with "gnet.".
    """
    here = threading.get_ident()

    def hook(name: str) -> Callable[..., None]:
        def check(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            if threading.get_ident() != here:
                return  # another thread samples with the same network
            if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                raise _Found(name)

        return check

    handles = []
    try:
        for prefix, net in zip(("", "gnet."), nets, strict=False):
            module = net.net if isinstance(net, Prepared) else net
            for name, part in module.named_modules() if isinstance(module, torch.nn.Module) else ():
                if name and not any(part.children()):
                    handles.append(part.register_forward_hook(hook(prefix + name)))
        if handles:
            run()
    except _Found as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
    return None
