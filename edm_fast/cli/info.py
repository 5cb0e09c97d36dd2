"""`edm-fast info`: what is built, what runs here, and why; or what a checkpoint is and holds."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import click
import torch

import edm_fast
from edm_fast.checkpoints.description import describe
from edm_fast.cli.network import NetworkFile
from edm_fast.errors import CheckpointError
from edm_fast.ops.backends import cuda_state, extension


@click.command()
@click.argument("file", type=NetworkFile(), required=False)
def info(file: Path | None) -> None:
    """Show the build, the devices, and which backend is chosen and why; or, of a checkpoint FILE, what is in it."""
    try:
        rows = list(_rows()) if file is None else describe(file)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:{width}}  {value}")


def _rows() -> Iterator[tuple[str, str]]:
    compiled = extension()
    usable, reason = cuda_state()
    yield "edm-fast", f"{edm_fast.__version__} (compiled module {compiled.version}, {compiled.compiler})"
    yield "python, torch", f"{platform.python_version()}, {torch.__version__}"
    yield "cpu kernels", f"{compiled.cpu.isa()}, chosen from {', '.join(compiled.cpu.available_isas())}"
    yield "cpu threads", f"{torch.get_num_threads()}" if compiled.openmp else "1 (built without OpenMP)"
    yield "cuda kernels", f"{'usable' if usable else 'not usable'}: {reason}"
    if usable:
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            capability = f"{properties.major}.{properties.minor}"
            yield f"cuda:{index}", f"{properties.name}, compute capability {capability}, {memory:.0f} GiB"
    yield "default device", "cuda, because it is usable" if usable else "cpu, because cuda is not usable"
    yield "noise and sampler", "our kernels: the same bits for a seed on every device and for every batch split"
    yield "networks on cpu", "prepared, our kernels: the same bits for every batch size and number of threads"
    yield "networks on cuda", "PyTorch's convolutions: the last bits may depend on the batch size"
