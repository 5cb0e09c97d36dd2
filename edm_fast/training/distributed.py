"""The processes that train one network together, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, distributed


class World(NamedTuple):
    """This process among all, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensor over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device))) if self.size > 1 else flag

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()


@contextlib.contextmanager
def world_of_torchrun(device: torch.device) -> Iterator[World]:
    """The world of the variables RANK, WORLD_SIZE and LOCAL_RANK; a process alone without them.

    Opens a process group, gloo on the CPU and nccl on CUDA, where each process takes the device of its LOCAL_RANK
    unless `device` has an index. Raises ValueError for variables that make no sense.
    """
    size = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0)
    if size < 1 or not 0 <= rank < size:
        raise ValueError(f"RANK must be from 0 to WORLD_SIZE - 1, but they are {rank} and {size}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", _number("LOCAL_RANK", 0))
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        distributed.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, but it is {text!r}") from None
