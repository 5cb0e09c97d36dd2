"""Promises about bits on a device, checked on random data that is new with every run.

Noise has the CPU's bits; our kernels give the same bits again and for every split of a batch. What a whole prepared
network gives is reported and not judged: its convolutions are a library's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import variants
from gpu_cases import Case, Inputs, Source, cases
from gpu_rows import CHECKED
from gpu_run import Run
from torch import Tensor

import edm_fast

NOISE_SHAPES = ((3, 32, 32), (3, 64, 64), (1, 8, 8), (3, 17, 5), (2, 1, 1), (5, 33, 65))
NOISE_DRAWS = (0, 1, 17, 2**32 - 1)
NOISE_SEEDS = 37
NOISE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NOISE_FORMATS = (torch.contiguous_format, torch.channels_last)

SAMPLES = 37
SPLITS = ((1, 36), (16, 21), (5, 27, 5))
NETWORK_SPLITS = ((1, 7), (4, 4))
_REPEATS = 3

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def differing(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> int:
    """How many elements of all tensors differ in a bit; all of them where shapes or dtypes differ."""
    count = 0
    for a, b in zip(actual, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            count += max(a.numel(), b.numel(), 1)
            continue
        bits = _INTEGERS[a.element_size()]
        count += int((a.view(bits) != b.view(bits)).sum())
    return count


def noise(run: Run) -> dict[str, int]:
    """The device's noise against the CPU's, for every shape, draw, dtype and layout."""
    seeds = Source(torch.device("cpu"), run.generator()).seeds(NOISE_SEEDS)
    wrong = elements = 0
    for shape in NOISE_SHAPES:
        for draw in NOISE_DRAWS:
            for dtype in NOISE_DTYPES:
                expected = edm_fast.randn(shape, seeds, draw, dtype=dtype)
                for memory_format in NOISE_FORMATS:
                    options = {"dtype": dtype, "memory_format": memory_format}
                    here = edm_fast.randn(shape, seeds.to(run.device), draw, device=run.device, **options)
                    wrong += differing([here.cpu().contiguous()], [expected])
                    elements += expected.numel()
    return {"differing": wrong, "elements": elements}


def over_parts(case: Case, inputs: Inputs, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """What the case writes for parts of the batch, put together."""
    outputs = []
    first = 0
    for size in sizes:
        outputs.append(case.call(inputs.part(slice(first, first + size)).copy(), None))
        first += size
    return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))


def of_ops(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """(repeats, splits) for every case: elements that differ, all elements, and the cases that have any."""
    repeats: dict[str, Any] = {"differing": 0, "elements": 0, "cases": []}
    splits: dict[str, Any] = {"differing": 0, "elements": 0, "cases": []}

    def note(found: dict[str, Any], case: Case, wrong: int, whole: Sequence[Tensor]) -> None:
        found["differing"] += wrong
        found["elements"] += sum(tensor.numel() for tensor in whole)
        if wrong and case.name not in found["cases"]:
            found["cases"].append(case.name)

    for case in cases(SAMPLES):
        inputs = case.make(case.samples, Source(run.device, run.generator(run.device)))
        whole = case.call(inputs.copy(), None)
        for _ in range(_REPEATS):
            note(repeats, case, differing(case.call(inputs.copy(), None), whole), whole)
        for sizes in SPLITS:
            note(splits, case, differing(over_parts(case, inputs, sizes), whole), whole)
    return repeats, splits


def of_network(run: Run, name: str, build: Callable[[str], Any] = variants.build_network) -> dict[str, Any]:
    """A prepared network in bfloat16: what differs in repeats and in splits of a batch, and by how much at most."""
    net = build(name).to(run.device)
    prepared = edm_fast.prepare(net, dtype=torch.bfloat16)
    samples, size = sum(NETWORK_SPLITS[0]), net.img_resolution
    source = Source(run.device, run.generator(run.device))
    x = source.images(samples, net.img_channels, size, size, torch.bfloat16)
    rows = prepared.modulation(source.rows(samples))
    with torch.no_grad():
        whole = prepared.run(x, rows)
        again = differing([prepared.run(x, rows)], [whole])
        split = error = 0.0
        for sizes in NETWORK_SPLITS:
            parts = [prepared.run(*pair) for pair in zip(x.split(sizes), rows.split(sizes), strict=True)]
            joined = torch.cat(parts)
            split += differing([joined], [whole])
            error = max(error, float((joined.double() - whole.double()).abs().max() / whole.double().abs().max()))
    return {
        "repeats_differing": again,
        "splits_differing": int(split),
        "elements": whole.numel() * len(NETWORK_SPLITS),
        "error": error,
    }


def check(run: Run, _: Sequence[str] = ()) -> bool:
    """Check, print and keep; whether noise, repeats and splits of our kernels have the bits that they must."""
    repeats, splits = of_ops(run)
    found = {"noise": noise(run), "repeats": repeats, "splits": splits}
    for name, entry in found.items():
        wrong, elements = entry["differing"], entry["elements"]
        print(f"{name}: {wrong} of {elements} elements differ {entry.get('cases') or ''}", flush=True)
        run.keep("bits", name, {**entry, "good": wrong == 0})
    for name in CHECKED:
        entry = of_network(run, name)
        print(f"network {name}, for the record: {entry}", flush=True)
        run.keep("bits", f"network {name}", entry)
    return all(entry["differing"] == 0 for entry in found.values())


def describe(_: Sequence[str]) -> Iterator[str]:
    shapes = ", ".join("×".join(map(str, shape)) for shape in NOISE_SHAPES)
    kinds = len(NOISE_DRAWS) * len(NOISE_DTYPES) * len(NOISE_FORMATS)
    yield f"noise of {NOISE_SEEDS} random seeds against the CPU's: {shapes}; {kinds} draws, dtypes and layouts each"
    splits = ", ".join("+".join(map(str, sizes)) for sizes in SPLITS)
    for case in cases(SAMPLES):
        yield f"{_REPEATS} repeats and the splits {splits} of {case.name}"
    for name in CHECKED:
        yield f"repeats and splits of the prepared network {name} in bfloat16, for the record"
