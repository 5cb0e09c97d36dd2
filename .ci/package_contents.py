"""Looks into the distributions that .ci/package built; ends with status 1 and a line for each thing that is wrong.

Usage: package_contents.py TREE FOLDER, where FOLDER holds dist/*.tar.gz, dist/*.whl and wheelhouse/*.whl
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

# What setuptools adds to a source distribution, and what of the repository is of use in the repository alone.
_GENERATED = re.compile(r"PKG-INFO|setup\.cfg|edm_fast\.egg-info/.*")
_REPOSITORY_ONLY = {".gitignore"}
# All that the extension for CPUs may ask of the system; libgomp is torch's.
_LIBRARIES = {f"lib{name}" for name in ("gomp.so.1", "stdc++.so.6", "gcc_s.so.1", "m.so.6", "c.so.6")}
_LIBRARIES |= {"ld-linux-x86-64.so.2", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
_EXTENSION = re.compile(r"edm_fast/_C\.cpython-\d+-x86_64-linux-gnu\.so")

Files = dict[str, bytes]


def repository(tree: Path) -> set[str]:
    """The files of the tree, those that are not committed yet included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout.split("\0")
    return {name for name in listed if name and (tree / name).is_file()}


def in_sdist(path: Path) -> Files:
    """What a source distribution holds, by names inside its one folder."""
    files: Files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                files[member.name.partition("/")[2]] = file.read()
    return files


def in_wheel(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def differences(what: str, files: Files, wanted: Files) -> list[str]:
    """Files that are missing, are too many, or are others than those that are wanted."""
    found = [f"{what} lacks {name}" for name in sorted(wanted.keys() - files.keys())]
    found += [f"{what} also has {name}" for name in sorted(files.keys() - wanted.keys())]
    return found + [
        f"{what} has another {name}" for name in sorted(wanted.keys() & files) if files[name] != wanted[name]
    ]


def sdist_faults(files: Files, tree: Path) -> list[str]:
    """It is the repository, so that it builds and its tests run."""
    wanted = {name: (tree / name).read_bytes() for name in repository(tree) - _REPOSITORY_ONLY}
    own = {name: content for name, content in files.items() if not _GENERATED.fullmatch(name)}
    return differences("the source distribution", own, wanted)


def wheel_faults(what: str, files: Files, tree: Path, forbidden: list[str]) -> list[str]:
    """The package of the tree, one extension module and the licence; no path of the machine that built it."""
    wanted = {name: (tree / name).read_bytes() for name in repository(tree) if name.startswith("edm_fast/")}
    extensions = [name for name in files if _EXTENSION.fullmatch(name)]
    described = {name: content for name, content in files.items() if re.match(r"edm_fast-[^/]+\.dist-info/", name)}
    own = {name: content for name, content in files.items() if name not in {*extensions, *described}}
    faults = differences(what, own, wanted)
    licences = [content for name, content in described.items() if name.endswith("/licenses/LICENSE")]
    if licences != [(tree / "LICENSE").read_bytes()]:
        faults.append(f"{what} lacks the licence")
    if len(extensions) != 1:
        faults.append(f"{what} has {len(extensions)} extension modules")
    for name in extensions:
        faults += extension_faults(f"{what}: {name}", files[name])
    for name, content in files.items():
        faults += [f"{what}: {name} holds the path {path}" for path in forbidden if path.encode() in content]
    return faults


def extension_faults(what: str, content: bytes) -> list[str]:
    """It looks for libraries where the system does, and needs no others than a system and torch have."""
    dynamic = ELFFile(io.BytesIO(content)).get_section_by_name(".dynamic")
    tags = list(dynamic.iter_tags())
    paths = [str(tag) for tag in tags if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    faults = [f"{what} searches for libraries itself: {path}" for path in paths]
    return faults + [f"{what} needs {name}" for name in sorted(needed - _LIBRARIES)]


def tag_faults(name: str) -> list[str]:
    """The wheel asks for no newer C library than the one of the machine that built it."""
    built_on = int(os.confstr("CS_GNU_LIBC_VERSION").rpartition(".")[2])
    tags = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_x86_64", name)]
    if not tags or max(tags) > built_on:
        return [f"{name} was built on glibc 2.{built_on}"]
    return []


def main() -> None:
    tree, folder = (Path(argument).resolve() for argument in sys.argv[1:])
    [sdist], [plain], [repaired] = (
        list((folder / place).glob(pattern))
        for place, pattern in (("dist", "*.tar.gz"), ("dist", "*.whl"), ("wheelhouse", "*.whl"))
    )
    forbidden = [str(tree), str(folder)]
    faults = sdist_faults(in_sdist(sdist), tree) + tag_faults(repaired.name)
    for path in (plain, repaired):
        faults += wheel_faults(path.name, in_wheel(path), tree, forbidden)
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main()
