"""Weight averages of any width after the run, from stored ones (Karras et al. 2023, arXiv 2312.02696, section 3.2).

The wanted profile p is approximated by Σ xᵢ pᵢ of the stored ones, in the least squares sense: A x = b with
Aᵢⱼ = ⟨pᵢ, pⱼ⟩ and bᵢ = ⟨pᵢ, p⟩. The average is linear in its profile, so that Σ xᵢ θᵢ approximates the wanted weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from edm_fast.training.ema_snapshots import Snapshot
from edm_fast.training.power_ema import gamma_of


def inner_products(gamma_a: np.ndarray, t_a: np.ndarray, gamma_b: np.ndarray, t_b: np.ndarray) -> np.ndarray:
    """⟨p_a, p_b⟩ = (γ_a + 1)(γ_b + 1)·(t_a/t_b)^e / ((γ_a + γ_b + 1)·max(t_a, t_b)), e = γ_b if t_a < t_b else −γ_a.

    The integral of the product of two profiles; float64, broadcast as numpy does.
    """
    ratio = (t_a / t_b) ** np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def combination(sigma_rels: Sequence[float], times: Sequence[float], sigma_rel: float, t: float) -> np.ndarray:
    """The weights x float64 [n], of sum 1, with which stored averages approximate the one of width sigma_rel at t.

    Args:
        sigma_rels: widths of the stored averages.
        times: images that each had seen. No two are alike in both.
        sigma_rel: the wanted width.
        t: images seen at the end of the wanted profile.

    Raises ValueError for a width out of range.
    """
    gammas = np.array([gamma_of(width) for width in sigma_rels])
    # Times as fractions of t: the numbers stay near 1, and the solution is the same.
    fractions = np.array(times, dtype=np.float64) / t
    matrix = inner_products(gammas[:, None], fractions[:, None], gammas, fractions)
    wanted = inner_products(gammas, fractions, np.array(gamma_of(sigma_rel)), np.array(1.0))
    weights = np.linalg.solve(matrix, wanted)
    return weights / weights.sum()


def reconstruct(snapshots: Sequence[Snapshot], sigma_rel: float, t: int | None = None) -> dict[str, Tensor]:
    """The state dict of the average of width `sigma_rel` after `t` images; None means the last snapshot's.

    Snapshots later than t are not used. Parameters are combined in float64, one network in memory at a time, and have
    the dtype of the snapshots' networks; buffers are those of the last snapshot.

    Raises ValueError, naming what is wrong, for no snapshots (up to t), for a width out of range, for a t beyond the
    last snapshot, for two snapshots of one width and time, and for snapshots of different networks; and whatever
    loading a snapshot does.
    """
    gamma_of(sigma_rel)
    if not snapshots:
        raise ValueError("snapshots must be one or more, but there are none")
    latest = max(snapshot.images_seen for snapshot in snapshots)
    t = latest if t is None else t
    if t > latest:
        raise ValueError(f"t must be at most {latest}, the images that the last snapshot has seen, but it is {t}")
    used = sorted((s for s in snapshots if s.images_seen <= t), key=lambda s: (s.images_seen, s.sigma_rel))
    if not used:
        raise ValueError(f"t must be a time after the first snapshot, but it is {t}")
    _check_different(used)
    for snapshot in used:
        if snapshot.architecture != used[0].architecture:
            raise ValueError(f"snapshots must be of one network, but {used[0].name} and {snapshot.name} are not")
    weights = combination([s.sigma_rel for s in used], [s.images_seen for s in used], sigma_rel, t)
    total: dict[str, Tensor] = {}
    for snapshot, weight in zip(used, weights.tolist(), strict=True):
        net = snapshot.load()
        _add(total, net, weight, snapshot.name)
    state = net.state_dict()
    return {name: total[name].to(tensor.dtype) if name in total else tensor for name, tensor in state.items()}


def _check_different(snapshots: Sequence[Snapshot]) -> None:
    seen: dict[tuple[int, float], str] = {}
    for snapshot in snapshots:
        key = (snapshot.images_seen, snapshot.sigma_rel)
        if key in seen:
            raise ValueError(f"snapshots must differ in width or time, but {seen[key]} and {snapshot.name} do not")
        seen[key] = snapshot.name


@torch.no_grad()
def _add(total: dict[str, Tensor], net: nn.Module, weight: float, name: str) -> None:
    """Add the parameters times a weight to float64 sums, which the first network makes."""
    parameters = dict(net.named_parameters())
    if not total:
        total.update({key: torch.zeros_like(value, dtype=torch.float64) for key, value in parameters.items()})
    if {key: value.shape for key, value in parameters.items()} != {key: value.shape for key, value in total.items()}:
        raise ValueError(f"snapshots must be of one network, but {name} has other parameters than those before it")
    for key, value in parameters.items():
        total[key].add_(value, alpha=weight)
