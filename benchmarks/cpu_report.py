"""The sections of RESULTS.md on processors, one per machine, from results/MACHINE/suite.json; and their plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from network_rows import MEMORY_ROWS, network_rows
from rows import NETWORKS, parse_row
from tables import NEVER, made_by, size, table, verdict

from edm_fast.bench.names import time_text
from edm_fast.bench.turns import fastest

FILE = "suite.json"
# Of a machine's cores; beside it a figure is marked.
MOST_OTHERS = 0.1

TEXT = """Each line: ours, and the fastest of what one would run instead, in the same rounds; the ratio is the median
over rounds, with quartiles. A round's turn is 5 ms of calls, or one call of a network, a training step or what takes
longer; times are of one call. Then the ratios over the other peers. GB/s are bytes that must be read or written, once;
beside them is the time of a copy of as many bytes over ours. Error is the largest difference from a float64 result over
its largest value, of ours and what is allowed; peers are held to the same. What was timed while other programs took
more than a tenth of the cores is marked †."""

GROUPS = {
    "network": """One forward of the inner network F, for one noise level and class labels; weights are random but not
zero, except the digits'. Every variant is a process of its own. Compiled is `torch.compile` as it comes, frozen is with
freezing and inductor's C++ wrapper; in bfloat16, convolutions and norms are cast beforehand and the embedding stays in
float32.""",
    "memory": "",
    "sampling": """From seeds to images by the shipped model in float32. Peers run its plain PyTorch network in eager
mode: the reference sampler with a float64 state, k-diffusion's and diffusers' with theirs in float32.""",
    "sampler overhead": """All of a step but the network, which costs nothing here. Peers: the paper's form in eager
PyTorch, and k-diffusion's sampler.""",
    "randn": "",
    "solver_step": "Both rows of a Heun step on a float64 state, over the reference in PyTorch.",
    "group_norm_silu": "",
    "resample": "",
    "residual": "",
    "attention": "",
    "conv2d": "",
    "noise augmentation": """All that is done around a network in a training step: noise, its input, the loss and its
gradient, over plain PyTorch.""",
    "augmentation pipe": "",
    "training step": "From images to updated averages, with Adam, over the same in plain PyTorch in both layouts.",
    "checkpoint": "From a file to a network; the peers read a plain state and fill the same network.",
    "algorithm choice": """The whole of CIFAR-10 DDPM++ with the 3×3 layers of one resolution switched to another
algorithm, over the choice by shape: above 1 is what a choice by batch size would gain.""",
}
COMMANDS = {"algorithm choice": "python benchmarks/algorithm_choice.py"}
COMMAND = "pytest benchmarks/suite --full"


def machines(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{FILE}"))


def sections(folder: Path) -> list[str]:
    """The paragraphs for all machines that there are figures of."""
    found = machines(folder)
    if not found:
        return ["## CPU", made_by(COMMAND), f"Nothing here has been timed: {NEVER}.", *missing({})]
    return [part for path in found for part in section(path)]


def section(path: Path) -> list[str]:
    data = json.loads((path / FILE).read_text())
    where, rows = data["machine"], data["rows"]
    parts = [f"## CPU: {where['processor']}, {where['instruction_set']}"]
    parts += [f"{where['threads']} threads; torch {where['torch']}, edm_fast {where['edm_fast']}."]
    note = path / "note.md"
    parts += [note.read_text().strip()] if note.exists() else []
    parts += [made_by(COMMAND), TEXT, f"![ratios over the fastest peer](plots/{path.name}.svg)"]
    for group, text in GROUPS.items():
        if group not in rows:
            continue
        parts += [f"### {group[0].upper()}{group[1:]}", *([text] if text else [])]
        parts += [made_by(COMMANDS[group])] if group in COMMANDS else []
        parts += [memory(rows[group]) if group == "memory" else comparison(rows[group])]
    return [*parts, *missing(rows)]


def missing(rows: dict[str, Any]) -> list[str]:
    """What of the networks has no figure."""
    names = [row.name for row in network_rows() if row.name not in rows.get("network", {})]
    names += [
        f"memory of {NETWORKS[name]} at {batch}"
        for name, batch in MEMORY_ROWS
        if f"{name}:{batch}" not in rows.get("memory", {})
    ]
    return [f"{NEVER.capitalize()}: {'; '.join(names)}."] if names else []


def comparison(entries: dict[str, Any]) -> str:
    header = [
        "Case",
        "Ours",
        "Fastest peer",
        "Its time",
        "Ratio",
        "Other peers",
        "GB/s (copy)",
        "Error",
        "Rounds",
        "Commit",
    ]
    return table(header, (line(name, entry) for name, entry in entries.items()))


def line(name: str, entry: dict[str, Any]) -> list[str]:
    if not entry["match"]:
        return [name, "–", "–", "–", "**no match**", "–", "–", entry["reason"], "–", entry["commit"]]
    peer = fastest(entry)
    assert peer is not None
    best = entry["peers"][peer]
    ratio = f"{verdict(best['ratio'], target_of(entry, peer))}, {best['low']:.2f} … {best['high']:.2f}"
    others = "; ".join(other_peers(entry, peer)) or "–"
    rate = "–"
    if "copy" in entry:
        rate = f"{entry['bytes'] / entry['ours_s'] / 1e9:.1f} ({entry['copy']['ratio']:.2f})"
    mark = " †" if entry.get("others_share", 0) > MOST_OTHERS else ""
    error = "–" if entry["error"] is None else f"{entry['error']:.0e} of {entry['error_bound']:g}"
    times = [time_text(entry["ours_s"]) + mark, peer, time_text(best["s"])]
    return [name, *times, ratio, others, rate, error, str(entry["rounds"]), entry["commit"]]


def target_of(entry: dict[str, Any], peer: str) -> float | None:
    """What is wanted of the ratio over this peer: it must be the fastest of its kind."""
    for prefix, target in entry.get("targets", {}).items():
        if fastest(entry, prefix) == peer:
            return target
    return None


def other_peers(entry: dict[str, Any], first: str) -> Iterator[str]:
    for name, peer in entry["peers"].items():
        if name != first:
            yield f"{name} {verdict(peer['ratio'], target_of(entry, name))}"


def memory(rows: dict[str, Any]) -> str:
    """Activations: of eager, the peak of what PyTorch's allocator gives out; of ours, the plan's memory and scratch."""
    lines = []
    for row, entry in rows.items():
        name, batch = parse_row(row)
        kinds = [entry[kind] for kind in ("eager_float32", "ours_float32", "ours_bfloat16")]
        ratio = kinds[0]["activation_bytes"] / kinds[1]["activation_bytes"]
        activations = [size(kind["activation_bytes"]) for kind in kinds]
        weights = [size(kind["weight_bytes"]) for kind in kinds]
        lines.append([NETWORKS[name], str(batch), *activations, f"{ratio:.2f}", *weights])
    header = (
        "Network,Batch,Activations: eager,ours,ours in bfloat16,Eager over ours,Weights: eager,ours,ours in bfloat16"
    )
    return table(header.split(","), lines)


def plots(folder: Path, target: Path) -> list[Path]:
    """Draw an SVG per machine into `target`; returns their paths."""
    found = machines(folder)
    if not found:
        return []
    import cpu_plots  # needs matplotlib, which the page does not

    made = []
    for path in found:
        rows = json.loads((path / FILE).read_text())["rows"]
        shown = {
            group: rows[group] for group in GROUPS if group in rows and group not in ("memory", "algorithm choice")
        }
        made.append(cpu_plots.draw(shown, target / f"{path.name}.svg"))
    return made
