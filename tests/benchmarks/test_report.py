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


def line_of(page: str, *cells: str) -> str:
    [line] = [line for line in page.splitlines() if line.startswith("| " + " | ".join(cells))]
    return line


def test_the_page_in_the_tree_is_what_its_results_give(report):
    assert (BENCHMARKS / "RESULTS.md").read_text() == report.render()


def test_without_results_everything_is_never_measured(report, tmp_path):
    page = report.render(tmp_path)
    assert "Never counted." in page
    for row in report.ROWS:
        name, batch = report.label(row)
        lines = [line for line in page.splitlines() if line.startswith(f"| {name} | {batch} |")]
        assert len(lines) == 2
        assert "not measured" in lines[0]
        assert lines[1].count("never measured") == 2


@pytest.mark.parametrize(
    ("target", "cell"), [(2.0, "**2.00** (met: 2)"), (2.5, "2.00 (**missed**: 2.5)"), (None, "2.00")]
)
def test_a_ratio_is_held_against_its_target(report, tmp_path, monkeypatch, target, cell):
    monkeypatch.setattr(report, "TARGETS", {} if target is None else {("adm:1", "eager"): target})
    write(tmp_path, "networks_cpu", {"machine": MACHINE, "rows": {"adm:1": {"eager": MATCHED}}})
    page = report.render(tmp_path)
    assert f"| ImageNet-64 ADM | 1 | {cell} | not measured |" in page
    details = line_of(page, "ImageNet-64 ADM", "1", "float32 over eager float32")
    assert "| 200 ms | 100 ms | 2.00 (1.90 … 2.10) | 7 | yes (1.0e-06, 2.0e-06, 0.001) | abc1234 |" in details


def test_outputs_that_do_not_match_show_no_time(report, tmp_path):
    wrong = {"match": False, "reason": "ours is off by 0.5", "commit": "abc1234"}
    write(tmp_path, "networks_cpu", {"machine": MACHINE, "rows": {"digits:1": {"eager": wrong}}})
    page = report.render(tmp_path)
    assert "| digits (shipped) | 1 | **no match** |" in page
    assert "no: ours is off by 0.5" in line_of(page, "digits (shipped)", "1", "float32 over eager float32")


def test_memory_and_counted_kernels_are_shown_with_their_ratios(report, tmp_path):
    memory = {"eager_float32": {"activation_bytes": 30_000_000, "weight_bytes": 2_500_000_000}}
    memory |= {
        f"ours_{dtype}": {"activation_bytes": 10_000_000, "weight_bytes": 5} for dtype in ("float32", "bfloat16")
    }
    write(tmp_path, "networks_cpu", {"machine": MACHINE, "rows": {"adm:1": {"memory": memory}}})
    counted = {
        "launches": 100,
        "bytes_per_image": 2_000_000,
        "eager_launches": 1600,
        "eager_bytes_per_image": 5_000_000,
    }
    write(tmp_path, "counted_cuda", {"networks": {"adm": counted}})
    page = report.render(tmp_path)
    assert "| ImageNet-64 ADM | 1 | 30.0 MB | 10.0 MB | 10.0 MB | 3.00 | 2.50 GB | 0.0 MB | 0.0 MB |" in page
    assert "| ImageNet-64 ADM | 1600 | 100 | 16.0 | 5.0 MB | 2.0 MB | 2.5 |" in page


def test_what_is_to_know_of_a_machine_stands_before_its_figures(report, tmp_path):
    write(tmp_path, "machines", {"a processor": "ran hot"})
    page = report.render(tmp_path)
    assert 0 < page.index("- a processor: ran hot") < page.index("## Networks")


def test_figures_of_two_machines_do_not_mix(report, tmp_path):
    harness = importlib.import_module("harness")
    path = tmp_path / "networks_cpu.json"
    harness.merge(path, "title", MACHINE, {"adm:1": {"eager": {"ratio": 1.0}, "memory": {}}})
    harness.merge(path, "title", MACHINE, {"adm:1": {"eager": {"ratio": 2.0}}, "digits:1": {"eager": {"ratio": 3.0}}})
    rows = json.loads(path.read_text())["rows"]
    assert rows == {"adm:1": {"eager": {"ratio": 2.0}, "memory": {}}, "digits:1": {"eager": {"ratio": 3.0}}}
    with pytest.raises(ValueError, match="use another file"):
        harness.merge(path, "title", {**MACHINE, "threads": 4}, {})
