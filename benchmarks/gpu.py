"""Proves and measures the CUDA code, in stages that each fit in ten minutes; figures go into results/gpu.json.

    ceilings    rates of a copy and of a matrix product
    bits        noise equal to the CPU's; repeats and batch splits without a different bit
    tests       every test that runs on CUDA, selfcheck, generate
    images      sampling end to end against the reference sampler [NETWORK …]
    sanitize    compute-sanitizer [TOOL …]
    ops         single ops against a copy of as many bytes [OP …]
    networks    a forward of F against eager PyTorch and torch.compile [NETWORK or NETWORK:BATCH …]
    split       few images: convolutions by split sums over cuDNN's [NETWORK:BATCH …]
    sampling    the time from seeds to images [NETWORK:BATCH …]
    summary     the figures of the file
    kernels     every op at small sizes, for the sanitizers; keeps nothing
    forward     a forward of F at full size, for the sanitizers; keeps nothing [NETWORK:BATCH …]
    baseline    torch.compile's forward of F where nothing of ours runs, for a fault; keeps nothing [NETWORK:BATCH …]
    baseline-flash    the same without cuDNN's kernels of attention
    all         from ceilings to summary; gpu.sh gives each stage a process of its own

Run: python benchmarks/gpu.py STAGE [NAME …] [--dry-run]
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gpu_bits
import gpu_ceilings
import gpu_faults
import gpu_networks
import gpu_ops
import gpu_programs
import gpu_sampling
import gpu_split
import torch
from gpu_cases import Source, cases
from gpu_rows import SANITIZERS, selected_rows
from gpu_run import ROOT, Run, clock_of
from harness import RESULTS
from rows import parse_row

# What a summary leaves out of an entry.
_NOT_SHOWN = ("name", "pairs", "commit", "date", "seed", "cases", "skip_reasons", "op", "target", "num_steps", "images")


@dataclass(frozen=True)
class Stage:
    """`run` says whether all was well; `describe` what it would do; `check` raises ValueError for a bad name."""

    run: Callable[[Run, Sequence[str]], bool]
    describe: Callable[[Sequence[str]], Iterable[str]]
    check: Callable[[list[str]], object]


def no_names(names: list[str]) -> None:
    if names:
        raise ValueError(f"names: got {' '.join(names)}; this stage takes none")


def names_of(known: Iterable[str]) -> Callable[[list[str]], None]:
    choices = tuple(known)

    def check(names: list[str]) -> None:
        for name in names:
            if name not in choices:
                raise ValueError(f"names: got {name!r}; it is one of {', '.join(choices)}")

    return check


def run_kernels(run: Run, _: Sequence[str] = ()) -> bool:
    """Every op once on a few small samples."""
    for case in cases(3):
        case.call(case.make(case.samples, Source(run.device, run.generator(run.device))), None)
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    return True


def describe_kernels(_: Sequence[str]) -> Iterable[str]:
    return (case.name for case in cases(3))


def show_summary(output: Path) -> None:
    """A line per figure of the file."""
    if not output.exists():
        print("nothing has been measured")
        return
    for row, entries in json.loads(output.read_text())["rows"].items():
        for name, entry in entries.items():
            shown = {key: value for key, value in entry.items() if key not in _NOT_SHOWN}
            print(f"{row}, {name}: {', '.join(f'{key} {_short(value)}' for key, value in shown.items())}")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


STAGES = {
    "ceilings": Stage(gpu_ceilings.measure, gpu_ceilings.describe, no_names),
    "bits": Stage(gpu_bits.check, gpu_bits.describe, no_names),
    "tests": Stage(gpu_programs.run_tests, gpu_programs.describe_tests, no_names),
    "images": Stage(gpu_sampling.check, gpu_sampling.describe, names_of(gpu_sampling.SAMPLED)),
    "sanitize": Stage(gpu_programs.sanitize, gpu_programs.describe_sanitizers, names_of(SANITIZERS)),
    "ops": Stage(gpu_ops.measure, gpu_ops.describe, names_of(gpu_ops.names())),
    "networks": Stage(gpu_networks.measure, gpu_networks.describe, selected_rows),
    "split": Stage(gpu_split.measure, gpu_split.describe, lambda rows: [parse_row(row) for row in rows]),
    "sampling": Stage(gpu_sampling.measure, gpu_sampling.describe_times, lambda rows: [parse_row(row) for row in rows]),
    "kernels": Stage(run_kernels, describe_kernels, no_names),
    "forward": Stage(gpu_faults.run_forward, gpu_faults.describe_forward, selected_rows),
    "baseline": Stage(gpu_faults.run_baseline, gpu_faults.describe_baseline, selected_rows),
    "baseline-flash": Stage(
        gpu_faults.run_baseline_without_cudnn, gpu_faults.describe_baseline_without_cudnn, selected_rows
    ),
}
SUMMARY = "summary"
WITHOUT_FIGURES = ("kernels", "forward", "baseline", "baseline-flash")
ALL = (*(name for name in STAGES if name not in WITHOUT_FIGURES), SUMMARY)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, SUMMARY, "all"], metavar="STAGE", help="one of the above")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of the stage; all of it by default")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done; needs no GPU")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json", help="JSON file to merge into")
    parser.add_argument("--earlier", type=Path, help="a file whose figures --output begins with, if they go together")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "gpu", help="folder for what programs print")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of all random data; by default another one every time")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of turns per comparison (default: %(default)s)")
    parser.add_argument("--commit", help="what is measured, where git cannot say it")
    options = parser.parse_intermixed_args(given)
    if options.pairs < 1:
        parser.error(f"--pairs: got {options.pairs}; at least 1 is needed")
    try:
        (STAGES[options.stage].check if options.stage in STAGES else no_names)(options.names)
    except ValueError as error:
        parser.error(str(error))
    return options


def begin(options: argparse.Namespace) -> Run:
    """Check the device and the file, before anything is measured. RuntimeError or ValueError if they will not do."""
    device = options.device
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"--device: PyTorch cannot use {device}; --dry-run needs no GPU")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed of the random data: {seed}")
    options.logs.mkdir(parents=True, exist_ok=True)
    run = Run(device, options.output, options.logs, seed, options.pairs, clock_of(device), options.commit)
    if options.earlier is not None:
        run.take_over(options.earlier)
    return run


def run_stage(name: str, run: Run, names: Sequence[str]) -> bool:
    print(f"== {name}", flush=True)
    # Processes that compile at the same time do not meet in one folder, nor with what a run that failed has left.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix=f"inductor-{name}-", dir=run.scratch)
    os.environ.pop("TRITON_CACHE_DIR", None)  # inside of it, if nothing is said
    if name not in WITHOUT_FIGURES:
        run.check_output()
    return STAGES[name].run(run, names)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    stages = [name for name in (ALL if options.stage == "all" else (options.stage,)) if name != SUMMARY]
    failed: list[str] = []
    if options.dry_run:
        for name in stages:
            print(f"== {name}, which needs a GPU")
            for line in STAGES[name].describe(options.names):
                print(f"would: {line}")
    elif stages:
        run = begin(options)
        failed = [name for name in stages if not run_stage(name, run, options.names)]
    if options.stage in (SUMMARY, "all"):
        print(f"== {SUMMARY}")
        kept = options.output.exists() or options.earlier is None
        show_summary(options.output if kept else options.earlier)
    if failed:
        print(f"not all was well in: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
