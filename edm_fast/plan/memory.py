"""Where the images of a graph lie in one arena: those that are alive at different times share memory."""

from __future__ import annotations

from edm_fast.plan.ir import Graph, Image, reads, writes

ALIGNMENT = 64


def lifetimes(graph: Graph) -> dict[Image, tuple[int, int]]:
    """For every image but input and output: the first operation that writes it and the last that reads it."""
    first: dict[Image, int] = {}
    last: dict[Image, int] = {}
    for index, operation in enumerate(graph.operations):
        for image in writes(operation):
            first.setdefault(image, index)
            last[image] = index
        for image in reads(operation):
            last[image] = index
    return {image: (first[image], last[image]) for image in first if image not in (graph.input, graph.output)}


def layout(graph: Graph, element_bytes: int) -> tuple[dict[Image, int], int]:
    """(offset of each image, size of the arena), in bytes per sample. The largest images are placed first."""
    alive = lifetimes(graph)
    sizes = {image: -(-image.elements * element_bytes // ALIGNMENT) * ALIGNMENT for image in alive}
    offsets: dict[Image, int] = {}
    end = 0
    for image in sorted(alive, key=lambda image: (-sizes[image], alive[image][0])):
        start, stop = alive[image]
        neighbours = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if alive[other][0] <= stop and start <= alive[other][1]
        )
        offset = 0
        for begin, finish in neighbours:
            if offset + sizes[image] <= begin:
                break
            offset = max(offset, finish)
        offsets[image] = offset
        end = max(end, offset + sizes[image])
    return offsets, end
