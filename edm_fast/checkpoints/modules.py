"""A pickled network: from the tree of its modules' attributes to its class, arguments and state dict."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edm_fast.checkpoints.budget import MAX_MODULES, MAX_NAME, MAX_TENSORS, plain
from edm_fast.checkpoints.records import Instance, StoredTensor
from edm_fast.errors import CheckpointError
from edm_fast.networks.architecture import OWN_OPTIONS, PRECONDITIONINGS

# What changes a network's function and shows in no key of its state dict.
_PART_ATTRIBUTES = ("num_heads", "skip_scale", "adaptive_scale", "eps", "num_groups", "up", "down", "fused_resample")
_NET_ATTRIBUTES = ("img_resolution", "img_channels", "label_dim", "sigma_min", "sigma_max")


@dataclass
class StoredNetwork:
    """A network as a file holds it.

    `arguments`: of the constructor, by name. `state`: its state dict; `parameters` are the keys that are no buffers.
    `attributes`: the attributes of each module by its name, '' for the network itself. `source_sha256`: of the text of
    the module that defined its class, where the file has it. `given`: class and arguments are the caller's.
    """

    class_name: str
    arguments: dict[str, Any]
    state: dict[str, StoredTensor] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    attributes: dict[str, Mapping[Any, Any]] = field(default_factory=dict)
    source_sha256: str | None = None
    given: bool = False


def is_network(value: Any) -> bool:
    """Whether a value of a pickle is one of EDM's preconditioned networks."""
    return isinstance(value, Instance) and value.class_name in PRECONDITIONINGS and "_modules" in value.state


def stored_network(instance: Instance) -> StoredNetwork:
    """The network whose persistent object is `instance`; CheckpointError if it is not one of EDM's four classes."""
    if not is_network(instance):
        raise CheckpointError(
            f"its class {instance.class_name[:80]!r} is not one of {', '.join(PRECONDITIONINGS)}, or it has no modules"
        )
    network = StoredNetwork(instance.class_name, _arguments(instance), source_sha256=instance.source_sha256)
    for prefix, module in _modules(instance):
        network.attributes[prefix.removesuffix(".")] = module.state
        left_out = module.state.get("_non_persistent_buffers_set", set())
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _members(module, kind, prefix):
                if isinstance(left_out, set) and name in left_out:
                    continue
                if type(tensor) is not StoredTensor:
                    raise CheckpointError(f"{prefix}{name} is a {type(tensor).__name__}, not a tensor")
                if prefix + name in network.state:
                    raise CheckpointError(f"{prefix}{name} is both a parameter and a buffer")
                network.state[prefix + name] = tensor
                if kind == "_parameters":
                    network.parameters.add(prefix + name)
        if len(network.state) > MAX_TENSORS:
            raise CheckpointError(f"the network has more than {MAX_TENSORS} tensors")
    return network


def _arguments(instance: Instance) -> dict[str, Any]:
    """Constructor arguments by name, from what EDM's persistence recorded."""
    values, options = instance.state.get("_init_args", ()), instance.state.get("_init_kwargs")
    if not isinstance(values, (tuple, list)) or not isinstance(options, dict):
        raise CheckpointError(f"its {instance.class_name} has no _init_args and _init_kwargs")
    signature = inspect.signature(PRECONDITIONINGS[instance.class_name])
    names = [name for name, kind in signature.parameters.items() if kind.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(values) > len(names):
        raise CheckpointError(f"_init_args holds {len(values)} arguments; {instance.class_name} takes {len(names)}")
    positional = dict(zip(names, values, strict=False))
    twice = [name for name in options if name in positional or type(name) is not str]
    if twice:
        raise CheckpointError(f"_init_kwargs holds {str(twice[0])[:80]!r}, which _init_args gives already, or no name")
    return {name: plain(value) for name, value in {**positional, **options}.items()}


def _modules(root: Instance) -> Iterator[tuple[str, Instance]]:
    """(prefix of the keys, module) of all modules, each under every name that it has."""
    waiting = [("", root)]
    for count in range(MAX_MODULES):
        if not waiting:
            return
        prefix, module = waiting.pop()
        yield prefix, module
        inner = []
        for name, child in _members(module, "_modules", prefix):
            if type(child) is not Instance:
                raise CheckpointError(f"{prefix}{name} is a {type(child).__name__}, not a module")
            inner.append((f"{prefix}{name}.", child))
        if count + len(waiting) + len(inner) > MAX_MODULES:
            break
        waiting += reversed(inner)
    raise CheckpointError(f"the network has more than {MAX_MODULES} modules")


def _members(module: Instance, kind: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """The entries of one of a module's dicts that are not None."""
    members = module.state.get(kind, {})
    if not isinstance(members, dict):
        raise CheckpointError(f"{prefix}{kind} is a {type(members).__name__}, no dict")
    for name, value in members.items():
        if type(name) is not str or "." in name or len(prefix) + len(name) > MAX_NAME:
            raise CheckpointError(f"{prefix}{kind} has the name {str(name)[:80]!r}")
        if value is not None:
            yield name, value


def check_attributes(network: StoredNetwork, built: Any) -> None:
    """CheckpointError where a number that the file's modules hold is another than in the network built of it.

    EDM's own loader takes the numbers and not the arguments, so that such a file would compute something else.
    """
    parts = dict(built.named_modules())
    for name, attributes in network.attributes.items():
        own = OWN_OPTIONS[network.class_name]
        for attribute in _PART_ATTRIBUTES if name else (*_NET_ATTRIBUTES, *own):
            theirs, ours = attributes.get(attribute), getattr(parts.get(name), attribute, None)
            if not isinstance(theirs, (int, float)) or not isinstance(ours, (int, float)):
                continue
            if theirs != ours and not abs(theirs - ours) <= 1e-5 * abs(ours):
                label = f"{name}.{attribute}" if name else attribute
                raise CheckpointError(f"{label} is {theirs}, but the network of these arguments has {ours}")
