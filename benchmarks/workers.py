"""Worker processes that take turns: only one of them computes at a time, the others wait on their pipes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from variants import NotAvailableError, Spec

HERE = Path(__file__).parent

# A turn lasts at least this long, so that short forwards are timed in a state that repeats.
_TURN_S = 0.1
_MAX_FORWARDS = 64

# libgomp's threads go on spinning for some milliseconds after a region; the next turn starts when they sleep.
_SETTLE_S = 0.02

_AVX2_ONLY = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


class Others:
    """What share of the machine's cores everything but the workers, or this process, has used since this was made."""

    def __init__(self, *workers: Worker) -> None:
        self._workers = workers
        self._start_s, self._busy_s = time.perf_counter(), self._used()

    def _used(self) -> float:
        """CPU seconds of the whole system but the workers, from /proc/stat; idle time and waiting for disks apart."""
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle, waiting = fields[3:5]
        used = sum(worker.cpu_s for worker in self._workers) if self._workers else time.process_time()
        return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK") - used

    def share(self) -> float:
        elapsed = (time.perf_counter() - self._start_s) * (os.cpu_count() or 1)
        return max(0.0, (self._used() - self._busy_s) / elapsed)


class Worker:
    """A variant in its own process. Used as a context manager; NotAvailableError if the variant does not exist.

    `single`: a turn is one forward, without one to warm up, for those that take seconds.
    """

    def __init__(self, spec: Spec, single: bool = False) -> None:
        self.spec = spec
        self.cpu_s = 0.0
        self._forwards, self._warm = 1, 0
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        if spec.isa == "avx2" and spec.kind != "ours":
            environment |= _AVX2_ONLY
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(
            HERE.parent / "build" / "inductor" / "-".join(str(part) for part in asdict(spec).values())
        )
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), json.dumps(asdict(spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        try:
            started = self._read()
            if "not_available" in started:
                raise NotAvailableError(started["not_available"])
        except BaseException:
            self.close()
            raise
        self.start_s: float = started["ready"]
        if not single:
            self._calibrate()

    def _calibrate(self) -> None:
        """Choose the forwards of a turn from the duration of one, the second of those that nothing disturbs."""
        duration = self.ask({"warm": 1, "run": 1})["seconds"][0]
        self._forwards = min(_MAX_FORWARDS, max(1, round(_TURN_S / duration)))
        self._warm = 0 if self._forwards == 1 else max(1, self._forwards // 4)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.spec} ended with status {self._process.wait()}; see its messages")
        return json.loads(line)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for the answer. RuntimeError if the process ended, or did not idle before."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        self.cpu_s += reply["cpu_s"]
        if reply["idle_cpu_s"] > 0.05 + 0.05 * reply["idle_s"]:
            raise RuntimeError(
                f"{self.spec} used {reply['idle_cpu_s']:.2f} s of CPU in {reply['idle_s']:.2f} s of waiting; its "
                "threads spin, and what ran meanwhile was not alone. Unset OMP_WAIT_POLICY and GOMP_SPINCOUNT."
            )
        return reply

    def turn(self) -> float:
        """Seconds of a forward: the median over a turn."""
        time.sleep(_SETTLE_S)
        return statistics.median(self.ask({"warm": self._warm, "run": self._forwards})["seconds"])

    def output(self, path: Path) -> torch.Tensor:
        """F as float64, contiguous."""
        self.ask({"output": str(path)})
        return torch.load(path, weights_only=True)

    def memory(self) -> dict[str, int]:
        reply = self.ask({"memory": True})
        return {name: reply[name] for name in ("activation_bytes", "weight_bytes")}

    def close(self) -> None:
        """End the process; it leaves when its input does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
