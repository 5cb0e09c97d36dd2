"""Checkpoints: opening them runs none of their code."""

from __future__ import annotations

from edm_fast.checkpoints.loading import load, shipped_model
from edm_fast.checkpoints.native import load_network, save_network

__all__ = ["load", "load_network", "save_network", "shipped_model"]
