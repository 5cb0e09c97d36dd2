"""Training on a GPU: the CPU's noise levels, its losses within rounding, and a run that goes on where it stopped."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import cuda_usable
from training.runs import CONFIG, StopAfter, colour_data

from edm_fast.training.distributed import World
from edm_fast.training.loop import Trainer
from edm_fast.training.run import STATE_NAME, Run

pytestmark = pytest.mark.skipif(not cuda_usable(), reason="no CUDA device, or no CUDA kernels in this build")
CONFIG = dataclasses.replace(CONFIG, augment=0.0, dropout=0.0)


def test_on_cuda_a_step_is_the_cpus():
    steps = []
    for device in ("cpu", "cuda:0"):
        trainer = Trainer(CONFIG, colour_data(), World(device=torch.device(device)))
        steps.append((trainer.train_step().loss, trainer.losses.sums[0]))
    assert torch.equal(steps[0][1], steps[1][1])
    assert steps[1][0] == pytest.approx(steps[0][0], rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_cuda_an_interrupted_run_goes_on(dtype, tmp_path):
    """cuDNN's gradients may differ in the last bits from one run to the next, so the states are compared by step."""
    config = dataclasses.replace(CONFIG, dtype=dtype, augment=0.2, dropout=0.1, loss_scale=64.0)
    for stop in (StopAfter(3), lambda: False):
        made = Run(Trainer(config, colour_data(), World(device=torch.device("cuda", 0))), tmp_path)
        made.resume()
        made.go(progress=False, should_stop=stop)
    assert made.trainer.step == config.steps
    assert made.trainer.nonfinite_gradients == 0
    assert (tmp_path / STATE_NAME).exists()
