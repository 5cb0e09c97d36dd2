"""Builds the extension module with CMake; everything else stands in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt in build/, which is kept, so a rebuild compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        architectures = os.environ.get("CUDAARCHS")
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            # An isolated build has a ninja of its own each time; the one of last time may be gone.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            # CMake itself reads CUDAARCHS in the first build only, and would keep those of that build.
            f"-DCMAKE_CUDA_ARCHITECTURES={architectures}" if architectures else "-UCMAKE_CUDA_ARCHITECTURES",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DEDM_FAST_VERSION={self.distribution.get_version()}",
            f"-DEDM_FAST_CUDA={os.environ.get('EDM_FAST_CUDA', 'AUTO')}",
            f"-DEDM_FAST_WERROR={os.environ.get('EDM_FAST_WERROR', 'OFF')}",
            f"-DEDM_FAST_SANITIZE={os.environ.get('EDM_FAST_SANITIZE', 'OFF')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
        ]
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", build, "--target", "_C"], check=True)


# A wheel with CUDA kernels names their toolkit behind its version (0.1.0+cu130), for both kinds have the same tags.
LOCAL_VERSION = os.environ.get("EDM_FAST_LOCAL_VERSION", "")

setup(
    ext_modules=[Extension("edm_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    options={"egg_info": {"tag_build": f"+{LOCAL_VERSION}"}} if LOCAL_VERSION else {},
)
