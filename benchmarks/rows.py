"""What is compared with what, and the ratios that are wanted. Knows no torch, so that the report needs none."""

from __future__ import annotations

from dataclasses import dataclass

NETWORKS = {
    "ddpmpp": "CIFAR-10 DDPM++",
    "ncsnpp": "CIFAR-10 NCSN++",
    "adm": "ImageNet-64 ADM",
    "digits": "digits (shipped)",
}

ROWS = ("ddpmpp:1", "ddpmpp:8", "ncsnpp:1", "ncsnpp:8", "adm:1", "digits:1", "digits:64")


@dataclass(frozen=True)
class Comparison:
    """Ours against one baseline, in one storage type and with one instruction set.

    `baseline` is eager, compiled (torch.compile with freezing) or cpp_wrapper (the same with inductor's C++ wrapper).
    """

    label: str
    baseline: str
    dtype: str
    isa: str = "native"


COMPARISONS = {
    "eager": Comparison("float32 over eager float32", "eager", "float32"),
    "compiled": Comparison("float32 over compiled and frozen float32", "compiled", "float32"),
    "cpp_wrapper": Comparison("float32 over compiled and frozen float32 with cpp_wrapper", "cpp_wrapper", "float32"),
    "bfloat16": Comparison("bfloat16 over compiled and frozen bfloat16", "compiled", "bfloat16"),
    "avx2": Comparison("float32 over eager float32, both with AVX2 only", "eager", "float32", "avx2"),
}

# Relative to the largest value of the float64 result; see `relative_error` in networks.py.
ERROR_BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}

# The smallest ratio that is wanted of (row, comparison); a pair that is absent has none.
TARGETS: dict[tuple[str, str], float] = {
    **{(row, "eager"): 2.8 for row in ROWS[:4]},
    **{(row, "compiled"): 2.3 for row in ROWS[:4]},
    **{(row, "bfloat16"): 1.9 for row in ROWS[:4]},
    ("adm:1", "eager"): 2.4,
    ("adm:1", "compiled"): 2.0,
    ("adm:1", "bfloat16"): 1.6,
    **{(row, "eager"): 5.0 for row in ROWS[5:]},
    **{(row, "cpp_wrapper"): 2.0 for row in ROWS[5:]},
    ("ddpmpp:1", "avx2"): 2.0,
}


def comparisons_of(row: str) -> tuple[str, ...]:
    """The comparisons that a row consists of, memory aside."""
    if row.startswith("digits"):
        return ("eager", "cpp_wrapper")
    usual = ("eager", "compiled", "bfloat16")
    return (*usual, "avx2") if row == "ddpmpp:1" else usual


def parse_row(row: str) -> tuple[str, int]:
    """'ddpmpp:8' → ('ddpmpp', 8). ValueError for anything that is not NETWORK:BATCH."""
    name, _, batch = row.partition(":")
    if name not in NETWORKS or not batch.isdigit() or int(batch) < 1:
        raise ValueError(f"row: got {row!r}; it is NETWORK:BATCH with a network of {', '.join(NETWORKS)}")
    return name, int(batch)
