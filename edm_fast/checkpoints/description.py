"""What a checkpoint file is and holds, in lines for people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from edm_fast.checkpoints.assembly import unfilled
from edm_fast.checkpoints.contents import Contents, is_network, is_state_dict, read_contents
from edm_fast.checkpoints.modules import StoredNetwork, stored_network
from edm_fast.checkpoints.native import FORMAT, stored_native
from edm_fast.checkpoints.records import Instance, StoredTensor
from edm_fast.checkpoints.source import Source
from edm_fast.errors import CheckpointError

_LINE = 160


def describe(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """(label, text) rows about a checkpoint: its kind, the networks in it, and what else is there.

    Of a network: class, constructor arguments, parameter count, the SHA-256 of its class's source text where the file
    has it, and whether `load` would take it. Weights are not read. Text from the file is escaped.

    Raises CheckpointError when the file cannot be read at all, OSError when it cannot be opened.
    """
    source = Source(path)
    try:
        contents = read_contents(source.data, source.forget)
    except CheckpointError as error:
        raise CheckpointError(f"{source.name}: {error}") from error
    return [("file", f"{source.name}, {len(source.data):,} bytes, {contents.kind}"), *entry_rows(contents)]


def entry_rows(contents: Contents) -> Iterator[tuple[str, str]]:
    """Rows about each entry of a file."""
    for name, value in contents.entries.items():
        label = _shown(name) if not name.isidentifier() else name[:40]
        try:
            if contents.metadata is not None and contents.metadata.get("format") == FORMAT:
                yield from _network_rows("network", stored_native(contents.metadata, value))
                if "card" in contents.metadata:
                    yield "card", _shown(contents.metadata["card"])
            elif is_network(value):
                yield from _network_rows(label, stored_network(value))
            else:
                yield label, _summary(value)
        except CheckpointError as error:
            yield label, f"not loadable: {error}"


def _network_rows(label: str, network: StoredNetwork) -> Iterator[tuple[str, str]]:
    model = network.arguments.get("model_type")
    yield label, network.class_name + (f" around {_shown(model)}" if model is not None else "")
    try:
        net, problem = unfilled(network), None
    except CheckpointError as error:
        net, problem = None, str(error)
    # Buffers are told from weights by the network that the file describes, or else by the file.
    weights = {name for name, _ in net.named_parameters()} if net is not None else network.parameters
    count = sum(_elements(network.state[name]) for name in weights)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in network.state.values()})
    yield f"{label} parameters", f"{count:,} in {len(network.state)} keys, {', '.join(dtypes)}"
    for name, value in network.arguments.items():
        yield f"{label} {_shown(name)[1:-1]}", _shown(value)
    if network.source_sha256 is not None:
        yield f"{label} source", f"sha256 {network.source_sha256}, not run"
    yield f"{label} loadable", "yes" if problem is None else f"no: {problem}"


def _summary(value: Any) -> str:
    if isinstance(value, Instance):
        numbers = {key: item for key, item in value.state.items() if isinstance(item, (int, float, str))}
        hashed = f", source sha256 {value.source_sha256}" if value.source_sha256 is not None else ""
        return f"object of class {_shown(value.class_name)} {_shown(numbers)}{hashed}"
    if is_state_dict(value):
        count = sum(_elements(tensor) for tensor in value.values())
        return f"state dict of {len(value)} tensors, {count:,} elements"
    if isinstance(value, StoredTensor):
        return f"tensor of shape {list(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    return _shown(value)


def _elements(tensor: StoredTensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _shown(value: Any, depth: int = 3) -> str:
    """A value as Python writes it, cut short, with control characters escaped."""
    if isinstance(value, str):
        text = ascii(value[:_LINE])
    elif isinstance(value, Mapping):
        inside = [f"{_shown(key, 0)}: {_shown(item, depth - 1)}" for key, item in _first(value.items(), depth)]
        text = f"{{{', '.join(inside)}}}" if depth or not value else f"dict of {len(value)}"
    elif isinstance(value, (list, tuple)):
        inside = [_shown(item, depth - 1) for item in _first(value, depth)]
        text = f"[{', '.join(inside)}]" if depth or not value else f"list of {len(value)}"
    elif value is None or isinstance(value, (bool, int, float)):
        text = repr(value)
    else:
        text = type(value).__name__
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"


def _first(items: Any, depth: int) -> list[Any]:
    """The first items of a container; none where it is too deep to be written out."""
    return [item for _, item in zip(range(24 if depth else 0), items, strict=False)]
