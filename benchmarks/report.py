"""RESULTS.md from the JSON files in results/, and from nothing else; what has no file says so.

Run: python benchmarks/report.py            write RESULTS.md
     python benchmarks/report.py --check    exit with 1 if RESULTS.md is not what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rows import COMPARISONS, NETWORKS, ROWS, TARGETS, comparisons_of, parse_row

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE / "RESULTS.md"

NEVER = "never measured"

INTRODUCTION = """# Results

Made by `python benchmarks/report.py` from the files in `benchmarks/results`; do not edit. Ratios are medians over pairs
of interleaved runs, baseline over ours, with quartiles: above 1, ours is faster. Outputs are compared first, and what
does not match gets no time. What missed its target, why, and what was tried stands in [NOTES.md](NOTES.md)."""

NETWORKS_TEXT = """One forward of the inner network F, for one noise level and class labels; weights are random but
not zero, except the digits'. Every variant is a process of its own, memory allocation is tuned for all of them, and
ours is compared with the faster of the baseline's contiguous and channels-last layouts. Compiled is `torch.compile`
with freezing; in bfloat16, convolutions and norms are cast beforehand and the embedding stays in float32."""

DETAILS_TEXT = """Error is the largest difference from the float64 result over its largest value: ours, the
baseline's, and the bound for both."""

MEMORY_TEXT = """Activations: of eager, the peak of what PyTorch's allocator gives out during a forward; of ours, the
plan's working memory with its scratch. Weights: of eager, the parameters; of ours, what is packed for the kernels."""

OPS_TEXT = """The baseline is the fastest of those tried, whose name is given."""


def load(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def seconds(value: float) -> str:
    """1.234e-3 → '1.23 ms', with three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{value * 1e9:.3g} ns"


def size(value: float) -> str:
    """Bytes in MB, or GB from 1 GB on."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def verdict(ratio: float | None, target: float | None) -> str:
    """The ratio, and whether it reaches what is wanted of it."""
    shown = "not measured" if ratio is None else f"{ratio:.2f}"
    if target is None:
        return shown
    if ratio is None:
        return f"{shown} (wanted: {target:g})"
    return f"**{shown}** (met: {target:g})" if ratio >= target else f"{shown} (**missed**: {target:g})"


def quartiles(entry: dict[str, Any]) -> str:
    return f"{entry['ratio_low']:.2f} … {entry['ratio_high']:.2f}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def made_by(*commands: str) -> str:
    return "```\n" + "\n".join(commands) + "\n```"


def machine(data: dict[str, Any]) -> str:
    where = data["machine"]
    return (
        f"{where['processor']}, {where['threads']} threads, {where['instruction_set']}; "
        f"torch {where['torch']}, edm_fast {where['edm_fast']}."
    )


def machine_notes(notes: dict[str, str] | None) -> list[str]:
    """What there is to know of a machine beside its figures."""
    return ["\n".join(f"- {name}: {note}" for name, note in notes.items())] if notes else []


def label(row: str) -> list[str]:
    name, batch = parse_row(row)
    return [NETWORKS[name], str(batch)]


def network_cell(row: str, names: tuple[str, ...], entries: dict[str, Any]) -> str:
    """The cell of the first of the comparisons that the row has; they share a column."""
    found = [name for name in names if name in comparisons_of(row) or name in entries]
    if not found:
        return "–"
    entry = entries.get(found[0], {})
    if entry.get("match") is False:
        return "**no match**"
    return verdict(entry.get("ratio"), TARGETS.get((row, found[0])))


def summary(rows: dict[str, Any]) -> str:
    columns = {
        "float32 over eager": ("eager",),
        "float32 over compiled and frozen": ("compiled", "cpp_wrapper"),
        "bfloat16 over compiled and frozen": ("bfloat16",),
        "AVX2 only: float32 over eager": ("avx2",),
    }
    shown = [*ROWS, *(row for row in rows if row not in ROWS)]
    return table(
        ["Network", "Batch", *columns],
        ([*label(row), *(network_cell(row, names, rows.get(row, {})) for names in columns.values())] for row in shown),
    )


def details(rows: dict[str, Any]) -> str:
    lines = []
    for row, entries in rows.items():
        for name, comparison in COMPARISONS.items():
            entry = entries.get(name)
            if entry is None:
                continue
            if not entry["match"]:
                lines.append([*label(row), comparison.label, *["–"] * 5, f"no: {entry['reason']}", entry["commit"]])
                continue
            errors = f"yes ({entry['error']:.1e}, {entry['baseline_error']:.1e}, {entry['error_bound']:g})"
            layouts = ", ".join(f"{layout} {seconds(taken)}" for layout, taken in entry["layouts_s"].items())
            times = [layouts, seconds(entry["baseline_s"]), seconds(entry["ours_s"])]
            ratio = f"{entry['ratio']:.2f} ({quartiles(entry)})"
            lines.append([*label(row), comparison.label, *times, ratio, str(entry["pairs"]), errors, entry["commit"]])
    header = "Network,Batch,Comparison,Layouts,Baseline,Ours,Ratio,Pairs,Match (ours; baseline; bound),Commit"
    return table(header.split(","), lines)


def memory(rows: dict[str, Any]) -> str:
    lines = []
    for row, entries in rows.items():
        if "memory" not in entries:
            continue
        kinds = [entries["memory"][kind] for kind in ("eager_float32", "ours_float32", "ours_bfloat16")]
        ratio = kinds[0]["activation_bytes"] / kinds[1]["activation_bytes"]
        activations = [size(kind["activation_bytes"]) for kind in kinds]
        lines.append([*label(row), *activations, f"{ratio:.2f}", *(size(kind["weight_bytes"]) for kind in kinds)])
    header = (
        "Network,Batch,Activations: eager,ours,ours in bfloat16,Eager over ours,Weights: eager,ours,ours in bfloat16"
    )
    return table(header.split(","), lines)


def networks_section(data: dict[str, Any] | None) -> list[str]:
    rows = data["rows"] if data else {}
    parts = ["## Networks on the CPU", NETWORKS_TEXT]
    parts += [machine(data)] if data else [f"Nothing here has been timed: {NEVER}."]
    parts += [made_by("python benchmarks/networks.py --all"), summary(rows)]
    if any(name in COMPARISONS for entries in rows.values() for name in entries):
        parts += [DETAILS_TEXT, details(rows)]
    parts += ["### Memory"]
    if any("memory" in entries for entries in rows.values()):
        parts += [MEMORY_TEXT, memory(rows)]
    else:
        parts += [f"{NEVER.capitalize()}."]
    return parts


def flat_section(title: str, command: str, text: str, data: dict[str, Any] | None) -> list[str]:
    """A section for a file with a list of results."""
    parts = [f"## {title}", text, made_by(command)]
    if data is None:
        return [*parts, f"{NEVER.capitalize()}."]
    lines = []
    for entry in data["results"]:
        times = [seconds(entry["baseline_s"]), seconds(entry["ours_s"])]
        ratio = verdict(entry["ratio"], entry.get("target"))
        match = f"{entry['error']:.1e} of {entry['error_bound']:g}" if "error" in entry else "yes"
        baseline = entry.get("baseline", "eager")
        lines.append([entry["name"], baseline, *times, ratio, quartiles(entry), str(entry["pairs"]), match])
    header = ["Case", "Baseline", "Its time", "Ours", "Ratio", "Quartiles", "Pairs", "Match"]
    return [*parts, machine(data), table(header, lines)]


def render(folder: Path = RESULTS) -> str:
    """The page for the JSON files of a folder."""
    # Here, since it is made of the parts above.
    import gpu_report

    parts = [
        INTRODUCTION,
        *machine_notes(load(folder, "machines")),
        *networks_section(load(folder, "networks_cpu")),
        *flat_section("Single ops on the CPU", "python benchmarks/ops_cpu.py", OPS_TEXT, load(folder, "ops_cpu")),
        *flat_section(
            "Convolution algorithms, chosen by shape and never by batch",
            "python benchmarks/algorithm_choice.py",
            "The whole of CIFAR-10 DDPM++ by the rule, over the same with the 3×3 layers of one resolution switched. A "
            "ratio above 1 is what a choice by batch size would gain.",
            load(folder, "algorithm_choice"),
        ),
        *flat_section(
            "Sampler step without the network",
            "python benchmarks/sampler_overhead.py",
            "All that happens between two evaluations, against the paper's form in eager PyTorch.",
            load(folder, "sampler_overhead"),
        ),
        *flat_section(
            "Training on the CPU",
            "python benchmarks/training_cpu.py",
            "Against the same in plain PyTorch: the augmentations, all that is done around a network (noise, its "
            "input, the loss and its gradient), and whole steps, with Adam and the average of the weights. Memory is "
            "kept in the process for all of them.",
            load(folder, "training_cpu"),
        ),
        *gpu_report.section(load(folder, "gpu"), load(folder, "counted_cuda")),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    if parser.parse_args().check:
        current = PAGE.exists() and PAGE.read_text() == render()
        print(f"{PAGE.name} is {'up to date' if current else 'out of date: run python benchmarks/report.py'}")
        return 0 if current else 1
    PAGE.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
