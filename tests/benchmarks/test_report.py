"""The page of results: it is what the JSON files give, and it says what is missing, missed or wrong."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

MACHINE = {"processor": "a processor", "threads": 2, "instruction_set": "avx512", "torch": "2", "edm_fast": "0"}
RESULT = {"baseline_s": 0.2, "ours_s": 0.1, "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1, "pairs": 7}
MATCHED = {
    **RESULT,
    "baseline_layout": "channels_last",
    "layouts_s": {"channels_last": 0.2, "contiguous": 0.25},
    "error": 1e-6,
    "baseline_error": 2e-6,
    "error_bound": 1e-3,
    "match": True,
    "commit": "abc1234",
}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("report")


def write(folder: Path, name: str, data: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(data))


def gpu_rows() -> ModuleType:
    return importlib.import_module("gpu_rows")


def line_of(page: str, *cells: str) -> str:
    [line] = [line for line in page.splitlines() if line.startswith("| " + " | ".join(cells))]
    return line


def test_the_page_in_the_tree_is_what_its_results_give(report):
    assert (BENCHMARKS / "RESULTS.md").read_text() == report.render()


def test_without_results_everything_is_never_measured(report, tmp_path):
    page = report.render(tmp_path)
    assert "Never counted." in page
    assert "Nothing here has been timed: never measured." in page
    for row in importlib.import_module("network_rows").network_rows():
        assert row.name in page


def test_without_figures_of_a_gpu_each_of_them_is_never_measured(report, tmp_path):
    _, _, section = report.render(tmp_path).partition("## CUDA")
    assert "Nothing here has been timed: never measured." in section
    label, parse_row = importlib.import_module("rows").label, importlib.import_module("rows").parse_row
    for row in gpu_rows().ROWS:
        line = line_of(section, *label(row), "never measured")
        assert line.count("never measured") == 5
        assert f"(wanted: {gpu_rows().TARGETS[parse_row(row)[1]]:g})" in line
    for op in ("group_norm_silu", "resample", "solver_step"):
        assert "never measured (wanted: 0.85)" in line_of(section, op)
    assert "(wanted: 25.0 ms)" in line_of(section, "CIFAR-10 DDPM++", "1", "18", "eager")
    for check in gpu_rows().CHECKS:
        assert line_of(section, check) == f"| {check} | never measured |  |"
    measured = [line for line in section.splitlines() if line.startswith("| ") and "| --- " not in line]
    assert not any(unit in line.replace("25.0 ms", "") for line in measured for unit in (" ms ", " µs ", "/s |"))


def peer(seconds: float, ratio: float) -> dict[str, Any]:
    return {"s": seconds, "ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "error": 2e-6}


def cpu_page(report: ModuleType, folder: Path, rows: dict[str, Any]) -> str:
    (folder / "a-machine").mkdir()
    write(folder / "a-machine", "suite", {"title": "CPU", "machine": MACHINE, "rows": rows})
    return report.render(folder)


FIGURES = {
    "ours_s": 0.1,
    "rounds": 7,
    "match": True,
    "error": 1e-6,
    "error_bound": 1e-3,
    "peers": {"eager contiguous": peer(0.3, 3.0), "eager channels-last": peer(0.25, 2.5), "frozen": peer(0.2, 2.0)},
    "targets": {},
    "commit": "abc1234",
}


@pytest.mark.parametrize(
    ("targets", "cells"),
    [
        ({}, ["2.00, 1.90 … 2.10", "eager contiguous 3.00; eager channels-last 2.50"]),
        ({"frozen": 2.0}, ["**2.00** (met: 2), 1.90 … 2.10", "eager contiguous 3.00; eager channels-last 2.50"]),
        (
            {"frozen": 2.5, "eager": 2.4},
            ["2.00 (**missed**: 2.5), 1.90 … 2.10", "eager contiguous 3.00; eager channels-last **2.50** (met: 2.4)"],
        ),
    ],
)
def test_a_ratio_is_held_against_its_target(report, tmp_path, targets, cells):
    page = cpu_page(report, tmp_path, {"network": {"a net, 1": {**FIGURES, "targets": targets}}})
    assert "## CPU: a processor, avx512" in page
    expected = ["a net, 1", "100 ms", "frozen", "200 ms", *cells, "–", "1e-06 of 0.001", "7", "abc1234"]
    assert line_of(page, "a net, 1") == f"| {' | '.join(expected)} |"


def test_bytes_become_a_rate_and_a_share_of_a_copy(report, tmp_path):
    entry = {**FIGURES, "bytes": 500_000_000, "copy": peer(0.05, 0.5), "others_share": 0.3}
    line = line_of(cpu_page(report, tmp_path, {"randn": {"noise": entry}}), "noise")
    assert "| 5.0 (0.50) |" in line
    assert "| 100 ms † |" in line


def test_outputs_that_do_not_match_show_no_time(report, tmp_path):
    wrong = {"match": False, "reason": "ours is off by 0.5", "commit": "abc1234"}
    line = line_of(cpu_page(report, tmp_path, {"network": {"a net": wrong}}), "a net")
    assert "**no match**" in line
    assert "ours is off by 0.5" in line
    assert " ms " not in line


def test_memory_and_counted_kernels_are_shown_with_their_ratios(report, tmp_path):
    memory = {"eager_float32": {"activation_bytes": 30_000_000, "weight_bytes": 2_500_000_000}}
    memory |= {
        f"ours_{dtype}": {"activation_bytes": 10_000_000, "weight_bytes": 5} for dtype in ("float32", "bfloat16")
    }
    counted = {
        "launches": 100,
        "bytes_per_image": 2_000_000,
        "eager_launches": 1600,
        "eager_bytes_per_image": 5_000_000,
    }
    write(tmp_path, "counted_cuda", {"networks": {"adm": counted}})
    page = cpu_page(report, tmp_path, {"memory": {"adm:1": memory}})
    assert "| ImageNet-64 ADM | 1 | 30.0 MB | 10.0 MB | 10.0 MB | 3.00 | 2.50 GB | 0.0 MB | 0.0 MB |" in page
    assert "| ImageNet-64 ADM | 1600 | 100 | 16.0 | 5.0 MB | 2.0 MB | 2.5 |" in page


def test_what_is_to_know_of_a_machine_stands_before_its_figures(report, tmp_path):
    (tmp_path / "a-machine").mkdir()
    (tmp_path / "a-machine" / "note.md").write_text("It ran hot.\n")
    write(tmp_path / "a-machine", "suite", {"machine": MACHINE, "rows": {"randn": {"noise": FIGURES}}})
    page = report.render(tmp_path)
    assert 0 < page.index("It ran hot.") < page.index("### Randn")


def test_a_plot_shows_every_case_and_is_the_same_each_time(report, tmp_path):
    cpu_page(
        report,
        tmp_path,
        {"randn": {"noise": FIGURES}, "network": {"bad": {"match": False, "reason": "off", "commit": "abc1234"}}},
    )
    drawn = importlib.import_module("cpu_report").plots
    [first], [second] = drawn(tmp_path, tmp_path / "a"), drawn(tmp_path, tmp_path / "b")
    assert first.name == "a-machine.svg"
    assert first.read_bytes() == second.read_bytes()
    assert "noise" in first.read_text()
    assert "bad" not in first.read_text()


def test_figures_of_two_machines_do_not_mix(report, tmp_path):
    harness = importlib.import_module("harness")
    path = tmp_path / "suite.json"
    harness.merge(path, "title", MACHINE, {"adm:1": {"eager": {"ratio": 1.0}, "memory": {}}})
    harness.merge(path, "title", MACHINE, {"adm:1": {"eager": {"ratio": 2.0}}, "digits:1": {"eager": {"ratio": 3.0}}})
    rows = json.loads(path.read_text())["rows"]
    assert rows == {"adm:1": {"eager": {"ratio": 2.0}, "memory": {}}, "digits:1": {"eager": {"ratio": 3.0}}}
    with pytest.raises(ValueError, match="use another file"):
        harness.merge(path, "title", {**MACHINE, "threads": 4}, {})


GPU = {"gpu": "a GPU", "driver": "1.2", "torch": "2", "cuda": "13.0", "cudnn": 91002, "edm_fast": "0"}
COMMIT = {"commit": "abc1234", "date": "2030-01-01"}


def gpu_page(report: ModuleType, folder: Path, rows: dict[str, Any]) -> str:
    write(folder, "gpu", {"title": "CUDA", "machine": GPU, "rows": rows})
    return report.render(folder).partition("## CUDA")[2]


def test_networks_on_a_gpu_are_held_against_their_targets_and_the_floor(report, tmp_path):
    compared = {**MATCHED, **COMMIT, "floor_share": 0.6, "graphs_skipped": 0}
    given = {"rows_given_s": 0.05, **COMMIT}
    wrong = {"match": False, "reason": "compiled is off by 0.5", **COMMIT}
    rows = {
        "ddpmpp:1": {
            "plan": given,
            "eager": {**compared, "ratio": 3.0},
            "compiled": compared,
        },
        "adm:64": {"eager": compared, "compiled": {**compared, "ratio": 1.1}},
        "adm:512": {"eager": compared, "compiled": wrong},
        "ncsnpp:1": {"plan": {"match": False, "reason": "ours is off by 0.7", **COMMIT}},
        "adm:7": {"plan": {**given, "captured": False}, "compiled": {**compared, "graphs_skipped": 1}},
    }
    page = gpu_page(report, tmp_path, rows)
    assert "a GPU, driver 1.2; torch 2, CUDA 13.0, cuDNN 91002, edm_fast 0." in page
    assert "| CIFAR-10 DDPM++ | 1 | 3.00 | **2.00** (met: 1.6) | 100 ms | 0.60 | 50.0 ms |" in page
    assert "| ImageNet-64 ADM | 64 | 2.00 | 1.10 (**missed**: 1.15) | 100 ms | 0.60 | never measured |" in page
    assert "| ImageNet-64 ADM | 512 | 2.00 | **no match** | 100 ms |" in page
    assert "| ImageNet-64 ADM | 7 | never measured | 2.00 | 100 ms |" in page
    assert line_of(page, "ImageNet-64 ADM", "7", "compiled; no CUDA graph: ours, compiled")
    assert "| CIFAR-10 NCSN++ | 1 | **no match** | **no match** | never measured |" in page
    assert "no: ours is off by 0.7" in line_of(page, "CIFAR-10 NCSN++", "1", "plan")
    details = line_of(page, "ImageNet-64 ADM", "64", "compiled")
    assert "| 200 ms | 100 ms | 1.10 (1.90 … 2.10) | 7 | yes (1.0e-06, 2.0e-06, 0.001) | abc1234 |" in details


def test_ops_and_sampling_on_a_gpu_are_held_against_their_targets(report, tmp_path):
    op = {**MATCHED, **COMMIT, "op": "resample", "bytes": 300_000_000_000, "ratio": 0.9, "target": 0.85}
    free = {**op, "op": "randn", "target": None, "ratio": 0.3}
    wrong = {"op": "residual", "match": False, "reason": "off by 0.5", **COMMIT}
    image = {**MATCHED, **COMMIT, "ours_s": 0.02}
    rows = {
        "ops": {"resample up": op, "randn": free, "residual sum": wrong},
        "sampling": {
            "ddpmpp:1, eager": image,
            "ddpmpp:1, compiled": {**image, "ours_s": 0.03},
            "ddpmpp:64, eager": image,
        },
    }
    page = gpu_page(report, tmp_path, rows)
    assert (
        "| resample up | 100 ms | 3.00 TB/s | **0.90** (met: 0.85) | 1.90 … 2.10 | 1.0e-06 of 0.001 | abc1234 |" in page
    )
    assert "| randn | 100 ms | 3.00 TB/s | 0.30 |" in page
    assert "no: off by 0.5" in line_of(page, "residual sum")
    assert "never measured (wanted: 0.85)" in line_of(page, "group_norm_silu")
    assert "| CIFAR-10 DDPM++ | 1 | 18 | eager | 200 ms | 20.0 ms (met: 25.0 ms) | 2.00 | abc1234 |" in page
    assert "| CIFAR-10 DDPM++ | 1 | 18 | compiled | 200 ms | 30.0 ms (**missed**: 25.0 ms) | 2.00 |" in page
    assert "| CIFAR-10 DDPM++ | 64 | 18 | eager | 200 ms | 20.0 ms | 2.00 | abc1234 |" in page


def test_rates_and_checks_on_a_gpu_are_shown(report, tmp_path):
    bits = {"differing": 0, "elements": 100, "good": True, **COMMIT}
    rows = {
        "ceilings": {"copy": {"bytes_per_s": 4.3e12, **COMMIT}},
        "tests": {
            "pytest": {"tests": 9, "failures": 1, "errors": 1, "skipped": 2, "status": 1, "good": False, **COMMIT},
            "generate": {"status": 0, "good": True, **COMMIT},
        },
        "bits": {
            "noise": bits,
            "splits": {**bits, "differing": 3, "good": False},
            "network adm": {"repeats_differing": 0, "splits_differing": 7, "elements": 100, "error": 0.01, **COMMIT},
        },
        "images": {"adm, bfloat16": {"error": 0.02, "eager_error": 0.03, "error_bound": 0.1, "good": True, **COMMIT}},
        "sanitize": {
            "planted bug": {"seen": True, "message": "seen", **COMMIT},
            "racecheck": {"kernels": "clean", "tests": "unfinished", "good": True, **COMMIT},
        },
    }
    page = gpu_page(report, tmp_path, rows)
    for line in (
        "| Copy, bytes read and written | 4.3 TB/s | abc1234 |",
        "| Matrix product in bfloat16 | never measured |  |",
        "| tests: pytest | **bad**, 5 passed, 2 failed, 2 skipped | abc1234 |",
        "| tests: selfcheck | never measured |  |",
        "| tests: generate | status 0 | abc1234 |",
        "| bits: noise | 0 of 100 elements differ | abc1234 |",
        "| bits: splits | **bad**, 3 of 100 elements differ | abc1234 |",
        "| bits: network adm | 0 elements differ in repeats, 7 of 100 in batch splits, off by 1.0e-02 | abc1234 |",
        "| images: adm, bfloat16 | off by 2.0e-02, eager by 3.0e-02, 1.0e-01 allowed | abc1234 |",
        "| images: adm, float32 | never measured |  |",
        "| sanitize: planted bug | seen | abc1234 |",
        "| sanitize: racecheck | kernels: clean, tests: unfinished | abc1234 |",
    ):
        assert line in page.splitlines()
