"""EDM's pickles: what their classes wrote comes back as our network, and what does not fit is refused."""

from __future__ import annotations

import io
import sys
from collections import OrderedDict

import pytest
import torch
from checkpoints.audit import nothing_runs
from checkpoints.edm_files import SOURCE, Persistent, contents, dumps, edm_pickle, persistent, torch_file
from tiny_networks import with_weights

import edm_fast
from edm_fast import networks
from edm_fast.errors import CheckpointError

SONG = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NCSN = {**SONG, "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "augment_dim": 9}
ADM = {
    "model_type": "DhariwalUNet",
    "model_channels": 64,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [8],
}


def made(precond="EDMPrecond", model=SONG, **changes):
    torch.manual_seed(1)
    return with_weights(
        getattr(networks, precond)(**{"img_resolution": 8, "img_channels": 2, "label_dim": 3, **model, **changes})
    )


def equal(first, second) -> bool:
    states = first.state_dict(), second.state_dict()
    return list(states[0]) == list(states[1]) and all(map(torch.equal, states[0].values(), states[1].values()))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network-snapshot.pkl"


@pytest.mark.parametrize("precond", ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
@pytest.mark.parametrize("model", [SONG, NCSN, ADM], ids=["ddpmpp", "ncsnpp", "adm"])
def test_every_class_around_every_network_opens(precond, model, path):
    net = made(precond, model)
    path.write_bytes(edm_pickle(net))
    again = edm_fast.load(path)
    assert type(again) is type(net)
    assert again.init_kwargs == net.init_kwargs
    assert equal(again, net)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    x, labels = torch.randn(2, 2, 8, 8), torch.eye(3)[:2]
    assert torch.equal(again(x, 0.7, labels), net(x, 0.7, labels))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_every_protocol_by_old_and_new_writers_opens_and_runs_nothing(protocol, old, path):
    net = made()
    content = edm_pickle(net, protocol, old)
    assert (b"numpy._core" in content) != old
    assert content[1] == protocol
    assert all(word in content for word in (b"os.system", b"_load_from_bytes", b"EasyDict", b"OrderedDict"))
    path.write_bytes(content)
    edm_fast.load(path)  # what torch itself imports late, it imports here
    before = set(sys.modules)
    with nothing_runs():
        again = edm_fast.load(path)
    assert equal(again, net)
    assert set(sys.modules) == before
    assert "torch_utils" not in sys.modules
    assert "dnnlib" not in sys.modules


def test_the_average_is_taken_and_other_entries_on_request(path):
    ema, net = made(), made(img_channels=1)
    path.write_bytes(dumps(contents(ema, net=persistent(net))))
    assert equal(edm_fast.load(path), ema)
    assert equal(edm_fast.load(path, entry="net"), net)
    with pytest.raises(ValueError, match="entry must be one that the file holds .*'ema', 'loss_fn'.*'other'"):
        edm_fast.load(path, entry="other")
    for entry, message in (("augment_pipe", "a NoneType, neither"), ("loss_fn", "EDMLoss")):
        with pytest.raises(CheckpointError, match=f"snapshot.pkl: {entry}: .*{message}"):
            edm_fast.load(path, entry=entry)
    with pytest.raises(ValueError, match="class_name and init_kwargs are for state dicts"):
        edm_fast.load(path, class_name="EDMPrecond", init_kwargs={})


def test_without_an_average_the_only_network_is_taken(path):
    net = made()
    path.write_bytes(dumps(persistent(net)))
    assert equal(edm_fast.load(path), net)
    path.write_bytes(dumps({"G": persistent(net), "step": 3}))
    assert equal(edm_fast.load(path), net)
    path.write_bytes(dumps({"G": persistent(net), "H": persistent(net)}))
    with pytest.raises(CheckpointError, match="several networks in it.*'G', 'H'"):
        edm_fast.load(path)
    path.write_bytes(dumps({"step": 3}))
    with pytest.raises(CheckpointError, match="no network in it; it holds 'step'"):
        edm_fast.load(path)


def test_positional_arguments_are_understood(path):
    net = made("VEPrecond", sigma_max=50)
    path.write_bytes(dumps({"ema": persistent(net, args=4)}))
    assert edm_fast.load(path).init_kwargs == net.init_kwargs


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtype_is_what_the_network_computes_in(dtype, path):
    path.write_bytes(edm_pickle(made(use_fp16=True)))
    net = edm_fast.load(path, dtype=dtype)
    assert net.compute_dtype == dtype
    assert net.use_fp16
    assert all(tensor.dtype == torch.float32 for tensor in net.state_dict().values())
    with pytest.raises(TypeError, match="dtype must be.*int8"):
        edm_fast.load(path, dtype=torch.int8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_weights_become_float32(dtype, path):
    net = made().to(dtype)
    path.write_bytes(edm_pickle(net))
    assert equal(edm_fast.load(path), net.float())


def test_weights_of_any_layout_come_back_contiguous(path):
    net = made()
    wanted = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            elif parameter.ndim == 1:
                parameter.data = torch.cat([torch.zeros(3), parameter.data, torch.zeros(2)])[3:-2]
    path.write_bytes(edm_pickle(net))
    for name, tensor in edm_fast.load(path).state_dict().items():
        assert tensor.is_contiguous()
        assert torch.equal(tensor, wanted[name])


def test_loaded_weights_do_not_live_in_the_file(path):
    net = made()
    path.write_bytes(edm_pickle(net))
    again = edm_fast.load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert equal(again, net)


def test_open_files_are_read_from_their_position(path):
    net = made()
    content = edm_pickle(net)
    assert equal(edm_fast.load(io.BytesIO(content)), net)
    path.write_bytes(b"12345" + content)
    with path.open("rb") as file:
        file.seek(5)
        assert equal(edm_fast.load(file), net)
    with path.open() as text, pytest.raises(TypeError, match="open for reading bytes"):
        edm_fast.load(text)
    with pytest.raises(TypeError, match="path must be a path or a file"):
        edm_fast.load(3)
    with pytest.raises(FileNotFoundError):
        edm_fast.load(path.parent / "absent.pkl")
    with pytest.raises(CheckpointError, match="truncated: it is empty"):
        edm_fast.load(io.BytesIO())


def test_buffers_that_are_not_saved_are_left_out(path):
    net = made()
    net.model.register_buffer("scratch", torch.zeros(2), persistent=False)
    path.write_bytes(edm_pickle(net))
    assert equal(edm_fast.load(path), net)
    net.model.register_buffer("kept", torch.zeros(2))
    path.write_bytes(edm_pickle(net))
    with pytest.raises(CheckpointError, match=r"ema: keys do not match.*1 unexpected \['model.kept'\]"):
        edm_fast.load(path)


def changed(change):
    stand_in = persistent(made())
    change(stand_in.state)
    return dumps({"ema": stand_in})


def model(state):
    return state["_modules"]["model"].state


def layer(state):
    return model(state)["_modules"]["map_layer0"].state


def options(**values):
    return lambda state: state["_init_kwargs"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("_init_kwargs"), "no _init_args and _init_kwargs"),
        (lambda state: state.update(_init_args=(8,)), "'img_resolution', which _init_args gives already"),
        (lambda state: state.update(_init_args=(8,) * 20), "_init_args holds 20 arguments; EDMPrecond takes 8"),
        (options(model_channels=16), "shape|keys do not match"),
        (options(num_blocks=60), "120 blocks or more are asked for, but there are"),
        (options(colour="red"), "unknown argument 'colour'"),
        (options(channel_mult=[1, torch.nn.ModuleDict()]), "Instance stands where numbers"),
        (options(dropout=float("nan")), "dropout must be a number"),
        (lambda state: state.update(sigma_data=0.6), "sigma_data is 0.6, but the network of these arguments has 0.5"),
        (lambda state: state["_modules"].update(model=None), "but there are 0 tensors"),
        (lambda state: state["_modules"].update(model=OrderedDict()), "model is a NamedDict, not a module"),
        (lambda state: state.update(_modules=[1]), "_modules is a list, no dict"),
        (lambda state: state["_buffers"].update({"a.b": torch.ones(1)}), "has the name 'a.b'"),
        (lambda state: state["_buffers"].update(extra=3), "extra is a int, not a tensor"),
        (lambda state: state["_buffers"].update(extra=torch.ones(1)), r"1 unexpected \['extra'\]"),
        (lambda state: model(state)["_modules"].pop("map_layer1"), r"2 missing \['model.map_layer1.bias'"),
        (lambda state: model(state).pop("_modules"), "but there are 0 tensors"),
        (
            lambda state: layer(state)["_parameters"].update(bias=torch.ones(31)),
            r"map_layer0.bias has shape \[31\], but it must be \[32\]",
        ),
        (
            lambda state: layer(state)["_parameters"].update(bias=torch.ones(32).double()),
            "map_layer0.bias is torch.float64, not float16",
        ),
        (
            lambda state: model(state)["_modules"]["enc"]._modules["8x8_block0"].state.update(skip_scale=1.0),
            "enc.8x8_block0.skip_scale is 1.0, but the network of these arguments has 0.707",
        ),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit_are_refused(change, message, path):
    path.write_bytes(changed(change))
    with pytest.raises(CheckpointError, match=rf"snapshot.pkl: ema: .*({message})"):
        edm_fast.load(path)


def test_weights_that_lie_over_one_another_are_refused(path):
    net = made(model_channels=16)
    shared = max((parameter for parameter in net.parameters()), key=torch.Tensor.numel).data
    for parameter in net.parameters():
        parameter.data = shared.reshape(-1)[: parameter.numel()].reshape(parameter.shape)
    path.write_bytes(torch_file({"net": persistent(net)}))
    with pytest.raises(CheckpointError, match="they lie over one another"):
        edm_fast.load(path)


def test_another_class_is_refused(path):
    path.write_bytes(dumps({"ema": Persistent("Precond2", {"_modules": {}})}))
    with pytest.raises(CheckpointError, match="'Precond2' is not one of VPPrecond"):
        edm_fast.load(path)


def test_a_changed_source_text_changes_nothing_but_its_hash(path):
    net = made()
    first, second = (dumps({"ema": persistent(net, source)}) for source in (SOURCE, SOURCE + "import this\n"))
    assert first != second
    path.write_bytes(second)
    assert equal(edm_fast.load(path), net)
