"""Our checkpoint: what is saved comes back, and nothing else is accepted."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edm_fast.checkpoints.arguments import build_network
from edm_fast.checkpoints.native import load_network, save_network
from edm_fast.errors import CheckpointError
from edm_fast.networks import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond

CLASSES = [EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond]
SONG = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
FOURIER = {**SONG, "embedding_type": "fourier", "encoder_type": "residual", "resample_filter": (1, 3, 3, 1)}
ADM = {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": (1, 1), "num_blocks": 1}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def saved(path, **options) -> EDMPrecond:
    torch.manual_seed(0)
    net = EDMPrecond(8, 1, 3, **SONG)
    save_network(net, path, **options)
    return net


def parts(path):
    with safe_open(path, framework="pt") as file:
        return load_file(path), dict(file.metadata())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("model", [SONG, FOURIER, ADM], ids=["song", "fourier", "adm"])
def test_network_comes_back_whole(cls, model, path):
    net = cls(8, 2, 3, **model)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1)
    save_network(net, path)
    again = load_network(path)
    assert type(again) is cls
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.init_kwargs == net.init_kwargs
    assert (again.sigma_min, again.sigma_max) == (net.sigma_min, net.sigma_max)
    x, labels = torch.randn(2, 2, 8, 8), torch.eye(3)[:2]
    assert torch.equal(again(x, 0.7, labels), net.eval()(x, 0.7, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_rounds_weights_and_keeps_constants(dtype, path):
    net = iDDPMPrecond(8, 1, 3, **FOURIER)
    save_network(net, path, dtype=dtype)
    again = load_network(path)
    assert path.stat().st_size < 2.6 * sum(tensor.numel() for tensor in net.state_dict().values())
    parameters = dict(net.named_parameters())
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        wanted = parameters[name].to(dtype).float() if name in parameters else net.state_dict()[name]
        assert torch.equal(tensor, wanted)


def test_card_is_stored(path):
    saved(path, card="für Zahlen")
    assert parts(path)[1]["card"] == "für Zahlen"


def test_entries_of_the_callers_are_stored_and_loading_passes_over_them(path):
    net = saved(path, metadata={"run": "7"})
    assert parts(path)[1]["run"] == "7"
    assert load_network(path).init_kwargs == net.init_kwargs
    with pytest.raises(ValueError, match=r"metadata must not have the format's own names.*card, class"):
        saved(path, metadata={"run": "7", "class": "x", "card": "y"})


def test_equal_networks_make_equal_files(path, tmp_path):
    saved(path)
    saved(tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_loaded_weights_do_not_live_in_the_file(path):
    net = saved(path)
    again = load_network(path)
    with path.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(bytes(1000))
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name])


def test_failed_write_leaves_the_old_file_whole(path, monkeypatch):
    saved(path)
    before = path.read_bytes()
    monkeypatch.setattr("edm_fast.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        saved(path, card="new")
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_loading_leaves_the_random_state_alone(path):
    saved(path)
    state = torch.get_rng_state()
    load_network(path)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [0, 5, 8, 9, 200, -1])
def test_truncated_files_are_refused(size, path):
    saved(path)
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(CheckpointError, match=rf"{path.name}.*truncated"):
        load_network(path)


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_flipped_bit_among_the_weights_is_noticed(place, path):
    saved(path)
    content = bytearray(path.read_bytes())
    data = 8 + int.from_bytes(content[:8], "little")
    content[{"start": data, "middle": (data + len(content)) // 2, "end": len(content) - 1}[place]] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path.name}.*damaged"):
        load_network(path)


def test_foreign_files_are_refused(path):
    path.write_bytes(b"\x80\x02}q\x00(X\x03\x00\x00\x00emaq\x01" + bytes(100))
    with pytest.raises(CheckpointError, match=rf"{path.name}: not a safetensors file"):
        load_network(path)
    path.write_bytes((2**40).to_bytes(8, "little") + b"{" + bytes(100))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_network(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=rf"{path.name}: not an edm_fast checkpoint"):
        load_network(path)
    with pytest.raises(FileNotFoundError):
        load_network(path.parent / "absent")


def rewrite(path, change_tensors=None, **metadata):
    tensors, found = parts(path)
    if change_tensors:
        change_tensors(tensors)
    save_file(tensors, path, {**found, **metadata})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "2"}, "version '2' is not 1"),
        ({"format": "pt"}, "not an edm_fast checkpoint.*'pt'"),
        ({"class": "os.system"}, "class must be one of .*'os.system'"),
        ({"init_kwargs": "{"}, "init_kwargs is missing or no JSON"),
        ({"init_kwargs": "[" * 100_000}, "init_kwargs is missing or no JSON"),
        ({"init_kwargs": "[1]"}, "init_kwargs must be an object.*list"),
        ({"init_kwargs": "{}"}, "do not build a EDMPrecond.*img_resolution"),
        ({"crc32": "00000000"}, "damaged.*checksum"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_metadata_are_refused(metadata, message, path):
    saved(path)
    rewrite(path, **metadata)
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*{message}|{path.name}: {message}"):
        load_network(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("img_resolution", 10**9),
        ("img_resolution", 8.0),
        ("img_channels", True),
        ("label_dim", -1),
        ("num_blocks", 10**9),
        ("model_channels", 10**12),
        ("channel_mult", [1] * 1000),
        ("channel_mult", "12"),
        ("channel_mult", [1.5]),
        ("attn_resolutions", [[4]]),
        ("resample_filter", []),
        ("dropout", math.nan),
        ("dropout", -0.1),
        ("sigma_data", math.inf),
        ("sigma_data", None),
        ("use_fp16", 1),
        ("model_type", ["SongUNet"]),
        ("model_type", "Sequential"),
        ("encoder_type", "other"),
        ("in_channels", 3),
        ("__class__", "x"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_arguments_are_refused(name, value, path):
    arguments = {**saved(path).init_kwargs, name: value}
    with pytest.raises(ValueError, match=name if name != "encoder_type" else "encoder_type"):
        build_network("EDMPrecond", arguments)
    arguments["sigma_max"] = "inf"
    rewrite(path, init_kwargs=json.dumps(arguments))
    with pytest.raises(CheckpointError, match=rf"{path.name}.*{name}"):
        load_network(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.map_label.bias"), r"1 missing \['model.map_label.bias'\]"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 unexpected \['extra'\]"),
        (
            lambda t: t.update({"model.map_label.bias": torch.zeros(1)}),
            r"model.map_label.bias has shape \[1\], but it must be \[16\]",
        ),
        (
            lambda t: t.update({"model.map_label.bias": torch.zeros(16, dtype=torch.int64)}),
            "map_label.bias is torch.int64",
        ),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_other_tensors_are_refused(change, message, path):
    saved(path)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=rf"{path.name}.*{message}"):
        load_network(path)


def test_only_our_networks_are_saved(path):
    class Other(EDMPrecond):
        pass

    for net, name in ((torch.nn.Linear(1, 1), "Linear"), (Other(8, 1, **SONG), "Other")):
        with pytest.raises(TypeError, match=rf"net must be one of EDMPrecond.*{name}"):
            save_network(net, path)
    with pytest.raises(TypeError, match=r"dtype must be.*torch.int8"):
        saved(path, dtype=torch.int8)
    with pytest.raises(TypeError, match=r"float64"):
        save_network(EDMPrecond(8, 1, **SONG).double(), path)
    assert not path.exists()
