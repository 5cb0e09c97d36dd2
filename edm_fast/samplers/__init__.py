"""Samplers: schedules and solvers make a coefficient table, one loop executes it."""

from edm_fast.samplers.edm import ablation_sampler, edm_sampler, edm_table
from edm_fast.samplers.execution import Progress
from edm_fast.samplers.noise import random_class
from edm_fast.samplers.sample import sample

__all__ = ["Progress", "ablation_sampler", "edm_sampler", "edm_table", "random_class", "sample"]
