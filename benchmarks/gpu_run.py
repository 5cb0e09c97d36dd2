"""A run of measurements on a GPU: where it happens, how time is taken, and the file that keeps the figures.

Everything takes the device and the clock from here, so that tests can run it all on the CPU.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_rows import TITLE
from harness import merge, revision, write

import edm_fast
from edm_fast.bench.turns import seconds
from edm_fast.plan.capture import capture_on_cuda

ROOT = Path(__file__).resolve().parent.parent

# Seconds of one call.
Clock = Callable[[Callable[[], object]], float]

_WARM_UP = 4
_TURN_S = 0.03
_MOST_CALLS = 50


def event_seconds(function: Callable[[], object]) -> float:
    """Seconds of one call between two CUDA events on the current stream, which is idle before."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def clock_of(device: torch.device) -> Clock:
    return event_seconds if device.type == "cuda" else seconds


def self_timing(function: Callable[[], object], clock: Clock) -> Callable[[], float]:
    """Warm up; then each call of the result takes a turn of some calls and gives the seconds of one."""
    for _ in range(_WARM_UP):
        function()
    calls = min(_MOST_CALLS, max(1, round(_TURN_S / max(clock(function), 1e-9))))

    def repeated() -> None:
        for _ in range(calls):
            function()

    return lambda: clock(repeated) / calls


def replayed(function: Callable[[], Any], calls: int, device: torch.device) -> Callable[[], object]:
    """`calls` calls in one: the replay of a CUDA graph, so that none of them waits for the host."""

    def repeated() -> Any:
        result = None
        for _ in range(calls):
            result = function()
        return result

    if device.type != "cuda":
        return repeated
    replay, _ = capture_on_cuda(repeated)
    return replay


@contextlib.contextmanager
def cudnn(**flags: bool) -> Iterator[None]:
    """Flags of torch.backends.cudnn, put back afterwards."""
    before = {name: getattr(torch.backends.cudnn, name) for name in flags}
    try:
        for name, value in flags.items():
            setattr(torch.backends.cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


def machine(device: torch.device) -> dict[str, str | int]:
    """What the figures were measured on; figures of two such do not mix."""
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else f"none ({device})",
        "driver": _driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or "none",
        "edm_fast": edm_fast.__version__,
    }


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else "unknown"


@dataclass
class Run:
    """What every stage gets.

    Attributes:
        output: the JSON file that figures are merged into.
        logs: folder for what programs print; `scratch` is for all other files.
        seed: of all random data.
        pairs: of turns, per comparison.
    """

    device: torch.device
    output: Path
    logs: Path
    seed: int
    pairs: int
    clock: Clock
    commit: str | None = None

    def __post_init__(self) -> None:
        self._machine = machine(self.device)
        self._revision = revision() | ({} if self.commit is None else {"commit": self.commit})

    @property
    def scratch(self) -> Path:
        folder = ROOT / "build" / "gpu"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def take_over(self, earlier: Path) -> None:
        """Begin with the figures of another file if they go with ours and `output` does not exist yet."""
        if self.output.exists() or not earlier.exists():
            return
        data = json.loads(earlier.read_text())
        if data["machine"] == self._machine:
            write(self.output, data)
            print(f"the figures of {earlier} are taken over")
        else:
            print(f"the figures of {earlier} are of {data['machine']}; this starts anew")

    def check_output(self) -> None:
        """ValueError, before anything is measured, if the file's figures are from elsewhere."""
        merge(self.output, TITLE, self._machine, {})

    def keep(self, row: str, name: str, entry: dict[str, Any]) -> None:
        """Merge figures into the file."""
        merge(self.output, TITLE, self._machine, {row: {name: {**entry, "seed": self.seed, **self._revision}}})

    def kept(self, row: str, name: str) -> dict[str, Any] | None:
        """Figures that the file has."""
        if not self.output.exists():
            return None
        return json.loads(self.output.read_text())["rows"].get(row, {}).get(name)

    def generator(self, device: torch.device | str | None = None) -> torch.Generator:
        """Of the run's seed, on the CPU or the given device."""
        return torch.Generator(device or "cpu").manual_seed(self.seed)
