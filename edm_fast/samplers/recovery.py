"""What `sample` does when something goes wrong: batches that do not fit, and images that are not finite."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)


def in_batches(
    make: Callable[[slice], None],
    count: int,
    batch: int,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Call make(part) for consecutive parts of range(count), `batch` at a time; halved if memory does not suffice.

    Calls progress(done, count) after each part. MemoryError if a part of one does not fit.
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
                raise MemoryError(f"batch: a single image does not fit in memory: {error}") from error
            batch = (part.stop - part.start) // 2
            logger.warning("out of memory with %d images at a time; going on with %d", part.stop - part.start, batch)
            continue
        done = part.stop
        if progress is not None:
            progress(done, count)


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch's CPU allocator reports exhaustion as a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def finite_images(
    make: Callable[[torch.Tensor, bool], torch.Tensor], seeds: torch.Tensor, net: Any, half: bool
) -> torch.Tensor:
    """Images for all seeds, none of them with NaN or infinity.

    make(chosen, force_fp32) gives the images of the seeds at the indices `chosen`. If the network runs in float16
    (`half`), those that are not finite, and no others, are made again in float32.

    Raises FloatingPointError with the seeds of the images that are still not finite, and the first layer that broke.
    """
    everything = torch.arange(len(seeds), device=seeds.device)
    images = make(everything, False)
    broken = everything[_not_finite(images)]
    if len(broken) and half:
        logger.warning("%d images overflowed in 16 bits and are made again in float32", len(broken))
        images[broken] = make(broken, True)
        broken = everything[_not_finite(images)]
    if len(broken):
        named = [seed % 2**64 for seed in seeds[broken].tolist()]
        listed = ", ".join(map(str, named[:10])) + (" …" if len(named) > 10 else "")
        layer = first_bad_layer(net, lambda: make(broken[:1], True))
        raise FloatingPointError(
            f"net: gave NaN or infinity for {len(named)} of {len(images)} images: seeds {listed}"
            + (f"; first in layer {layer}" if layer else "")
        )
    return images


def _not_finite(images: torch.Tensor) -> torch.Tensor:
    return ~torch.isfinite(images).flatten(1).all(dim=1)


class _Found(Exception):
    """Ends a run at the first layer whose output is not finite."""


def first_bad_layer(net: Any, run: Callable[[], object]) -> str | None:
    """The name of the first layer of `net` whose output is not finite during run(); None if there is none."""
    if not isinstance(net, torch.nn.Module):
        return None

    here = threading.get_ident()

    def hook(name: str) -> Callable[..., None]:
        def check(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            if threading.get_ident() != here:
                return  # another thread samples with the same network
            if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                raise _Found(name)

        return check

    leaves = [(name, module) for name, module in net.named_modules() if not any(module.children()) and name]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        run()
    except _Found as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
    return None
