"""The names that occur in EDM's files, and what a call of each leaves in place of an object.

Nothing is called here that the file brings: a persistent object of EDM's carries the source text of its class, and that
text is kept for its hash alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edm_fast.checkpoints.budget import MAX_RANK, Budget
from edm_fast.checkpoints.pickle_reader import Vocabulary
from edm_fast.checkpoints.records import (
    Instance,
    LongText,
    Name,
    NamedDict,
    NumpyArray,
    NumpyDtype,
    Storage,
    StoredTensor,
)
from edm_fast.checkpoints.torch_archive import MAX_COUNT, read_storage, storage_name
from edm_fast.errors import CheckpointError

Call = Callable[[tuple[Any, ...], Budget], Any]
_DTYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")
_META_VERSION = 6


class EDMVocabulary(Vocabulary):
    """Names of EDM's pickles; `resolve` gives the storages of an archive of torch's around the pickle."""

    def __init__(self, budget: Budget, resolve: Callable[[Any], Storage] | None = None) -> None:
        self.budget = budget
        self.resolve = resolve

    def name(self, dotted: str) -> Name:
        if dotted in _NAMES:
            return _NAMES[dotted]
        storage = None if self.resolve is None else storage_name(dotted)
        return storage or super().name(dotted)

    def call(self, function: Name, arguments: tuple[Any, ...]) -> Any:
        if function not in _CALLS:
            return super().call(function, arguments)
        try:
            return _CALLS[function](arguments, self.budget)
        except CheckpointError as error:
            raise CheckpointError(f"{function}: {error}") from None

    def new(self, cls: Name) -> Any:
        if cls == "torch.nn.modules.container.ModuleDict":
            return Instance("ModuleDict")
        return NamedDict() if cls in _DICTS else super().new(cls)

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, Instance) and target.source is None and isinstance(state, dict) and not target.state:
            target.state = state
        elif isinstance(target, NumpyDtype):
            _check_byte_order(state)
        elif isinstance(target, NumpyArray) and target.value is None:
            target.value = _array_of_state(state)
        elif not isinstance(target, NamedDict) or not isinstance(state, dict):
            # Attributes of a dict, such as the _metadata of a state dict, are not needed.
            super().build(target, state)

    def persistent(self, identifier: Any) -> Any:
        if self.resolve is None:
            return super().persistent(identifier)
        # Old files of torch.save write the class of a module so, with its source text: ('module', class, file, source).
        if type(identifier) is tuple and len(identifier) == 4 and identifier[0] == "module":
            if type(identifier[1]) is not Name:
                raise CheckpointError("the class of a module is no known name")
            return identifier[1]
        return self.resolve(identifier)


def _persistent_object(arguments: tuple[Any, ...], budget: Budget) -> Instance:
    """EDM's way to pickle an object: {type, version, module_src, class_name, state}."""
    meta = arguments[0] if len(arguments) == 1 else None
    if not isinstance(meta, dict) or set(meta) != {"type", "version", "module_src", "class_name", "state"}:
        raise CheckpointError("its argument is no dict of type, version, module_src, class_name and state")
    if meta["type"] != "class" or type(meta["version"]) is not int or meta["version"] != _META_VERSION:
        raise CheckpointError(
            f"its version is {str(meta['version'])[:40]}, or its type no class; {_META_VERSION} is known"
        )
    name, source, state = meta["class_name"], meta["module_src"], meta["state"]
    if type(name) is not str or not isinstance(source, (str, LongText)) or isinstance(source, Name):
        raise CheckpointError("its class_name or module_src is no string")
    if state is not None and not isinstance(state, dict):
        raise CheckpointError(f"its state is a {type(state).__name__}, no dict")
    return Instance(name, state or {}, source)


def _named_dict(arguments: tuple[Any, ...], budget: Budget) -> NamedDict:
    if arguments:
        raise CheckpointError("it is called with arguments")
    return NamedDict()


def _set(arguments: tuple[Any, ...], budget: Budget) -> set[Any]:
    values = arguments[0] if len(arguments) == 1 else None
    if type(values) is not list or any(type(value) not in (str, int) for value in values):
        raise CheckpointError("its argument is no list of strings and integers")
    budget.charge("operations", 2 + len(values))
    return set(values)


def _encode(arguments: tuple[Any, ...], budget: Budget) -> memoryview:
    """Protocol 2 has no bytes: it writes them as text and this call."""
    text, encoding = arguments if len(arguments) == 2 else (None, None)
    if encoding not in ("latin1", "latin-1") or type(text) not in (str, LongText):
        raise CheckpointError("its arguments are no text and 'latin1'")
    if isinstance(text, LongText):
        budget.charge("copied_bytes", len(text.utf8))
        decoded = memoryview(text.latin1())
        budget.forget()
        return decoded
    assert isinstance(text, str)
    budget.charge("copied_bytes", len(text))
    try:
        return memoryview(bytearray(text, "latin-1"))
    except UnicodeEncodeError:
        raise CheckpointError("its text is no bytes in Latin-1") from None


def _storage(arguments: tuple[Any, ...], budget: Budget) -> Storage:
    if len(arguments) != 1 or type(arguments[0]) is not memoryview:
        raise CheckpointError("its argument is not bytes")
    return read_storage(arguments[0], budget)


def _tensor(arguments: tuple[Any, ...], budget: Budget) -> StoredTensor:
    """(storage, offset, size, stride, requires_grad, hooks[, flags]); refused unless it lies inside its storage."""
    budget.charge("tensors")
    if len(arguments) not in (6, 7) or type(arguments[0]) is not Storage:
        raise CheckpointError("its arguments are no storage, offset, size, stride, requires_grad and hooks")
    if len(arguments) == 7 and arguments[6]:
        raise CheckpointError("a tensor is conjugated, negated or has other flags")
    storage, offset, shape, stride = arguments[:4]
    _check_counts("offset", (offset,))
    _check_counts("size", shape)
    _check_counts("stride", stride)
    if len(shape) != len(stride):
        raise CheckpointError(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    tensor = StoredTensor(storage, offset, shape, stride)
    if offset + tensor.extent > storage.count:
        raise CheckpointError(
            f"a tensor of size {list(shape)}, stride {list(stride)} and offset {offset} "
            f"reaches outside its storage of {storage.count} elements"
        )
    if _overlaps(shape, stride):
        raise CheckpointError(f"a tensor of size {list(shape)} and stride {list(stride)} overlaps itself")
    return tensor


def _check_counts(what: str, values: Any) -> None:
    if type(values) is not tuple or len(values) > MAX_RANK:
        raise CheckpointError(f"the {what} of a tensor is no tuple of up to {MAX_RANK} integers")
    if any(type(value) is not int or not 0 <= value <= MAX_COUNT for value in values):
        raise CheckpointError(f"the {what} of a tensor has an entry that is no integer from 0 to 2^40")


def _overlaps(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether one place may hold two elements: a step is not beyond all that smaller steps reach."""
    reach = 0
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1:
            if step <= reach:
                return True
            reach += (size - 1) * step
    return False


def _parameter(arguments: tuple[Any, ...], budget: Budget) -> StoredTensor:
    if len(arguments) != 3 or type(arguments[0]) is not StoredTensor:
        raise CheckpointError("its arguments are no tensor, requires_grad and hooks")
    return arguments[0]


def _numpy_dtype(arguments: tuple[Any, ...], budget: Budget) -> NumpyDtype:
    code = arguments[0] if arguments else None
    if type(code) is not str or code not in _DTYPES:
        raise CheckpointError(f"the dtype {str(code)[:40]!r} is not one of {', '.join(_DTYPES)}")
    return NumpyDtype(np.dtype(code if code == "b1" else f"<{code}"))


def _check_byte_order(state: Any) -> None:
    if type(state) is not tuple or len(state) < 2 or type(state[1]) is not str or state[1] not in ("<", "|"):
        raise CheckpointError("a numpy dtype is big-endian, or not of plain numbers")


def _numpy_scalar(arguments: tuple[Any, ...], budget: Budget) -> Any:
    dtype, data = arguments if len(arguments) == 2 else (None, None)
    return _array(dtype, (), data, "C").item()


def _numpy_array(arguments: tuple[Any, ...], budget: Budget) -> NumpyArray:
    if len(arguments) != 3 or type(arguments[0]) is not Name or arguments[0] != "numpy.ndarray":
        raise CheckpointError("its class is not numpy.ndarray")
    return NumpyArray()


def _numpy_from_buffer(arguments: tuple[Any, ...], budget: Budget) -> NumpyArray:
    """Protocol 5's form: (bytes, dtype, shape, order)."""
    if len(arguments) != 4:
        raise CheckpointError("its arguments are no bytes, dtype, shape and order")
    data, dtype, shape, order = arguments
    return NumpyArray(_array(dtype, shape, data, order))


def _array_of_state(state: Any) -> np.ndarray[Any, Any]:
    """The state is (1, shape, dtype, whether Fortran order, bytes)."""
    if type(state) is not tuple or len(state) != 5 or type(state[3]) is not bool:
        raise CheckpointError("a numpy array has a state of another form")
    return _array(state[2], state[1], state[4], "F" if state[3] else "C")


def _array(dtype: Any, shape: Any, data: Any, order: Any) -> np.ndarray[Any, Any]:
    if type(dtype) is not NumpyDtype or type(data) is not memoryview or order not in ("C", "F"):
        raise CheckpointError("a numpy value has no dtype of plain numbers, no bytes or no order")
    _check_counts("shape", shape)
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise CheckpointError(f"a numpy array of shape {list(shape)} and {dtype.dtype} is {len(data)} bytes")
    try:
        return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    except ValueError as error:
        raise CheckpointError(f"no numpy array has the shape {list(shape)}: {error}") from None


_DICTS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
_CALLS: dict[str, Call] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "collections.OrderedDict": _named_dict,
    "dnnlib.util.EasyDict": _named_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy.core.numeric._frombuffer": _numpy_from_buffer,
    "numpy._core.numeric._frombuffer": _numpy_from_buffer,
}
_NAMES = {dotted: Name(dotted) for dotted in (*_CALLS, "numpy.ndarray", "torch.nn.modules.container.ModuleDict")}
