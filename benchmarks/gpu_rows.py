"""What is measured on a GPU, and the figures that are wanted. Knows no torch, so that the report needs none."""

from __future__ import annotations

from rows import NETWORKS, parse_row

TITLE = "CUDA"

TIMED = ("ddpmpp", "ncsnpp", "adm")
BATCHES = (1, 64, 512)
ROWS = tuple(f"{network}:{batch}" for network in TIMED for batch in BATCHES)

# The ways to run F that ours is compared with, all in bfloat16.
BASELINES = ("eager", "compiled")

# The smallest ratio over compiled that is wanted, by batch size.
TARGETS = {1: 1.6, 64: 1.15, 512: 1.15}

# The share of the measured copy bandwidth that is wanted of an op.
OP_TARGETS = {"group_norm_silu": 0.85, "solver_step": 0.85, "resample": 0.85}

# Sampling that is timed, with this number of steps, and the seconds that are wanted.
SAMPLING_ROWS = ("ddpmpp:1", "ddpmpp:64")
SAMPLING_STEPS = 18
SAMPLING_TARGETS_S = {"ddpmpp:1": 0.025}

# Forwards by split sums over those by cuDNN.
SPLIT_ROWS = ("ddpmpp:1", "ddpmpp:4", "ddpmpp:16", "ncsnpp:1", "adm:1")

# Rows of the file and the entries that tell of correctness.
CHECKED = ("digits", *TIMED)
PRECISIONS = ("float32", "float32 with TF32", "bfloat16")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
CHECKS: dict[str, tuple[str, ...]] = {
    "tests": ("pytest", "selfcheck", "generate"),
    "bits": ("noise", "repeats", "splits", *(f"network {name}" for name in CHECKED)),
    "images": tuple(f"{name}, {precision}" for name in CHECKED for precision in PRECISIONS),
    "sanitize": ("planted bug", *SANITIZERS),
}


def selected_rows(arguments: list[str]) -> list[str]:
    """'ddpmpp' stands for its batch sizes, and nothing for all rows. ValueError for what is neither that nor a row."""
    rows: list[str] = []
    for argument in arguments:
        if argument in NETWORKS:
            rows += [f"{argument}:{batch}" for batch in BATCHES]
        else:
            parse_row(argument)
            rows.append(argument)
    return rows or list(ROWS)
