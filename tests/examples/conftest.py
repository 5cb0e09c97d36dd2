"""The programs in examples/, as modules and as a user runs them; the paper's sampler with the noise of seeds."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edm_fast
from edm_fast.reference import samplers as reference

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def example():
    """example("dit") is the module examples/dit.py."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_elsewhere(tmp_path):
    """Runs a program of examples/ in a process of its own, in an empty folder, and returns what it printed."""

    def run(name, *arguments):
        result = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


class Bounded:
    """A plain denoiser with the attributes that the reference sampler asks of a network."""

    def __init__(self, net):
        self.net = net
        self.sigma_min, self.sigma_max = getattr(net, "sigma_min", 0), getattr(net, "sigma_max", torch.inf)

    def __call__(self, x, sigma, class_labels):
        return self.net(x, sigma, class_labels)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


@pytest.fixture(scope="session")
def by_the_paper():
    """The reference sampler with the noise that `edm_fast.sample` takes for the seeds; float64."""

    def sample(net, shape, seeds, class_labels=None, **options):
        draws = itertools.count(1)
        latents = edm_fast.randn(shape, seeds, dtype=torch.float64)
        noise = lambda x: edm_fast.randn(shape, seeds, next(draws), dtype=x.dtype)  # noqa: E731
        with torch.no_grad():
            return reference.edm_sampler(Bounded(net), latents, class_labels, randn_like=noise, **options)

    return sample
