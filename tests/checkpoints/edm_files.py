"""EDM's checkpoint files, written by stand-ins that reduce in the form that its classes do.

`Pickler` writes a stand-in under the name that it gives as `pickled_name`, so that no module of that name is needed,
and the names of numpy and Python that older versions write.
"""

from __future__ import annotations

import io
import pickle
import types
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

# Were it ever run, the audit of the tests would see it.
SOURCE = "import os\nos.system('echo module_src was executed')\n" + "# not run\n" * 600
_BASE = frozenset(vars(nn.Module()))
_OLD_NUMPY = {"numpy._core.multiarray": "numpy.core.multiarray", "numpy._core.numeric": "numpy.core.numeric"}


class Pickler(pickle._Pickler):
    """The pickler in Python, with names of our choice; `old` are the names of numpy 1."""

    old = False

    def save_global(self, obj: Any, name: str | None = None) -> None:
        dotted = getattr(obj, "pickled_name", None)
        if dotted is None:
            name = name or obj.__qualname__
            module = pickle.whichmodule(obj, name)
            module = _OLD_NUMPY.get(module, module) if self.old else module
            module = "__builtin__" if module == "builtins" and self.proto < 3 else module
        else:
            module, _, name = dotted.rpartition(".")
        if self.proto >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(obj)

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, types.FunctionType: save_global}


class OldPickler(Pickler):
    old = True


class EasyDict(dict):
    pickled_name = "dnnlib.util.EasyDict"


class OldEasyDict(EasyDict):
    """Before Python 3.11 an object without attributes had the state {}."""

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        function, arguments, _, items, pairs = super().__reduce_ex__(protocol)
        return function, arguments, {}, items, pairs


def reconstruct(meta: Any) -> None:
    raise AssertionError("a persistent object was made")


reconstruct.pickled_name = "torch_utils.persistence._reconstruct_persistent_obj"  # type: ignore[attr-defined]


class Persistent:
    """What EDM's decorator makes of a class."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = SOURCE, old: bool = False) -> None:
        self.class_name, self.state, self.source, self.old = class_name, state, source, old

    def __reduce__(self) -> tuple[Any, ...]:
        meta = (OldEasyDict if self.old else EasyDict)(
            type="class", version=6, module_src=self.source, class_name=self.class_name, state=self.state
        )
        return reconstruct, (meta,)


def persistent(module: nn.Module, source: str = SOURCE, old: bool = False, args: int = 0) -> Any:
    """A module of ours as EDM would pickle its own; the first `args` constructor arguments are positional."""
    state = {
        key: value
        for key, value in vars(module).items()
        if key in _BASE or value is None or type(value) in (bool, int, float, str)
    }
    children = OrderedDict((name, persistent(child, source, old)) for name, child in module._modules.items())
    state["_modules"] = children
    if old:
        state["_parameters"], state["_buffers"] = OrderedDict(module._parameters), OrderedDict(module._buffers)
        del state["_non_persistent_buffers_set"]
    if isinstance(module, nn.ModuleDict):
        stand_in = nn.ModuleDict()
        stand_in.__dict__.update(state)
        return stand_in
    if hasattr(module, "init_kwargs"):
        items = list(module.init_kwargs.items())
        state["_init_args"] = tuple(value for _, value in items[:args])
        state["_init_kwargs"] = (OldEasyDict if old else EasyDict)(items[args:])
    return Persistent(type(module).__name__, state, source, old)


def dumps(value: Any, protocol: int = 4, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    (OldPickler if old else Pickler)(buffer, protocol).dump(value)
    return buffer.getvalue()


def contents(net: nn.Module, old: bool = False, /, **entries: Any) -> dict[str, Any]:
    """What a snapshot of EDM's training holds."""
    dataset = (OldEasyDict if old else EasyDict)(
        class_name="training.dataset.ImageFolderDataset",
        path="data.zip",
        use_labels=True,
        max_size=np.int64(50000),
        mean=np.array([0.25, 0.5]),
    )
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}, old=old)
    return {
        "ema": persistent(net, old=old),
        "loss_fn": loss,
        "augment_pipe": None,
        "dataset_kwargs": dataset,
        **entries,
    }


def edm_pickle(net: nn.Module, protocol: int = 4, old: bool = False, **entries: Any) -> bytes:
    return dumps(contents(net, old, **entries), protocol, old)


def torch_file(value: Any, legacy: bool = False) -> bytes:
    """What torch.save writes of an object with stand-ins in it."""
    module = types.ModuleType("stand_in_pickle")
    module.Pickler, module.dump = Pickler, pickle.dump  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=module, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def training_state(net: nn.Module, legacy: bool = False) -> bytes:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return torch_file({"net": persistent(net), "optimizer_state": optimizer.state_dict()}, legacy)
