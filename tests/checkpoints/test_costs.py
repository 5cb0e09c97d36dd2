"""What opening a file may cost: little for a hostile one, not much more than its size for a good one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints.edm_files import edm_pickle, training_state
from checkpoints.opcodes import dict_of, integer, list_of, named, network, persistent, pickled, storage, tensor, text
from checkpoints.test_edm_pickle import made

from edm_fast.networks import EDMPrecond

# A million steps of a loop on a machine of 2020.
NOMINAL_LOOP = 0.06
LONG = 1_200_000


def measured(*paths):
    command = [sys.executable, str(Path(__file__).with_name("costs.py")), *map(str, paths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(result.stdout)
    return max(1.0, found.pop("loop") / NOMINAL_LOOP), list(found.values())


def bombs():
    encode = named("_codecs.encode") + b"q\x00" + text("x" * 10**6) + text("latin1") + pickle.TUPLE2 + b"q\x01R"
    yield "lists", pickled(pickle.EMPTY_LIST * LONG)
    yield "dicts, remembered", pickled((pickle.EMPTY_DICT + pickle.MEMOIZE) * LONG)
    yield "sets", pickled(pickle.EMPTY_SET * LONG)
    yield "views", pickled((pickle.SHORT_BINBYTES + b"\0") * LONG)
    yield "marks", pickled(pickle.MARK * LONG)
    yield "tuples in tuples", pickled(pickle.EMPTY_TUPLE + pickle.TUPLE1 * LONG)
    yield "doubling", pickled(pickle.EMPTY_TUPLE + b"q\x00" + b"h\x00h\x00\x86q\x00" * 90)
    yield "doubling lists", pickled(list_of(b"]q\x00", b"](h\x00h\x00eq\x00" * 90))
    yield "names", pickled((named("collections.OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE) * (LONG // 3))
    yield "wide text", pickled(*[text("\U0001f600" + "x" * 4000)] * 3_000)
    yield "bytes from text", pickled(encode, b"h\x00h\x01R" * 300_000)
    yield "storages", pickled(*[storage()] * 20_000)
    yield "tensors", pickled(storage(), b"q\x00", *[tensor(b"h\x00")] * 25_000)
    yield "modules", module_bomb()
    yield "arguments", argument_bomb()
    yield "deep network", network(tensor(storage()), _init_kwargs=arguments(num_blocks=64, width=16))


def arguments(num_blocks=1, width=1):
    multipliers = pickle.EMPTY_LIST + pickle.MARK + b"K\x01" * width + pickle.APPENDS
    options = {"img_resolution": integer(8), "img_channels": integer(1), "channel_mult": multipliers}
    return dict_of(**options, num_blocks=integer(num_blocks))


def module_bomb():
    """Forty modules, each twice in the next."""
    new = named("torch.nn.modules.container.ModuleDict") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    inner = new + pickle.MEMOIZE
    for index in range(40):
        inner += (
            new + dict_of(_modules=dict_of(a=b"h" + bytes([index]), b=b"h" + bytes([index]))) + b"b" + pickle.MEMOIZE
        )
    modules = dict_of(model=b"h" + bytes([40]))
    parts = pickle.EMPTY_LIST + pickle.MARK + inner + pickle.APPENDS
    ema = persistent(state=dict_of(_init_kwargs=arguments(), _modules=modules))
    return pickled(dict_of(a=parts, ema=ema))


def argument_bomb():
    """A list of a thousand references to a list of a thousand references, and so on."""
    inner = pickle.EMPTY_LIST + pickle.MEMOIZE
    for index in range(6):
        inner += pickle.EMPTY_LIST + pickle.MARK + (b"h" + bytes([index])) * 1000 + pickle.APPENDS + pickle.MEMOIZE
    kept = pickle.EMPTY_LIST + pickle.MARK + inner + pickle.APPENDS
    return pickled(dict_of(a=kept, ema=persistent(state=dict_of(_init_kwargs=dict_of(a=b"h\x06"), _modules=dict_of()))))


def test_hostile_files_cost_little(tmp_path):
    files = dict(bombs())
    paths = [tmp_path / f"{index}.pkl" for index in range(len(files))]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    slowness, results = measured(*paths)
    # Seconds here are a bound on what an attacker may cost, in processor time and far above what a refusal takes.
    for name, path, result in zip(files, paths, results, strict=True):
        assert result["error"] is not None, name
        assert result["bytes"] - path.stat().st_size < 256 * 2**20, (name, result)
        assert result["seconds"] < 5 * slowness, (name, result, slowness)


def test_a_good_file_costs_little_more_than_its_size(tmp_path):
    """A second copy of the weights, or the mapped file beside them, would be twice the size."""
    net = made(model_channels=96, channel_mult=[2, 2])
    files = {
        "protocol 2": edm_pickle(net, 2),
        "protocol 4": edm_pickle(net, 4),
        "training state": training_state(net),
    }
    paths = [tmp_path / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    slowness, results = measured(*paths)
    for name, path, result in zip(files, paths, results, strict=True):
        print(f"{name}: {path.stat().st_size:,} bytes, {result}, {slowness:.1f} times slower than nominal")  # noqa: T201
        assert result["error"] is None
        assert result["bytes"] < 1.3 * path.stat().st_size, (name, result)


@pytest.mark.skipif("EDM_FAST_LARGE" not in os.environ, reason="writes 1.2 GB; set EDM_FAST_LARGE to run it")
def test_300_million_parameters_open_in_five_seconds(tmp_path):
    """ADM as for ImageNet-64, in processor time."""
    net = EDMPrecond(64, 3, 1000)
    path = tmp_path / "large.pkl"
    path.write_bytes(edm_pickle(net))
    size = path.stat().st_size
    assert sum(parameter.numel() for parameter in net.parameters()) == 295_899_267
    del net
    slowness, [result] = measured(path)
    print(f"{size:,} bytes, {result}, {slowness:.1f} times slower than nominal")  # noqa: T201
    assert result["error"] is None
    assert result["bytes"] < 1.3 * size
    assert result["seconds"] < 5 * slowness
