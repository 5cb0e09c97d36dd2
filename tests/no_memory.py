"""A machine without memory for images, for commands in processes of their own, which must be able to import it."""

from __future__ import annotations

import torch

from edm_fast.plan import Prepared


def no_memory_for_images() -> None:
    """Let a prepared network ask for more memory than there is."""
    Prepared.run = lambda self, *rest: torch.empty(1 << 55)  # type: ignore[method-assign]
