"""Hostile and damaged pickles: each is refused with its reason, and nothing in it runs."""

from __future__ import annotations

import pickle
import struct

import pytest
from checkpoints.audit import nothing_runs
from checkpoints.edm_files import EasyDict, Persistent, dumps
from checkpoints.opcodes import (
    call,
    counts,
    data,
    dict_of,
    integer,
    list_of,
    named,
    network,
    persistent,
    pickled,
    stack_named,
    storage,
    storage_file,
    tensor,
    text,
    tuple_of,
)

import edm_fast
from edm_fast.checkpoints.contents import read_contents
from edm_fast.errors import CheckpointError

COMMAND = text("echo executed")
ORDERED = named("collections.OrderedDict")
NUMPY = "numpy.core.multiarray"


def refused(content, message, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    with nothing_runs(), pytest.raises(CheckpointError, match=rf"hostile.pkl: .*({message})"):
        edm_fast.load(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(autouse=True)
def warm(tmp_path):
    """What Python itself imports late, it imports here."""
    with pytest.raises(CheckpointError):
        edm_fast.load(__file__)


@pytest.mark.parametrize("make", [named, stack_named], ids=["GLOBAL", "STACK_GLOBAL"])
@pytest.mark.parametrize(
    "dotted",
    [
        *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval", "builtins.exec"),
        *("__builtin__.eval", "builtins.getattr", "builtins.__import__", "importlib.import_module", "runpy.run_path"),
        *("torch.load", "torch.hub.load", "torch.serialization.load", "torch._C._jit_compile", "ctypes.CDLL"),
        *("numpy.load", "pickle.loads", "_pickle.loads", "copyreg._reconstructor", "operator.attrgetter"),
        *("dnnlib.util.open_url", "torch_utils.persistence.persistent_class", "training.networks.EDMPrecond"),
        *("torch.storage._load_from_bytes.__globals__", "collections.OrderedDict.__init__", "edm_fast.load"),
        *("torch.FloatStorage", "torch.nn.modules.container.ModuleList", "no.such"),
    ],
)
def test_names_outside_the_list_are_refused(dotted, make, tmp_path):
    for content in (make(dotted), call(make(dotted), COMMAND), dict_of(ema=call(make(dotted), COMMAND))):
        refused(pickled(content), rf"byte \d+: the global '{dotted}' does not belong", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.MARK + COMMAND + pickle.INST + b"os\nsystem\n", "opcode 0x69"),
        (pickle.MARK + ORDERED + COMMAND + pickle.OBJ, "opcode 0x6f"),
        (ORDERED + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NEWOBJ_EX, "opcode 0x92"),
        (pickle.EXT1 + b"\x01", "opcode 0x82"),
        (pickle.PERSID + b"os.system\n", "opcode 0x50"),
        (pickle.NEXT_BUFFER, "opcode 0x97"),
        (pickle.STRING + b"'a'\n", "opcode 0x53"),
        (pickle.LONG4 + struct.pack("<I", 2**31), "opcode 0x8b"),
        (COMMAND + pickle.BINPERSID, "a persistent id stands outside"),
        (COMMAND + tuple_of(COMMAND) + pickle.REDUCE, "a str is called"),
        (ORDERED + COMMAND + pickle.REDUCE, "not a known function with a tuple"),
        (call(ORDERED, COMMAND), "OrderedDict: it is called with arguments"),
        (call(named("numpy.ndarray"), COMMAND), "'numpy.ndarray' cannot be called"),
        (call(named("torch.nn.modules.container.ModuleDict")), "ModuleDict' cannot be called"),
        (named("torch.storage._load_from_bytes") + pickle.EMPTY_TUPLE + pickle.NEWOBJ, "cannot be made without"),
        (ORDERED + tuple_of(COMMAND) + pickle.NEWOBJ, "not of a known class without arguments"),
        (COMMAND + pickle.EMPTY_DICT + pickle.BUILD, "a str takes no state"),
        (pickle.EMPTY_DICT + dict_of(__setstate__=COMMAND) + pickle.BUILD, "a dict takes no state"),
        (ORDERED + dict_of(__reduce__=COMMAND) + pickle.BUILD, "a Name takes no state"),
        (persistent() + dict_of(__class__=COMMAND) + pickle.BUILD, "a Instance takes no state"),
        (call(ORDERED) + tuple_of(dict_of(a=COMMAND)) + pickle.BUILD, "a NamedDict takes no state"),
        (call(named("builtins.set"), list_of(pickle.EMPTY_LIST)), "no list of strings and integers"),
        (pickle.EMPTY_SET + pickle.MARK + pickle.EMPTY_TUPLE + pickle.ADDITEMS, "only strings and integers"),
        (call(named("_codecs.encode"), COMMAND, text("rot13")), "no text and 'latin1'"),
        (call(named("_codecs.encode"), text("\u20ac"), text("latin1")), "no bytes in Latin-1"),
        (call(named("_codecs.encode"), text("\u20ac" * 3000), text("latin1")), "no bytes in Latin-1"),
        (call(named("numpy.dtype"), text("O8")), "the dtype 'O8' is not one of"),
        (call(named("numpy.dtype"), text("V9999999999")), "is not one of"),
        (call(named("numpy.dtype"), text("f4")) + tuple_of(integer(3), text(">")) + pickle.BUILD, "big-endian"),
        (call(named(f"{NUMPY}.scalar"), call(named("numpy.dtype"), text("f8")), data(b"1234")), "is 4 bytes"),
        (call(named(f"{NUMPY}._reconstruct"), ORDERED, counts(0), data(b"b")), "not numpy.ndarray"),
        (call(named("numpy._core.numeric._frombuffer"), data(b""), COMMAND, counts(2**40), text("C")), "no dtype"),
        (pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + b"K\x01s", "a key is a tuple"),
        (pickle.EMPTY_DICT + pickle.NEWTRUE + b"K\x01s", "a key is a bool"),
        (pickle.EMPTY_DICT + (text("a") + b"K\x01s") * 2, "the key 'a' comes twice"),
        (pickle.EMPTY_DICT + pickle.MARK + b"K\x01" + pickle.SETITEMS, "items are set on a"),
        (pickle.EMPTY_LIST + b"K\x01K\x01s", "items are set on a list"),
        (pickle.EMPTY_DICT + b"K\x01a", "items are appended to a dict"),
        (pickle.EMPTY_LIST + b"q\x00h\x00a", "contains itself"),
        (pickle.EMPTY_DICT + b"q\x00" + text("a") + b"h\x00s", "contains itself"),
        (pickle.EMPTY_LIST + b"q\x00" + dict_of(a=b"h\x00") + b"a", "contains itself"),
        (pickle.EMPTY_LIST * 101 + pickle.APPEND * 100, "nested more than 100 deep"),
        (pickle.EMPTY_LIST + pickle.TUPLE1 * 100_000, "nested more than 100 deep"),
        (pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000 + b"Ns", "a key is a tuple"),
        (pickle.MARK * 100_000, "left over|a value that is not there"),
        (pickle.NONE * 1_000_001, "the limit on operations is passed"),
        (pickle.EMPTY_SET * 400_000, "the limit on operations is passed"),
        (b"K\x01K\x02", "values left over"),
        (pickle.MARK + b"K\x01", "values left over"),
        (b"", "a value that is not there"),
        (pickle.REDUCE, "a value that is not there"),
        (pickle.TUPLE, "a mark that is not there"),
        (b"K\x01" + pickle.MARK + pickle.TUPLE1, "a value that is not there"),
        (b"h\x07", "value 7 is wanted before"),
        (pickle.PROTO + b"\x01", "protocol 1 is not one of 2 to 5"),
        (pickle.PROTO + b"\x06", "protocol 6"),
        (pickle.FRAME + struct.pack("<Q", 2**63), "a frame claims 9223372036854775808 bytes"),
        (pickle.BINUNICODE8 + struct.pack("<Q", 2**63), "truncated: 9223372036854775808 bytes are wanted"),
        (pickle.BINUNICODE + b"\x02\0\0\0\xff\xff", "not UTF-8"),
        (pickle.LONG1 + b"\xff" + bytes(255), "an integer of 255 bytes"),
        (pickle.GLOBAL + b"a" * 300, "a global has no end"),
        (b"K\x01K\x02" + pickle.STACK_GLOBAL, "a name that is no string"),
        (pickle.BINBYTES8 + struct.pack("<Q", 2**40), "truncated"),
    ],
)  # fmt: skip
def test_programs_that_no_checkpoint_holds_are_refused(content, message, tmp_path):
    refused(pickled(content), message, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": pickled(integer(7))}, "no file of torch.save"),
        ({"version": pickled(integer(1002))}, "no file of torch.save"),
        ({"machine": pickled(dict_of(little_endian=pickle.NEWFALSE))}, "big-endian"),
        ({"machine": pickled(call(named("os.system"), COMMAND))}, "the global 'os.system'"),
        ({"value": pickled(call(named("os.system"), COMMAND))}, "the global 'os.system'"),
        ({"value": pickled(call(named("torch._utils._rebuild_tensor_v2")))}, "the global 'torch._utils"),
        ({"value": pickled(call(named("torch.storage._load_from_bytes"), data(b"")))}, "the global 'torch.storage"),
        ({"value": pickled(text("storage"))}, "0 storages|but the pickle names 0"),
        ({"keys": pickled(list_of(text("0"), text("0")))}, "2 storages follow, but the pickle names 1"),
        ({"keys": pickled(list_of(text("1")))}, "or others"),
        ({"keys": pickled(call(named("os.system"), COMMAND))}, "the global 'os.system'"),
        ({"count": struct.pack("<q", -1)}, "has -1 elements, not 6"),
        ({"count": struct.pack("<q", 2**62)}, "elements, not 6"),
        ({"content": bytes(23)}, "storage '0' is 24 bytes, 23 follow"),
        ({"content": bytes(25)}, "1 bytes follow the last storage"),
        ({"count": b"", "content": b""}, "truncated or damaged"),
    ],
)
def test_nested_files_of_torch_hold_a_storage_and_nothing_else(changes, message, tmp_path):
    refused(network(tensor(storage(**changes))), f"_load_from_bytes: .*({message})", tmp_path)


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        (text("0"), "a persistent id is no"),
        (tuple_of(text("module"), named("torch.FloatStorage"), text("0"), text("cpu"), integer(6)), "is no"),
        (tuple_of(text("storage"), text("torch.FloatStorage"), text("0"), text("cpu"), integer(6)), "is no"),
        (tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), integer(-1)), "-1 elements"),
        (tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), integer(2**70)), "elements"),
        (
            tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), integer(6), counts(1)),
            "is a view of another",
        ),
        (tuple_of(text("storage"), named("torch.DoubleStorage"), text("0"), text("cpu"), integer(6)), "48 bytes, 24"),
    ],
)
def test_persistent_ids_of_another_form_are_refused(identifier, message, tmp_path):
    value = pickled(identifier, pickle.BINPERSID)
    refused(network(tensor(storage(value=value))), message, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": counts(2, 4)}, r"size \[2, 4\].* reaches outside its storage of 6"),
        ({"offset": integer(1)}, "offset 1 reaches outside"),
        ({"stride": counts(4, 1)}, "reaches outside"),
        ({"stride": counts(0, 1)}, "overlaps itself"),
        ({"stride": counts(1, 1)}, "overlaps itself"),
        ({"size": counts(2**40), "stride": counts(0)}, "overlaps itself"),
        ({"size": counts(2**33, 2**33), "stride": counts(2**33, 1)}, "reaches outside"),
        ({"size": counts(-2, 3)}, "size .* no integer from 0"),
        ({"offset": integer(-1)}, "offset .* no integer from 0"),
        ({"stride": counts(-3, 1)}, "stride .* no integer from 0"),
        ({"size": counts(2**64, 1)}, "size .* no integer from 0"),
        ({"size": counts(*[1] * 60), "stride": counts(*[1] * 60)}, "size of a tensor is no tuple of up to 8"),
        ({"size": counts(6)}, "1 sizes and 2 strides"),
        ({"size": integer(6)}, "size of a tensor is no tuple"),
        ({"size": tuple_of(pickle.NEWTRUE, integer(1))}, "size .* no integer"),
        ({"of": text("0")}, "no storage, offset, size"),
        ({"more": dict_of(conj=pickle.NEWTRUE)}, "conjugated, negated"),
    ],
)
def test_tensors_that_are_not_inside_their_storage_are_refused(arguments, message, tmp_path):
    refused(network(tensor(**{"of": storage(), **arguments})), f"_rebuild_tensor_v2: .*({message})", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": text("function")}, "or its type no class"),
        ({"version": integer(7)}, "its version is 7"),
        ({"version": pickle.NEWTRUE}, "its version is True"),
        ({"module_src": integer(1)}, "no string"),
        ({"class_name": integer(1)}, "no string"),
        ({"state": list_of(COMMAND)}, "its state is a list"),
        ({"hook": COMMAND}, "no dict of type, version"),
    ],
)
def test_persistent_objects_of_another_form_are_refused(changes, message, tmp_path):
    refused(pickled(dict_of(ema=persistent(**changes))), f"_reconstruct_persistent_obj: .*({message})", tmp_path)


def test_bytes_after_the_pickle_are_refused(tmp_path):
    content = network(tensor(storage()))
    refused(content + b"\0", f"byte {len(content)}: 1 bytes follow the pickle", tmp_path)


def small_file(protocol: int) -> bytes:
    """Every kind of value that EDM's pickles hold, in little."""
    import numpy as np
    import torch

    state = {
        "_init_args": (8,),
        "_init_kwargs": EasyDict(img_channels=1, numbers=[1, 300, 70000, 2**40, 0.5, None, True, False]),
        "_parameters": {"weight": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))},
        "_buffers": {"half": torch.ones(3, dtype=torch.float16)},
        "_modules": {"enc": torch.nn.ModuleDict()},
        "_non_persistent_buffers_set": {"a", "b"},
    }
    extra = {"scalar": np.float64(0.5), "array": np.ones((2, 2), np.int32), "long": "text" * 2000}
    return dumps({"ema": Persistent("EDMPrecond", state, "source"), **extra}, protocol)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_file_cut_anywhere_is_refused(protocol):
    content = small_file(protocol)
    read_contents(memoryview(bytearray(content)))
    with nothing_runs():
        for size in range(len(content)):
            if 0 < size - content.find(b"texttext") < 7900:
                continue  # inside of a long string every place is like the other
            with pytest.raises(CheckpointError):
                read_contents(memoryview(bytearray(content[:size])))


def test_old_files_of_torch_cut_anywhere_are_refused():
    content = storage_file()
    for size in range(1, len(content)):
        with pytest.raises(CheckpointError):
            read_contents(memoryview(bytearray(content[:size])))
