"""What a checkpoint file holds: its kind, its entries, and the network in one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edm_fast.checkpoints.budget import Budget, check_nesting
from edm_fast.checkpoints.modules import StoredNetwork, is_network, stored_network
from edm_fast.checkpoints.pickle_reader import read_pickle
from edm_fast.checkpoints.records import Instance, StoredTensor
from edm_fast.checkpoints.safetensors_reader import is_safetensors, read_safetensors
from edm_fast.checkpoints.torch_archive import LEGACY_START, read_legacy, read_zip
from edm_fast.checkpoints.vocabulary import EDMVocabulary
from edm_fast.checkpoints.zip_reader import SIGNATURE
from edm_fast.errors import CheckpointError

# The entry taken when none is asked for: of EDM's pickles, and of its training states.
_DEFAULT_ENTRIES = ("ema", "net")
_WHOLE = "the file"


@dataclass
class Contents:
    """`kind` in words; `entries` by name: records and plain data; `metadata` of a safetensors file, None of others."""

    kind: str
    entries: dict[str, Any]
    metadata: dict[str, str] | None = None


def read_contents(data: memoryview, forget: Callable[[], None] = lambda: None) -> Contents:
    """Read an EDM pickle, a file of torch.save or a safetensors file; tensors are views of `data`.

    Raises CheckpointError, with what and where, for everything else; a hostile file costs no more than `Budget` allows.
    `forget`, as `Source.forget`, is called when much was read.
    """
    budget = Budget(len(data), forget)
    if data[: len(SIGNATURE)] == SIGNATURE:
        kind = "archive of torch.save"
        value = read_zip(data, budget, lambda resolve: EDMVocabulary(budget, resolve))
    elif data[: len(LEGACY_START)] == LEGACY_START:
        kind = "old file of torch.save"
        value = read_legacy(data, budget, lambda resolve: EDMVocabulary(budget, resolve))
    elif data[:1] == b"\x80":
        value, end = read_pickle(data, 0, EDMVocabulary(budget), budget)
        kind = f"pickle of protocol {data[1]}"
        if end != len(data):
            raise CheckpointError(f"byte {end}: {len(data) - end} bytes follow the pickle")
    elif is_safetensors(data):
        metadata, tensors = read_safetensors(data)
        return Contents("safetensors file", {_WHOLE: tensors}, metadata)
    else:
        raise CheckpointError(f"not a checkpoint of a kind that is known (its first bytes are {bytes(data[:8])!r})")
    check_nesting(value)
    if not isinstance(value, dict) or is_state_dict(value):
        return Contents(kind, {_WHOLE: value})
    return Contents(kind, {str(name): entry for name, entry in value.items()})


def is_state_dict(value: Any) -> bool:
    """Whether a value is tensors by name."""
    return isinstance(value, dict) and bool(value) and all(type(tensor) is StoredTensor for tensor in value.values())


def choose_entry(contents: Contents, entry: str | None) -> tuple[str, Any]:
    """(name, value) of the entry asked for; without a name of `ema`, or `net`, or the only network in the file.

    Raises ValueError for a name that the file does not have, CheckpointError when nothing can be chosen.
    """
    names = ", ".join(repr(name[:40]) for name in list(contents.entries)[:20]) or "nothing"
    if entry is not None:
        if entry not in contents.entries:
            raise ValueError(f"entry must be one that the file holds ({names}), but it is {entry!r}")
        return entry, contents.entries[entry]
    found = [name for name in _DEFAULT_ENTRIES if contents.entries.get(name) is not None]
    found = found or [name for name, value in contents.entries.items() if is_network(value) or is_state_dict(value)]
    if not found:
        raise CheckpointError(f"no network in it; it holds {names}")
    if found[0] not in _DEFAULT_ENTRIES and len(found) > 1:
        raise CheckpointError(f"several networks in it, and none asked for; it holds {names}")
    return found[0], contents.entries[found[0]]


def network_of(value: Any, class_name: str | None, init_kwargs: Mapping[str, Any] | None) -> StoredNetwork:
    """The network in an entry. A state dict takes the class and constructor arguments from the caller.

    Raises ValueError when they are missing for a state dict or given for a network that has its own, CheckpointError
    for a value that is neither.
    """
    if isinstance(value, Instance):
        if class_name is not None or init_kwargs is not None:
            raise ValueError(
                "class_name and init_kwargs are for state dicts; this file says itself what its network is"
            )
        return stored_network(value)
    if not is_state_dict(value):
        raise CheckpointError(f"a {type(value).__name__}, neither a network nor a state dict")
    if class_name is None or init_kwargs is None:
        raise ValueError(
            "class_name and init_kwargs must be given for a state dict: the file does not say what it is of"
        )
    if any(type(name) is not str for name in value):
        raise CheckpointError("a state dict has keys that are no strings")
    arguments = {name: list(item) if isinstance(item, tuple) else item for name, item in init_kwargs.items()}
    return StoredNetwork(class_name, arguments, dict(value), given=True)
