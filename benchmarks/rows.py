"""Networks by name, and how far their outputs may be from float64. Knows no torch, so that the report needs none."""

from __future__ import annotations

NETWORKS = {
    "ddpmpp": "CIFAR-10 DDPM++",
    "ncsnpp": "CIFAR-10 NCSN++",
    "adm": "ImageNet-64 ADM",
    "digits": "digits (shipped)",
}

# Relative to the largest value of the float64 result; see `relative_error`.
ERROR_BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}


def parse_row(row: str) -> tuple[str, int]:
    """'ddpmpp:8' → ('ddpmpp', 8). ValueError for anything that is not NETWORK:BATCH."""
    name, _, batch = row.partition(":")
    if name not in NETWORKS or not batch.isdigit() or int(batch) < 1:
        raise ValueError(f"row: got {row!r}; it is NETWORK:BATCH with a network of {', '.join(NETWORKS)}")
    return name, int(batch)


def label(row: str) -> list[str]:
    """'ddpmpp:8' → ['CIFAR-10 DDPM++', '8']."""
    name, batch = parse_row(row)
    return [NETWORKS[name], str(batch)]
