"""The host emulator runs kernels right, and reports the mistakes that it is there to find."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
EMULATOR = sorted(path for path in (CSRC / "simt").glob("*.cpp") if path.name != "module.cpp")
INCLUDES = [f"-I{CSRC / 'cuda'}", f"-I{CSRC / 'include'}", f"-I{HERE / 'kernels'}"]
COMPILE = ["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-DEDM_FAST_SIMT", "-pthread", *INCLUDES]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
ASAN = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1"]

# The kernel file that holds each barrier which can be compiled out, and the scenario that runs it.
BARRIERS = {
    1: "row_moments",
    2: "row_moments",
    3: "row_moments",
    4: "transpose",
    5: "diffuse",
    6: "diffuse",
    7: "histogram",
    8: "histogram",
    9: "matrix_product",
    10: "matrix_product",
    11: "matrix_product",
}
KERNELS = ["row_moments", "transpose", "diffuse", "histogram", "matrix_product", "primitives", "faults"]
ORDERS = ["forward", "reverse", "1", "2", "3"]
RIGHT_KERNELS = ["row_moments", "transpose", "diffuse", "histogram", "matrix_product", "shuffles", "votes"]


def call(command: list[str]) -> None:
    # The compilers must not inherit a sanitizer that is preloaded into this process.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"


def compile_object(source: Path, target: Path, *flags: str) -> Path:
    call([*COMPILE, *WARNINGS, *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
    return target


def all_kernels(folder: Path) -> Path:
    """One source with all kernels in it: compilers spend their time on headers."""
    source = folder / "all_kernels.cu"
    source.write_text("".join(f'#include "{HERE / "kernels" / name}.cu"\n' for name in KERNELS))
    return source


def run(runner: Path, scenario: str, orders: list[str]) -> subprocess.CompletedProcess[str]:
    # Leaks are not the subject, and their detection fails in containers that forbid ptrace.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    return subprocess.run([str(runner), scenario, *orders], capture_output=True, text=True, timeout=60, env=environment)


def outcomes(runner: Path, scenario: str, orders: list[str] | None = None) -> dict[str, str]:
    """What the scenario came to in each order: "right", "wrong" or an error's message."""
    orders = orders or ORDERS
    result = run(runner, scenario, orders)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert list(lines) == orders
    return lines


class Programs:
    """The example kernels linked with the emulator, whole and with barriers compiled out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sources = [*EMULATOR, HERE / "runner.cpp", *(HERE / "kernels" / f"{name}.cu" for name in KERNELS)]
        variants = [(HERE / "kernels" / f"{name}.cu", f"WITHOUT_BARRIER_{k}") for k, name in BARRIERS.items()]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda source: compile_object(source, folder / f"{source.stem}.o"), sources))
            self.objects = {path.stem: path for path in objects}
            without = pool.map(
                lambda variant: compile_object(variant[0], folder / f"{variant[1]}.o", f"-D{variant[1]}"), variants
            )
            linked = pool.map(
                lambda k, path: self.link(f"without_{k}", {**self.objects, BARRIERS[k]: path}), BARRIERS, list(without)
            )
            self.without_barrier = dict(zip(BARRIERS, linked, strict=True))
        self.whole = self.link("whole", self.objects)

    def link(self, name: str, objects: dict[str, Path]) -> Path:
        target = self.folder / name
        call(["g++", "-pthread", *map(str, objects.values()), "-o", str(target)])
        return target


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("simt"))


@pytest.fixture(scope="module")
def sanitized(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same program with the emulator and the kernels under AddressSanitizer and UBSan."""
    folder = tmp_path_factory.mktemp("simt_asan")
    sources = [*EMULATOR, all_kernels(folder)]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: compile_object(source, folder / f"{source.stem}.o", *ASAN), sources))
    target = folder / "sanitized"
    call(["g++", "-pthread", *ASAN, str(programs.objects["runner"]), *map(str, objects), "-o", str(target)])
    return target


@pytest.mark.parametrize("scenario", RIGHT_KERNELS)
def test_kernels_are_right_in_every_order(programs: Programs, scenario: str) -> None:
    assert set(outcomes(programs.whole, scenario).values()) == {"right"}


@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_deleted_barrier_gives_wrong_results_in_some_order(programs: Programs, barrier: int) -> None:
    found = outcomes(programs.without_barrier[barrier], BARRIERS[barrier], ["forward", "reverse"])
    assert "wrong" in found.values(), found


def test_a_deleted_barrier_can_hide_from_one_order(programs: Programs) -> None:
    after_total = outcomes(programs.without_barrier[2], "row_moments", ["forward", "reverse"])
    before_reuse = outcomes(programs.without_barrier[3], "row_moments", ["forward", "reverse"])
    assert after_total == {"forward": "right", "reverse": "wrong"}
    assert before_reuse == {"forward": "wrong", "reverse": "right"}


@pytest.mark.parametrize("barrier", BARRIERS)
def test_some_shuffled_order_finds_a_deleted_barrier(programs: Programs, barrier: int) -> None:
    seeds = [str(seed) for seed in range(8)]
    assert "wrong" in outcomes(programs.without_barrier[barrier], BARRIERS[barrier], seeds).values()


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("exited_lane_at_shuffle", ["divergent warp primitive", "__shfl_xor_sync (faults.cu:", "thread 37 has exited"]),
        ("lane_at_barrier_at_shuffle", ["divergent warp primitive", "threads 0-3 wait at __syncthreads"]),
        ("mask_without_own_lane", ["__shfl_xor_sync", "mask 0x0000ffff, which does not name its own lane"]),
        ("two_barriers", ["divergent barrier: threads 0-31 wait at __syncthreads", "threads 32-63 wait"]),
        ("shared_write_past_end", ["a write outside of the dynamic shared memory, at byte 256 of 256"]),
        ("shared_write_before_start", ["a write outside of the dynamic shared memory, at byte -4 of 256"]),
        ("trap", ["thread 63 reached __trap"]),
    ],
)
def test_a_faulty_kernel_throws_and_is_named(programs: Programs, scenario: str, expected: list[str]) -> None:
    for message in outcomes(programs.whole, scenario).values():
        assert message.startswith("edm_fast simt: kernel 'faulty_kernel', block (0, 0, 0): ")
        for part in expected:
            assert part in message


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("block_too_wide", "a block of (1025, 1, 1) threads"),
        ("block_of_too_many_threads", "a block of 1056 threads; the limit is 1024"),
        ("block_empty", "a block of (0, 1, 1) threads"),
        ("grid_empty", "a grid of (0, 1, 1) blocks"),
        ("shared_memory_too_large", "232449 bytes of dynamic shared memory; the limit is 232448"),
    ],
)
def test_sizes_that_a_device_refuses_are_refused(programs: Programs, scenario: str, expected: str) -> None:
    [message] = outcomes(programs.whole, scenario, ["forward"]).values()
    assert message.startswith("edm_fast simt: kernel 'empty_kernel' failed to launch: ")
    assert expected in message


@pytest.mark.parametrize(
    "scenario",
    [
        "thread_orders",
        "grid_size",
        "largest_launch",
        "launch_count",
        "launch_after_failure",
        "launches_from_two_os_threads",
        "uninitialised_shared_memory_is_nan",
        "intrinsics",
    ],
)
def test_claim(programs: Programs, scenario: str) -> None:
    assert set(outcomes(programs.whole, scenario).values()) == {"right"}


def test_an_exception_leaves_the_kernel_through_the_launch(programs: Programs) -> None:
    assert set(outcomes(programs.whole, "exception_in_kernel").values()) == {"thrown by a kernel"}
    [message] = outcomes(programs.whole, "launch_in_kernel", ["forward"]).values()
    assert message == "edm_fast simt: kernel 'empty_kernel' was launched by a kernel"


def test_the_name_of_a_template_is_written_as_in_the_source(programs: Programs) -> None:
    [message] = outcomes(programs.whole, "name_with_a_comma", ["forward"]).values()
    assert message.startswith("edm_fast simt: kernel 'template_kernel<int, 2>' failed to launch: ")


@pytest.mark.parametrize("scenario", [*RIGHT_KERNELS, "launch_after_failure", "launches_from_two_os_threads"])
def test_sanitizers_have_nothing_to_say_of_right_kernels(sanitized: Path, scenario: str) -> None:
    result = run(sanitized, scenario, ["forward", "1"])
    assert result.returncode == 0, result.stderr
    assert result.stdout == "forward: right\n1: right\n"
    assert result.stderr == ""


@pytest.mark.parametrize(
    "scenario",
    ["global_read_past_end", "shared_read_past_end", "shared_write_past_end", "shared_write_before_start"],
)
def test_address_sanitizer_sees_accesses_out_of_bounds(sanitized: Path, scenario: str) -> None:
    result = run(sanitized, scenario, ["forward"])
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "faults.cu" in result.stderr


def test_fibres_also_work_with_ucontext(programs: Programs, tmp_path: Path) -> None:
    portable = {
        source.stem: compile_object(source, tmp_path / f"{source.stem}.o", "-DEDM_FAST_SIMT_UCONTEXT")
        for source in EMULATOR
    }
    runner = programs.link("ucontext", {**programs.objects, **portable})
    for scenario in ("row_moments", "launch_after_failure"):
        assert set(outcomes(runner, scenario, ["forward", "reverse"]).values()) == {"right"}


def test_static_shared_memory_does_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "static_shared.cu"
    source.write_text('#include "simt.h"\n__global__ void kernel() { __shared__ float scratch[32]; scratch[0] = 0; }\n')
    command = [*COMPILE, "-x", "c++", "-c", str(source), "-o", str(tmp_path / "static_shared.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "static __shared__ memory: use simt::dynamic_shared<T>() instead" in result.stderr


def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("no nvcc")
    return found


def test_example_kernels_are_valid_cuda(tmp_path: Path) -> None:
    flags = ["-std=c++20", "-arch=sm_90a", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra", *INCLUDES]
    call([nvcc(), *flags, "-c", str(all_kernels(tmp_path)), "-o", str(tmp_path / "all_kernels.o")])


def test_launch_errors_say_what_was_found_and_required(tmp_path: Path) -> None:
    program = tmp_path / "no_device"
    source = HERE / "kernels" / "no_device.cu"
    call([nvcc(), "-std=c++20", "-arch=sm_90", "-Werror", "all-warnings", *INCLUDES, str(source), "-o", str(program)])
    device, launch, too_large = subprocess.run([str(program)], capture_output=True, text=True).stdout.splitlines()
    assert too_large.startswith("edm_fast: kernel 'empty_kernel' failed to launch: ")
    assert too_large.endswith("(grid 1x1x1, block 2048x1x1, 0 bytes of dynamic shared memory)")
    if launch == "done":
        assert "invalid" in too_large
        return
    assert device.startswith("edm_fast: cannot use CUDA device 0: ")
    assert launch.startswith("edm_fast: kernel 'empty_kernel' failed to launch: ")
    for message in (device, launch):
        assert ": found " in message
        assert ", required " in message
