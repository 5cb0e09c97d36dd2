"""The modulation rows of a network: what every block's `affine` makes of the noise level and the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edm_fast.plan.weights import PackedLinear


class Modulation:
    """Rows [columns] for pairs of (noise label, class and augment labels), float32, all blocks side by side.

    A row is a function of its own pair alone, to the bit: every product is ours, and the embedding of a noise label is
    computed by itself, since the vector and the scalar cosine of a library may differ in the last bit.
    """

    def __init__(self, network: Any, affines: Sequence[nn.Module]) -> None:
        self._network = network
        self._song = not hasattr(network, "out_norm")
        self._layer0 = PackedLinear(network.map_layer0)
        self._layer1 = PackedLinear(network.map_layer1)
        self._label = None if network.map_label is None else PackedLinear(network.map_label)
        self._augment = None if network.map_augment is None else PackedLinear(network.map_augment)
        self._affine = PackedLinear(*affines)
        self.columns = self._affine.out_features

    def __call__(
        self,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows [R, columns] for noise_labels [R], class_labels [R, label_dim] and augment_labels [R, augment_dim]."""
        return self._affine(self._embedding(noise_labels, class_labels, augment_labels))

    def _embedding(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        network = self._network
        # Samples of a batch usually share one noise level, and steps of many batches a few.
        distinct, place = torch.unique(noise_labels.detach().float().cpu().flatten(), return_inverse=True)
        emb = torch.cat([self._noise_row(label) for label in distinct])[place]
        augment = None
        if self._augment is not None and augment_labels is not None:
            augment = self._augment(augment_labels.detach().cpu())
        labels = None
        if self._label is not None and class_labels is not None:
            scaled = class_labels.detach().float().cpu()
            labels = self._label(scaled * math.sqrt(network.label_dim) if self._song else scaled)
        if self._song:
            emb = emb if labels is None else emb + labels
            emb = emb if augment is None else emb + augment
            return self._layer1(self._layer0(emb, silu=True), silu=True)
        emb = emb if augment is None else emb + augment
        return self._layer1(self._layer0(emb, silu=True), silu=True, addend=labels)

    def _noise_row(self, label: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            row = self._network.map_noise(label[None])
        return torch.cat(row.chunk(2, dim=1)[::-1], dim=1) if self._song else row


class DeviceModulation:
    """`Modulation` on the device of the network, by PyTorch's products in float32.

    A row may differ in its last bits with the number of rows. `column_biases` [columns] is added to each.
    """

    def __init__(self, network: Any, affines: Sequence[Any], column_biases: torch.Tensor) -> None:
        self._network = network
        self._song = not hasattr(network, "out_norm")
        self._weight = torch.cat([affine.weight.detach().float() for affine in affines])
        biases = [
            affine.weight.new_zeros(affine.weight.shape[0]) if affine.bias is None else affine.bias.detach()
            for affine in affines
        ]
        self._bias = torch.cat([bias.float() for bias in biases]) + column_biases
        self.columns = self._weight.shape[0]

    @torch.no_grad()
    def __call__(
        self,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows [R, columns] for noise_labels [R], class_labels [R, label_dim] and augment_labels [R, augment_dim]."""
        network, device = self._network, self._weight.device
        emb = network.map_noise(noise_labels.detach().to(device, torch.float32).flatten())
        augment = labels = None
        if network.map_augment is not None and augment_labels is not None:
            augment = network.map_augment(augment_labels.detach().to(device, torch.float32))
        if network.map_label is not None and class_labels is not None:
            scaled = class_labels.detach().to(device, torch.float32)
            labels = network.map_label(scaled * math.sqrt(network.label_dim) if self._song else scaled)
        if self._song:
            emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)
            emb = emb if labels is None else emb + labels
        emb = emb if augment is None else emb + augment
        emb = network.map_layer1(functional.silu(network.map_layer0(emb)))
        if not self._song and labels is not None:
            emb = emb + labels
        return functional.linear(functional.silu(emb), self._weight, self._bias)
