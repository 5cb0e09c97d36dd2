"""The source distribution is whole, the version stands once, and the workflows name what is there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import edm_fast

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text()
# Folders of the repository that belong into a source distribution, and the kinds of files that no test or build reads.
SOURCES = (".ci", ".github", "benchmarks", "csrc", "docs", "edm_fast", "examples", "tests")
MADE = {".pyc", ".so", ".o"}


def wanted_files() -> set[str]:
    found = {path.name for path in ROOT.iterdir() if path.is_file() and path.name != ".gitignore"}
    for folder in SOURCES:
        found |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {name for name in found if Path(name).suffix not in MADE and "__pycache__" not in name}


def test_the_source_distribution_has_every_file(tmp_path):
    """By setuptools' own list, which it makes without compiling anything."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = set((tmp_path / "edm_fast.egg-info" / "SOURCES.txt").read_text().splitlines())
    assert sorted(wanted_files() - listed) == [], "MANIFEST.in leaves these out"
    assert sorted(name for name in listed if "__pycache__" in name or Path(name).suffix in MADE) == []


@pytest.mark.parametrize(("local", "suffix"), [("", ""), ("cu130", "+cu130")])
def test_the_version_comes_from_the_package(tmp_path, local, suffix):
    assert not re.search(r"^version = \"", PROJECT, re.MULTILINE)
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    environment = {**os.environ, "EDM_FAST_LOCAL_VERSION": local}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    [distribution] = importlib.metadata.distributions(path=[str(tmp_path)])
    assert distribution.version == edm_fast.__version__ + suffix


def test_the_version_is_written_once():
    assigned = re.compile(rf"""["']{re.escape(edm_fast.__version__)}["']""")
    names = ["pyproject.toml", "setup.py", "CMakeLists.txt", "csrc/CMakeLists.txt"]
    files = [*(ROOT / name for name in names), *(ROOT / "edm_fast").rglob("*.py")]
    assert [path.relative_to(ROOT) for path in files if assigned.search(path.read_text())] == [
        Path("edm_fast/__init__.py")
    ]


def test_the_metadata_is_complete(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [distribution] = importlib.metadata.distributions(path=[str(tmp_path)])
    metadata = distribution.metadata
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Summary"]
    versions = {each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or () if "Python :: 3." in each}
    built = {f"3.{minor}" for minor in re.findall(r"cp3(\d+)-\*", PROJECT)}
    assert versions == built, "the classifiers and the wheels are for other versions of Python"


def steps_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_ends_by_itself(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        if "permissions" in job:
            assert job["if"] == "github.event_name == 'push' && github.ref_type == 'tag'", f"{name} may write"
    for step in steps_of(workflow):
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))


def test_what_the_workflows_and_cibuildwheel_run_is_there():
    commands = [
        step["run"] for path in WORKFLOWS for step in steps_of(yaml.safe_load(path.read_text())) if "run" in step
    ]
    assert [command for command in commands if command == ".ci/run"]
    settings = re.findall(r'^(?:before-test|test-command) = "(.*)"$', PROJECT, re.MULTILINE)
    assert len(settings) == 2
    named = re.findall(r"\{project\}/(\S+)", " ".join(settings))
    named += [word for command in commands for word in shlex.split(command) if word.startswith((".ci/", "tests/"))]
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_no_wheel_takes_a_copy_of_the_openmp_runtime():
    """See docs/packaging.md: a copy beside torch's would hang children of fork()."""
    sources = [PROJECT, (ROOT / ".ci" / "package").read_text(), (ROOT / ".github/workflows/wheels.yml").read_text()]
    for source in sources:
        repairs = re.findall(r"auditwheel repair (.*)", source)
        assert repairs
        assert all("--exclude libgomp.so.1" in repair for repair in repairs)
