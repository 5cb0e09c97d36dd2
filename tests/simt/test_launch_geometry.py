"""Launches for more elements than 31 or 32 bits count: grids, tilings and workspaces, and the kernels' far ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
COMPILE = ["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-DEDM_FAST_SIMT", f"-I{CSRC / 'cuda'}"]
INCLUDES = [f"-I{CSRC / 'include'}", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# An overflow in the arithmetic of the host is an error of its own, whatever comes of it.
CHECKED = ["-fsanitize=signed-integer-overflow", "-fno-sanitize-recover=all"]
# simt::detail::run: launches come to chosen_blocks.cpp first.
WRAPPED = "-Wl,--wrap=_ZN4simt6detail3runERKNS0_11LaunchShapeEPFvPKvES5_"

GEOMETRY = [
    "tilings",
    "quotients",
    "resident_plans",
    "taps_of_large_images",
    "places_of_quads",
    "views_by_tiles",
    "grids_of_quads",
    "launches",
    "workspaces",
]
FAR_ENDS = [
    "residual",
    "residual_with_moments",
    "residual_unaligned",
    "residual_of_more_tiles_than_blocks",
    "resample_down",
    "resample_up",
    "resample_unaligned",
    "resample_of_many_pixels",
    "norm_resident",
    "norm_with_moments",
    "norm_of_many_rows",
    "norm_streaming",
    "norm_gradients",
    "norm_of_a_large_image",
    "conv2d_split_in_one_part",
    "conv2d_split_in_parts",
    "randn_of_many_samples",
    "randn_of_a_large_image",
    "noise_augment_of_many_samples",
    "denoising_loss",
    "augment",
    "solver_step_float64",
    "solver_step_float32",
    "solver_step_of_a_large_image",
]


@pytest.fixture(scope="module")
def programs(simt_module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs beside this file, linked with the kernels and the emulator of the module that the op tests use."""
    if os.environ.get("EDM_FAST_SANITIZE", "OFF") == "ON":
        pytest.skip("the programs map more memory than AddressSanitizer has shadows for")
    folder = tmp_path_factory.mktemp("launch_geometry")
    compiled = Path(simt_module.__file__).parent / "CMakeFiles" / "edm_fast_simt.dir"
    kernels = [compiled / "__" / "cuda" / f"{source.name}.o" for source in (CSRC / "cuda").glob("*.cu")]
    emulator = [compiled / f"{name}.cpp.o" for name in ("fiber", "launch", "scheduler")]
    chosen = str(HERE / "chosen_blocks.cpp")
    found = {}
    for name in ("launch_geometry", "far_ends"):
        found[name] = folder / name
        sources = [str(HERE / f"{name}.cpp"), chosen, *map(str, kernels + emulator)]
        command = [*COMPILE, *INCLUDES, *CHECKED, *sources, WRAPPED, "-pthread", "-o", str(found[name])]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return found


def outcome(program: Path, scenario: str) -> str:
    result = subprocess.run([str(program), scenario], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{scenario}: status {result.returncode} {result.stdout}{result.stderr}"
    return result.stdout.strip()


@pytest.mark.parametrize("name", ["launch_geometry", "far_ends"])
def test_every_scenario_has_a_test(programs, name):
    listed = subprocess.run([str(programs[name])], capture_output=True, text=True).stdout.split()
    assert listed == {"launch_geometry": GEOMETRY, "far_ends": FAR_ENDS}[name]


@pytest.mark.parametrize("scenario", GEOMETRY)
def test_sizes_past_32_bits_on_the_host(programs, scenario):
    assert outcome(programs["launch_geometry"], scenario) == "right"


@pytest.mark.parametrize("scenario", FAR_ENDS)
def test_the_last_sample_of_a_huge_batch_is_as_it_is_alone(programs, scenario):
    found = outcome(programs["far_ends"], scenario)
    if found == "no space":
        pytest.skip("this system does not give so much address space")
    assert found == "right"
