"""A copy of the tree in which sources are broken, compiled and tested; the tree itself is only read."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pybind11
from catalogue import ROOT, Mutation

_VERDICT = re.compile(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", re.MULTILINE)
_TESTS_FAILED = 1


class BuildError(RuntimeError):
    """The sources do not compile."""


@dataclass(frozen=True)
class TestRun:
    """How pytest ended.

    Attributes:
        code: its exit status; None if it ran past its time.
        first: the first failing node id, or "".
        seconds: wall time.
        output: the end of what it wrote.
    """

    code: int | None
    first: str
    seconds: float
    output: str

    @property
    def passed(self) -> bool:
        return self.code == 0

    @property
    def noticed(self) -> bool:
        """Whether a test failed, crashed or hung. Tests that could not be collected noticed nothing."""
        return self.code is None or self.code == _TESTS_FAILED or self.code < 0


class Scratch:
    """The copy in `folder`, which is made or brought up to date; files whose bytes are the same keep their times."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder
        self.jobs = jobs
        # Compiled Python files would be taken for sources of the same size and second; options of the caller's own
        # tests, such as workers, would change what is read of the output.
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        self._copy()

    def _copy(self) -> None:
        # New files that are not committed yet belong to the tree as well.
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        wanted = {Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()}
        for relative in sorted(wanted):
            data = (ROOT / relative).read_bytes()
            target = self.folder / relative
            if not target.is_file() or target.read_bytes() != data:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod((ROOT / relative).stat().st_mode)
        for path in self.folder.rglob("*"):
            relative = path.relative_to(self.folder)
            if path.is_file() and relative not in wanted and relative.parts[0] != "build" and path.suffix != ".so":
                path.unlink()

    @property
    def _extension_build(self) -> Path:
        return self.folder / "build" / "extension"

    def take_extension(self) -> bool:
        """Use the tree's built extension; False if there is none, or the copy has built one of its own before."""
        built = sorted((ROOT / "edm_fast").glob("_C*.so"))
        if not built or self._extension_build.exists():
            return False
        for path in built:
            shutil.copy2(path, self.folder / "edm_fast" / path.name)
        return True

    def build_extension(self) -> None:
        """Compile the CPU extension from the copy's sources, as setup.py does, where they changed."""
        self._build(
            self._extension_build,
            "_C",
            "-DEDM_FAST_CUDA=OFF",
            "-DEDM_FAST_VERSION=0.0.0",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self.folder / 'edm_fast'}",
        )

    def build_simt(self) -> None:
        """Compile the emulated CUDA kernels with the options and in the place of the tests' own fixture."""
        self._build(
            self.folder / "build" / f"simt-{sys.implementation.cache_tag}-OFF",
            "all",
            "-DEDM_FAST_EXTENSION=OFF",
            "-DEDM_FAST_SIMT=ON",
            "-DEDM_FAST_WERROR=ON",
            "-DEDM_FAST_SANITIZE=OFF",
        )

    def _build(self, build: Path, target: str, *options: str) -> None:
        build.parent.mkdir(exist_ok=True)
        configure = [
            "cmake",
            f"-S{self.folder}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *options,
        ]
        compile_changed = ["cmake", "--build", str(build), "--target", target, "-j", str(self.jobs)]
        for command in (configure, compile_changed):
            done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
            if done.returncode:
                raise BuildError((done.stdout + done.stderr)[-3000:])

    def check_imports(self) -> None:
        """RuntimeError if the tests would import another copy of the package than this one."""
        command = [sys.executable, "-c", "import edm_fast; print(edm_fast.__file__)"]
        done = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True, text=True)
        if not done.stdout.startswith(str(self.folder)):
            raise RuntimeError(f"edm_fast is imported from {done.stdout.strip() or done.stderr.strip()!r}")

    @contextmanager
    def broken_by(self, mutation: Mutation) -> Iterator[None]:
        """The copy with the bug, until the end."""
        path = self.folder / mutation.file
        source = path.read_text(encoding="utf-8")
        path.write_text(mutation.applied(source), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(source, encoding="utf-8")

    def test(self, tests: tuple[str, ...], select: str, limit: float) -> TestRun:
        """Run pytest up to the first failure, for `limit` seconds at most."""
        # Each run begins without what an earlier one remembers of failures.
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)
        command = [sys.executable, "-m", "pytest", "-x", "-rfE", "--tb=line", "-p", "no:cacheprovider", *tests]
        if select:
            command += ["-k", select]
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            # The group, since tests start programs.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            code = None
        found = _VERDICT.search(output)
        return TestRun(code, found[1] if found else "", time.monotonic() - began, output[-3000:])
