"""The section of RESULTS.md on CUDA, from results/gpu.json and what was counted; what was never measured says so."""

from __future__ import annotations

from typing import Any

import gpu_rows
from rows import NETWORKS, label, parse_row
from tables import NEVER, made_by, quartiles, size, table, verdict

from edm_fast.bench.names import time_text

DETAILS_TEXT = """Error is the largest difference from the float64 result over its largest value: ours, the
baseline's, and the bound for both."""

TEXT = """Times are taken by CUDA events, ours and the baseline in turn. A forward is one of the inner network F in
bfloat16, for one noise level and a label for each image, its embedding included. Eager has convolutions and norms cast
beforehand and is channels-last; compiled is `torch.compile` of the same with fused attention, CUDA graphs and cuDNN's
convolutions. cuDNN chooses by trial for all. The floor is the sum over the plan's operations of what these rates allow:
the longer of its operations at that of a matrix product and its activations at that of a copy."""

SAMPLING_TEXT = """From seeds to images in bfloat16 by Heun's method, over the reference sampler in PyTorch with an
eager or a compiled network."""

SPLIT_TEXT = """Our own convolutions for few images, `prepare(…, conv_algorithm="split")`, over cuDNN's in the
same network with modulation rows given, and by themselves for one image, with moments, replayed from graphs."""

OPS_TEXT = """Replayed from CUDA graphs on tensors far beyond the L2 cache, in turn with a copy of as many bytes; the
share is the copy's time over ours. Bytes are those that must be read or written, once."""

COUNTED_TEXT = (
    """Counted from the plan, not timed: kernels per forward, and bytes that they read and write per image."""
)


def machine(data: dict[str, Any]) -> str:
    where = data["machine"]
    return (
        f"{where['gpu']}, driver {where['driver']}; torch {where['torch']}, CUDA {where['cuda']}, cuDNN "
        f"{where['cudnn']}, edm_fast {where['edm_fast']}."
    )


def cell(entry: dict[str, Any] | None, target: float | None) -> str:
    """The ratio of a comparison and its target; that there is none, or no match."""
    if entry is None:
        return NEVER if target is None else f"{NEVER} (wanted: {target:g})"
    return verdict(entry["ratio"], target) if entry["match"] else "**no match**"


def ceilings(rows: dict[str, Any]) -> str:
    found = rows.get("ceilings", {})
    kinds = {
        "copy": ("Copy, bytes read and written", "bytes_per_s", "TB/s"),
        "matmul": ("Matrix product in bfloat16", "flops_per_s", "TFLOP/s"),
    }
    lines = []
    for name, (what, key, unit) in kinds.items():
        entry = found.get(name)
        shown = [NEVER, ""] if entry is None else [f"{entry[key] / 1e12:.3g} {unit}", entry["commit"]]
        lines.append([what, *shown])
    return table(["Rate", "Measured", "Commit"], lines)


def check_result(entry: dict[str, Any]) -> str:
    """What came of a check, whichever it is, and in bold that it was bad."""
    parts = [] if entry.get("good", True) else ["**bad**"]
    if "tests" in entry and "failures" in entry:
        wrong = entry["failures"] + entry["errors"]
        parts.append(f"{entry['tests'] - wrong - entry['skipped']} passed, {wrong} failed, {entry['skipped']} skipped")
    elif "status" in entry:
        parts.append(f"status {entry['status']}")
    if "differing" in entry:
        parts.append(f"{entry['differing']} of {entry['elements']} elements differ")
    if "splits_differing" in entry:
        repeats, splits = entry["repeats_differing"], entry["splits_differing"]
        parts.append(f"{repeats} elements differ in repeats, {splits} of {entry['elements']} in batch splits")
    if "error" in entry:
        parts.append(f"off by {entry['error']:.1e}")
    if "eager_error" in entry:
        parts.append(f"eager by {entry['eager_error']:.1e}, {entry['error_bound']:.1e} allowed")
    if "seen" in entry:
        parts.append(entry["message"].splitlines()[0])
    parts += [f"{name}: {entry[name]}" for name in ("kernels", "tests", "network") if isinstance(entry.get(name), str)]
    return ", ".join(parts)


def checks(rows: dict[str, Any]) -> str:
    lines = []
    for group, names in gpu_rows.CHECKS.items():
        if group not in rows:
            lines.append([group, NEVER, ""])
            continue
        for name in names:
            entry = rows[group].get(name)
            result = [NEVER, ""] if entry is None else [check_result(entry), entry["commit"]]
            lines.append([f"{group}: {name}", *result])
    return table(["Check", "Result", "Commit"], lines)


def networks(rows: dict[str, Any]) -> list[str]:
    shown = [*gpu_rows.ROWS, *(row for row in rows if ":" in row and row not in gpu_rows.ROWS)]
    header = "Network,Batch,over eager,over compiled,Ours,Floor over ours,Ours with modulation rows given"
    parts = [table(header.split(","), (network_cells(row, rows.get(row, {})) for row in shown))]
    details = [line for row in shown for line in network_details(row, rows.get(row, {}))]
    if details:
        header = "Network,Batch,Over,Baseline,Ours,Ratio,Pairs,Match (ours; baseline; bound),Commit"
        parts += [DETAILS_TEXT, table(header.split(","), details)]
    return parts


def network_cells(row: str, entries: dict[str, Any]) -> list[str]:
    plan = entries.get("plan", {})
    wrong = plan if plan.get("match") is False else None
    target = gpu_rows.TARGETS.get(parse_row(row)[1])
    ratios = [cell(entries.get(name, wrong), target if name == "compiled" else None) for name in gpu_rows.BASELINES]
    timed = [entry for name in gpu_rows.BASELINES if (entry := entries.get(name)) is not None and entry["match"]]
    best = min(timed, key=lambda entry: entry["ours_s"], default=None)
    times = [NEVER, NEVER] if best is None else [time_text(best["ours_s"]), f"{best['floor_share']:.2f}"]
    given = plan.get("rows_given_s")
    return [*label(row), *ratios, *times, NEVER if given is None else time_text(given)]


def network_details(row: str, entries: dict[str, Any]) -> list[list[str]]:
    lines = []
    captured = entries.get("plan", {}).get("captured", True)
    for name in ("plan", *gpu_rows.BASELINES):
        entry = entries.get(name, {})
        if entry.get("match") is False:
            lines.append([*label(row), name, *["–"] * 4, f"no: {entry['reason']}", entry["commit"]])
        elif "ratio" in entry:
            errors = f"yes ({entry['error']:.1e}, {entry['baseline_error']:.1e}, {entry['error_bound']:g})"
            times = [time_text(entry["baseline_s"]), time_text(entry["ours_s"])]
            ratio = f"{entry['ratio']:.2f} ({quartiles(entry)})"
            notes = [who for who, graphs in (("ours", captured), (name, not entry["graphs_skipped"])) if not graphs]
            over = f"{name}; no CUDA graph: {', '.join(notes)}" if notes else name
            lines.append([*label(row), over, *times, ratio, str(entry["pairs"]), errors, entry["commit"]])
    return lines


def ops(entries: dict[str, Any]) -> str:
    lines = []
    for name, entry in entries.items():
        if not entry["match"]:
            lines.append([name, *["–"] * 4, f"no: {entry['reason']}", entry["commit"]])
            continue
        rate = f"{entry['bytes'] / entry['ours_s'] / 1e12:.2f} TB/s"
        match = f"{entry['error']:.1e} of {entry['error_bound']:g}"
        share = verdict(entry["ratio"], entry["target"])
        lines.append([name, time_text(entry["ours_s"]), rate, share, quartiles(entry), match, entry["commit"]])
    measured = {entry["op"] for entry in entries.values()}
    for op, target in gpu_rows.OP_TARGETS.items():
        if op not in measured:
            lines.append([op, *[NEVER] * 2, cell(None, target), *[NEVER] * 2, ""])
    return table(["Case", "Time", "Rate", "Share of the copy", "Quartiles", "Match", "Commit"], lines)


def sampling_time(row: str, entry: dict[str, Any] | None) -> str:
    """Ours, and whether that is what is wanted."""
    target = gpu_rows.SAMPLING_TARGETS_S.get(row)
    if entry is None or not entry["match"]:
        return NEVER if target is None else f"{NEVER} (wanted: {time_text(target)})"
    ours = time_text(entry["ours_s"])
    if target is None:
        return ours
    return f"{ours} ({'met' if entry['ours_s'] <= target else '**missed**'}: {time_text(target)})"


def sampling(entries: dict[str, Any]) -> str:
    lines = []
    for row in gpu_rows.SAMPLING_ROWS:
        for name in gpu_rows.BASELINES:
            entry = entries.get(f"{row}, {name}")
            theirs = time_text(entry["baseline_s"]) if entry is not None and entry["match"] else NEVER
            times = [theirs, sampling_time(row, entry)]
            commit = "" if entry is None else entry["commit"]
            lines.append([*label(row), str(gpu_rows.SAMPLING_STEPS), name, *times, cell(entry, None), commit])
    return table(["Network", "Batch", "Steps", "Over", "Its time", "Ours", "Ratio", "Commit"], lines)


def split(entries: dict[str, Any]) -> str:
    wanted = [f"{row}, network" for row in gpu_rows.SPLIT_ROWS]
    wanted += [f"{row}, sampling" for row in gpu_rows.SPLIT_ROWS if row in gpu_rows.SAMPLING_TARGETS_S]
    lines = []
    for name in [*wanted, *(name for name in entries if name not in wanted)]:
        row, _, what = name.partition(", ")
        entry = entries.get(name)
        if entry is not None and not entry["match"]:
            lines.append([*label(row), what, *["–"] * 4, f"no: {entry['reason']}", entry["commit"]])
            continue
        plain = NEVER if entry is None else time_text(entry["ours_s"])
        ours = sampling_time(row, entry) if what == "sampling" else plain
        if entry is None:
            lines.append([*label(row), what, NEVER, ours, NEVER, "", "", ""])
            continue
        errors = f"yes ({entry['error']:.1e} of {entry['error_bound']:g})"
        times = [time_text(entry["baseline_s"]), ours]
        lines.append([*label(row), what, *times, cell(entry, None), quartiles(entry), errors, entry["commit"]])
    return table(["Network", "Batch", "Of", "cuDNN", "Split", "Ratio", "Quartiles", "Match", "Commit"], lines)


def counted_networks(counted: dict[str, Any] | None) -> list[str]:
    parts = ["### Networks, counted", COUNTED_TEXT]
    if counted is None:
        return [*parts, "Never counted."]
    lines = []
    for name, figures in counted["networks"].items():
        launches, eager_launches = figures["launches"], figures["eager_launches"]
        moved, eager_moved = figures["bytes_per_image"], figures["eager_bytes_per_image"]
        counts = [str(eager_launches), str(launches), f"{eager_launches / launches:.1f}"]
        lines.append([NETWORKS.get(name, name), *counts, size(eager_moved), size(moved), f"{eager_moved / moved:.1f}"])
    header = "Network,Launches: eager,ours,ratio,Bytes per image: eager,ours,ratio"
    return [*parts, table(header.split(","), lines)]


def section(data: dict[str, Any] | None, counted: dict[str, Any] | None) -> list[str]:
    rows = data["rows"] if data else {}
    parts = ["## CUDA", machine(data) if data else f"Nothing here has been timed: {NEVER}."]
    parts += [made_by("benchmarks/gpu.sh"), TEXT, ceilings(rows), "### Networks, timed"]
    parts += [*networks(rows), "### Sampling, timed", SAMPLING_TEXT, sampling(rows.get("sampling", {}))]
    parts += ["### Few images, timed", SPLIT_TEXT, split(rows.get("split", {}))]
    parts += ["### Single ops, timed", OPS_TEXT, ops(rows.get("ops", {})), "### Checks", checks(rows)]
    return [*parts, *counted_networks(counted)]
