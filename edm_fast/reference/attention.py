"""Self-attention in plain PyTorch: the oracle for `edm_fast.ops.attention`."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """out = v · softmax_k(qᵀ k / √d) for q, k, v [B, d, L]; returns [B, d, L] in v's dtype.

    k/√d is formed in k's dtype, the product and the softmax run in float32 (float64 for float64 inputs), and the
    weights are rounded to v's dtype before they meet v.
    """
    accumulate = torch.promote_types(q.dtype, torch.float32)
    scaled = (k / math.sqrt(k.shape[1])).to(accumulate)
    weights = torch.bmm(q.to(accumulate).transpose(1, 2), scaled).softmax(dim=2).to(v.dtype)
    return torch.bmm(v, weights.transpose(1, 2))


def self_attention(qkv: Tensor, num_heads: int, packed: bool = False) -> Tensor:
    """Attention over the pixels of qkv [N, 3C, H, W]; returns [N, C, H, W].

    Inside a head q, k and v interleave channel by channel; with `packed` the channels are all of q, then k, then v.
    """
    samples, channels, height, width = qkv.shape
    width_of_head = channels // (3 * num_heads)
    if packed:
        blocks = qkv.reshape(samples, 3, num_heads, width_of_head, height * width).unbind(dim=1)
        q, k, v = (block.reshape(samples * num_heads, width_of_head, height * width) for block in blocks)
    else:
        q, k, v = qkv.reshape(samples * num_heads, width_of_head, 3, height * width).unbind(dim=2)
    return attention(q, k, v).reshape(samples, channels // 3, height, width)
