"""Whole training steps: forward, loss, backward, Adam and the average of the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from training_steps import STEPS, step_case


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("batch", "dtype"), STEPS)
def test_step(batch: int, dtype: str, full: bool, versus: Callable[..., None]) -> None:
    if not full and (batch, dtype) != STEPS[0]:
        pytest.skip("--full measures it")
    name = f"training step, DDPM++ of 64 channels, {batch} × 3×32×32 {dtype}"
    with torch.enable_grad():
        versus("training step", name, step_case(batch, dtype, 2 if not full else None))
