"""An interpreter of pickle opcodes that builds plain data.

A pickle is a program for a stack machine; the danger in it is that the usual machine resolves names to objects of
Python and calls them. Here a name stays a name, and a call is looked up in a `Vocabulary`, which answers with records
or refuses. Of the opcodes only those are known that protocols 2 to 5 write for plain data and such calls.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from struct import Struct
from typing import Any

from edm_fast.checkpoints.budget import Budget
from edm_fast.checkpoints.records import LongText, Name
from edm_fast.errors import CheckpointError

PROTOCOLS = (2, 3, 4, 5)
# Longer strings are left undecoded.
_MAX_TEXT = 4096
_MAX_NAME = 256
_MAX_INTEGER_BYTES = 16


class Vocabulary:
    """What names, calls and persistent ids in a pickle mean. This one refuses them all."""

    def name(self, dotted: str) -> Name:
        """The record of a global."""
        raise CheckpointError(f"the global {dotted[:80]!r} does not belong into a checkpoint")

    def call(self, function: Name, arguments: tuple[Any, ...]) -> Any:
        """What REDUCE leaves on the stack."""
        raise CheckpointError(f"{str(function)[:80]!r} cannot be called")

    def new(self, cls: Name) -> Any:
        """What NEWOBJ without arguments leaves on the stack."""
        raise CheckpointError(f"{str(cls)[:80]!r} cannot be made without arguments")

    def build(self, target: Any, state: Any) -> None:
        """Give an object that `call` or `new` made its state."""
        raise CheckpointError(f"a {type(target).__name__} takes no state")

    def persistent(self, identifier: Any) -> Any:
        """What a persistent id stands for."""
        raise CheckpointError("a persistent id stands outside of a torch archive")


def read_pickle(data: memoryview, start: int, vocabulary: Vocabulary, budget: Budget) -> tuple[Any, int]:
    """Return (value, end) of the pickle that begins at byte `start` of `data`.

    Strings, numbers, lists, tuples, dicts and sets become themselves, bytes become views of `data`, and everything
    else what `vocabulary` says. Raises CheckpointError, with the byte, for anything else.
    """
    machine = _Machine(data, start, vocabulary, budget)
    try:
        return machine.run(), machine.position
    except CheckpointError as error:
        raise CheckpointError(f"byte {machine.opcode_at}: {error}") from None


class _Machine:
    def __init__(self, data: memoryview, start: int, vocabulary: Vocabulary, budget: Budget) -> None:
        self.data = data
        self.position = self.opcode_at = start
        self.vocabulary = vocabulary
        self.budget = budget
        self.stack: list[Any] = []
        # A MARK puts the stack aside and begins a new one, so that nothing reaches below it.
        self.aside: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        data, budget = self.data, self.budget
        while True:
            budget.operations -= 1
            if budget.operations < 0:
                budget.charge("operations", 0)
            self.opcode_at = self.position
            if self.position >= len(data):
                raise CheckpointError("truncated: the pickle has no end")
            opcode = data[self.position]
            self.position += 1
            if opcode == _STOP:
                break
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise CheckpointError(f"opcode 0x{opcode:02x} does not belong into a checkpoint")
            operation(self)
        value = self.pop()
        if self.stack or self.aside:
            raise CheckpointError("the pickle ends with values left over")
        return value

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise CheckpointError(f"truncated: {count} bytes are wanted, {len(self.data) - self.position} are there")
        view = self.data[self.position : end]
        self.position = end
        return view

    def number(self, layout: Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def line(self) -> str:
        """Text up to a newline, which is taken too."""
        start = bytes(self.data[self.position : self.position + _MAX_NAME])
        text, newline, _ = start.partition(b"\n")
        if not newline or not text.isascii():
            raise CheckpointError("truncated, or damaged: a global has no end")
        self.position += len(text) + 1
        return text.decode("ascii")

    def pop(self) -> Any:
        if not self.stack:
            raise CheckpointError("an operation wants a value that is not there")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise CheckpointError("an operation wants a value that is not there")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        if not self.aside:
            raise CheckpointError("an operation wants a mark that is not there")
        values, self.stack = self.stack, self.aside.pop()
        return values

    def text(self, size: int) -> None:
        view = self.take(size)
        if size > _MAX_TEXT:
            self.stack.append(LongText(view))
            return
        try:
            text = str(view, "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"a string is not UTF-8: {error.reason}") from None
        self.budget.charge("text_bytes", sys.getsizeof(text))
        self.stack.append(text)

    def global_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise CheckpointError("a global has a name that is no string")
        self.stack.append(self.vocabulary.name(f"{module}.{name}"))

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise CheckpointError(f"value {index} is wanted before it was stored")
        self.stack.append(self.memo[index])

    def set_items(self, keys_and_values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(keys_and_values) % 2:
            raise CheckpointError(f"items are set on a {type(target).__name__}")
        for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
            if type(key) not in (str, int):
                raise CheckpointError(f"a key is a {type(key).__name__}, not a string or an integer")
            if key in target:
                raise CheckpointError(f"the key {str(key)[:80]!r} comes twice")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise CheckpointError(f"items are appended to a {type(target).__name__}")
        target += values


def _protocol(machine: _Machine) -> None:
    protocol = machine.take(1)[0]
    if protocol not in PROTOCOLS:
        raise CheckpointError(f"pickle protocol {protocol} is not one of 2 to 5")


def _frame(machine: _Machine) -> None:
    size = machine.number(_U8)
    if size > len(machine.data) - machine.position:
        raise CheckpointError(f"truncated: a frame claims {size} bytes, {len(machine.data) - machine.position} follow")


def _mark(machine: _Machine) -> None:
    machine.aside.append(machine.stack)
    machine.stack = []


def _long(machine: _Machine) -> None:
    size = machine.take(1)[0]
    if size > _MAX_INTEGER_BYTES:
        raise CheckpointError(f"an integer of {size} bytes")
    machine.stack.append(int.from_bytes(machine.take(size), "little", signed=True))


def _tuple(count: int) -> Callable[[_Machine], None]:
    def operation(machine: _Machine) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return operation


def _marked_tuple(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.stack.append(tuple(values))


def _bytes(size: Struct) -> Callable[[_Machine], None]:
    def operation(machine: _Machine) -> None:
        machine.budget.charge("operations", 1)  # a view takes the memory of two lists or more
        machine.stack.append(machine.take(machine.number(size)))

    return operation


def _set(machine: _Machine) -> None:
    machine.budget.charge("operations", 2)  # an empty set takes the memory of three lists
    machine.stack.append(set())


def _add_items(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    target = machine.top()
    if type(target) is not set or any(type(value) not in (str, int) for value in values):
        raise CheckpointError("only strings and integers are put into sets, and only into sets")
    target.update(values)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.global_name(module, name)


def _reduce(machine: _Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    if type(function) is not Name or type(arguments) is not tuple:
        raise CheckpointError(f"a {type(function).__name__} is called, not a known function with a tuple")
    machine.stack.append(machine.vocabulary.call(function, arguments))


def _new(machine: _Machine) -> None:
    arguments, cls = machine.pop(), machine.pop()
    if type(cls) is not Name or type(arguments) is not tuple or arguments:
        raise CheckpointError(f"an object is made of a {type(cls).__name__}, not of a known class without arguments")
    machine.stack.append(machine.vocabulary.new(cls))


def _build(machine: _Machine) -> None:
    state = machine.pop()
    machine.vocabulary.build(machine.top(), state)


def _item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.extend([value])


_U1, _U2, _U4, _U8 = Struct("<B"), Struct("<H"), Struct("<I"), Struct("<Q")
_I4, _F8 = Struct("<i"), Struct(">d")
_STOP = pickle.STOP[0]
_BY_NAME: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.MARK: _mark,
    pickle.NONE: lambda machine: machine.stack.append(None),
    pickle.NEWTRUE: lambda machine: machine.stack.append(True),
    pickle.NEWFALSE: lambda machine: machine.stack.append(False),
    pickle.BININT: lambda machine: machine.stack.append(machine.number(_I4)),
    pickle.BININT1: lambda machine: machine.stack.append(machine.number(_U1)),
    pickle.BININT2: lambda machine: machine.stack.append(machine.number(_U2)),
    pickle.LONG1: _long,
    pickle.BINFLOAT: lambda machine: machine.stack.append(machine.number(_F8)),
    pickle.SHORT_BINUNICODE: lambda machine: machine.text(machine.number(_U1)),
    pickle.BINUNICODE: lambda machine: machine.text(machine.number(_U4)),
    pickle.BINUNICODE8: lambda machine: machine.text(machine.number(_U8)),
    pickle.SHORT_BINBYTES: _bytes(_U1),
    pickle.BINBYTES: _bytes(_U4),
    pickle.BINBYTES8: _bytes(_U8),
    pickle.BYTEARRAY8: _bytes(_U8),
    pickle.EMPTY_DICT: lambda machine: machine.stack.append({}),
    pickle.EMPTY_LIST: lambda machine: machine.stack.append([]),
    pickle.EMPTY_TUPLE: lambda machine: machine.stack.append(()),
    pickle.EMPTY_SET: _set,
    pickle.TUPLE1: _tuple(1),
    pickle.TUPLE2: _tuple(2),
    pickle.TUPLE3: _tuple(3),
    pickle.TUPLE: _marked_tuple,
    pickle.APPEND: _append,
    pickle.APPENDS: lambda machine: machine.extend(machine.pop_to_mark()),
    pickle.SETITEM: _item,
    pickle.SETITEMS: lambda machine: machine.set_items(machine.pop_to_mark()),
    pickle.ADDITEMS: _add_items,
    pickle.GLOBAL: lambda machine: machine.global_name(machine.line(), machine.line()),
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _new,
    pickle.BUILD: _build,
    pickle.BINPERSID: lambda machine: machine.stack.append(machine.vocabulary.persistent(machine.pop())),
    pickle.BINPUT: lambda machine: machine.remember(machine.number(_U1)),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number(_U4)),
    pickle.MEMOIZE: lambda machine: machine.remember(len(machine.memo)),
    pickle.BINGET: lambda machine: machine.recall(machine.number(_U1)),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.number(_U4)),
}
_OPERATIONS = {opcode[0]: operation for opcode, operation in _BY_NAME.items()}
