"""The fused networks are the reference: keys, initial weights, outputs and gradients, for any architecture."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import types
import warnings

import pytest
import torch
from tolerance import assert_as_exact_as_eager, assert_same_bits

from edm_fast import networks
from edm_fast.reference import preconditioning as reference
from edm_fast.reference.dropout import dropout as reference_dropout

SONG = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 4,
    "model_type": "SongUNet",
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [2, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
ADM = {**SONG, "model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1, 2]}
CONFIGURATIONS = {
    "ddpmpp": SONG,
    "ncsnpp": {
        **SONG,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "skip": {
        **SONG,
        "encoder_type": "skip",
        "decoder_type": "skip",
        "channel_mult": [1, 2, 2],
        "resample_filter": [1, 3, 3, 1],
    },
    "residual and skip": {**SONG, "encoder_type": "residual", "decoder_type": "skip", "img_channels": 5},
    "skip and standard": {**SONG, "encoder_type": "skip", "img_channels": 1, "label_dim": 0, "augment_dim": 0},
    "adm": ADM,
    "adm without attention": {**ADM, "model_channels": 24, "channel_mult": [1, 2, 2]},
    "three levels of 24 channels": {
        **SONG,
        "model_channels": 24,
        "channel_mult": [1, 1, 2],
        "attn_resolutions": [16, 4],
    },
    "20x12": {**SONG, "img_resolution": 20, "channel_mult": [1, 2, 2], "attn_resolutions": [5]},
    "adm 20x12": {**ADM, "img_resolution": 20, "channel_mult": [1, 2, 2], "attn_resolutions": [10]},
    # Wide enough for the convolutions by Winograd's forms: F(4×4) from 128 channels on, F(2×4) below.
    "wide": {**SONG, "model_channels": 64, "channel_mult": [2]},
    "half as wide": {**ADM, "model_channels": 64, "channel_mult": [1, 1]},
    "48": {**SONG, "img_resolution": 48, "model_channels": 8, "attn_resolutions": [12], "channel_mult": [1, 2, 2]},
    "128": {
        **SONG,
        "img_resolution": 128,
        "model_channels": 8,
        "attn_resolutions": [],
        "channel_mult": [1, 1, 1, 1, 2],
    },
}
CLASSES = ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"]


def pair(name="ddpmpp", precond="EDMPrecond", **changes):
    """A fused network and the reference with the same weights, all of a size that matters."""
    arguments = {"dropout": 0.0, **CONFIGURATIONS[name], **changes}
    fused = getattr(networks, precond)(**arguments)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in fused.parameters():
            size = 1 / math.sqrt(max(parameter[0].numel(), 4))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    plain = getattr(reference, precond)(**arguments)
    plain.load_state_dict(fused.state_dict())
    # Or eager would leave channels-last behind its own resampling, and be measured by other sums.
    return fused.eval(), plain.eval().to(memory_format=torch.channels_last)


def inputs(name, samples=2):
    """Images and labels for a network F, channels-last in float32."""
    arguments = CONFIGURATIONS[name]
    height, width = (20, 12) if "20x12" in name else [arguments["img_resolution"]] * 2
    generator = torch.Generator().manual_seed(3)
    x = torch.randn([samples, arguments["img_channels"], height, width], generator=generator)
    labels, augment = (
        torch.randn([samples, arguments[key]], generator=generator) for key in ("label_dim", "augment_dim")
    )
    noise = torch.linspace(-1, 1, samples)
    return x.contiguous(memory_format=torch.channels_last), noise, labels, augment


def run(model, arguments, dtype):
    """F with the embedding in float32, or everything in float64."""
    x, *rest = arguments
    if dtype == torch.float64:
        rest = [tensor.double() for tensor in rest]
    noise, labels, augment = rest
    return model(x.to(dtype), noise, labels if labels.shape[1] else None, augment if augment.shape[1] else None)


def exactly(plain):
    return copy.deepcopy(plain).double()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_keys_and_initial_weights_are_the_references(name):
    states = []
    for module in (networks, reference):
        torch.manual_seed(5)
        states.append(module.EDMPrecond(**CONFIGURATIONS[name]).state_dict())
    assert list(states[0]) == list(states[1])
    for key in states[0]:
        assert_same_bits(states[0][key], states[1][key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_outputs(name, dtype):
    fused, plain = pair(name)
    arguments = inputs(name)
    with torch.inference_mode():
        results = run(fused.model, arguments, dtype), run(plain.model, arguments, dtype)
        rounded = [arguments[0].to(dtype), *arguments[1:]]
        exact = run(exactly(plain.model), rounded, torch.float64)
    assert_as_exact_as_eager(*results, exact, what=name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradients(name):
    fused, plain = pair(name)
    exact, arguments = exactly(plain), inputs(name)
    kinds = (torch.float32, torch.float32, torch.float64)
    images = []
    for net, dtype in zip((fused, plain, exact), kinds, strict=True):
        x = arguments[0].detach().to(dtype).requires_grad_()
        run(net.model, [x, *arguments[1:]], dtype).sin().sum().backward()
        images.append(x.grad)
    assert_as_exact_as_eager(*images, gradient=True, what=f"{name} images")
    eager, truth = dict(plain.named_parameters()), dict(exact.named_parameters())
    for key, parameter in fused.named_parameters():
        # With one channel per group what is added before a norm has no gradient but roundings; as in qkv's k.
        if float(truth[key].grad.abs().max()) > 1e-9:
            assert_as_exact_as_eager(
                parameter.grad, eager[key].grad, truth[key].grad, gradient=True, what=f"{name} {key}"
            )


@pytest.mark.parametrize("precond", CLASSES)
def test_denoisers(precond):
    fused, plain = pair("adm", precond)
    x, _, labels, augment = inputs("adm")
    sigma = torch.tensor([0.7, 3.0])
    arguments = {"class_labels": labels, "augment_labels": augment}
    with torch.inference_mode():
        exact = c_skip_c_out(exactly(plain), x, sigma, arguments)
        assert_as_exact_as_eager(fused(x, sigma, **arguments), plain(x, sigma, **arguments), exact)
        assert_as_exact_as_eager(fused(x, sigma), plain(x, sigma), c_skip_c_out(exactly(plain), x, sigma, {}))


def c_skip_c_out(net, x, sigma, arguments):
    """D in float64, which the classes themselves compute in float32; c_noise as they round it."""
    c_skip, c_out, c_in, _ = net.coefficients(sigma.double().reshape(-1, 1, 1, 1))
    c_noise = net.coefficients(sigma.reshape(-1, 1, 1, 1)).c_noise.flatten().double()
    labels = arguments.get("class_labels", torch.zeros(1, net.label_dim)).double()
    augment = arguments.get("augment_labels")
    F = net.model(c_in * x.double(), c_noise, labels, None if augment is None else augment.double())
    return c_skip * x.double() + c_out * F[:, : net.img_channels]


def test_dropout_is_where_the_reference_has_it(monkeypatch):
    """In blocks and of labels: the reference gives the same with the masks that our op draws."""

    def by_our_masks(x, p, training):
        return reference_dropout(x, p, torch.randint(2**63 - 1, [])) if training else x

    patched = types.SimpleNamespace(**{**vars(torch.nn.functional), "dropout": by_our_masks})
    monkeypatch.setattr("edm_fast.reference.unet_block.functional", patched)
    name = "adm without attention"
    fused, plain = pair(name, dropout=0.3, label_dropout=0.5)
    arguments, results = inputs(name, samples=4), []
    for net, dtype in ((fused, torch.float32), (plain, torch.float32), (exactly(plain), torch.float64)):
        torch.manual_seed(11)
        results.append(run(net.train().model, arguments, dtype))
    assert_as_exact_as_eager(*results)
    torch.manual_seed(12)
    assert not torch.allclose(run(fused.model, arguments, torch.float32), results[0])
    assert torch.equal(*(run(fused.eval().model, arguments, torch.float32) for _ in range(2)))


def test_one_embedding_for_all_samples():
    fused, plain = pair("adm")
    x, noise, labels, _ = inputs("adm")
    with torch.inference_mode():
        results = [net.model(x, noise[:1], labels[:1]) for net in (fused, plain)]
        exact = exactly(plain).model(x.double(), noise[:1].double(), labels[:1].double())
    assert_as_exact_as_eager(*results, exact)


def test_no_samples():
    fused, _ = pair()
    assert fused(torch.zeros(0, 3, 16, 16), torch.zeros(0) + 1).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_compute_dtype_can_be_asked_for(dtype):
    fused, plain = pair()
    x, _, labels, _ = inputs("ddpmpp")
    fused.compute_dtype = dtype
    with torch.inference_mode():
        denoised = fused(x, 1.0, labels)
        assert denoised.dtype == torch.float32
        _, _, c_in, c_noise = plain.coefficients(torch.ones(1, 1, 1, 1))
        model = copy.deepcopy(plain.model)
        results = [net((c_in * x).to(dtype), c_noise.flatten(), labels) for net in (fused.model, model)]
        assert_same_bits(fused.network_output(c_in * x, c_noise, labels), results[0].float())
        assert results[0].dtype == dtype
        fp32 = fused(x, 1.0, labels, force_fp32=True)
        fused.compute_dtype = None
        assert_same_bits(fused(x, 1.0, labels), fp32)
    with pytest.raises(ValueError, match="^compute_dtype:"):
        fused.compute_dtype = torch.float64
    assert copy.deepcopy(fused).compute_dtype is None


def test_a_loaded_filter_is_the_one_that_is_used():
    fused, plain = pair("ncsnpp")
    flat = reference.EDMPrecond(**{**CONFIGURATIONS["ncsnpp"], "dropout": 0.0, "resample_filter": [1, 1, 1, 1]}).eval()
    state = {**plain.state_dict()}
    state.update({key: tensor for key, tensor in flat.state_dict().items() if key.endswith("resample_filter")})
    flat.load_state_dict(state)
    fused.load_state_dict(state)
    arguments = inputs("ncsnpp")
    with torch.inference_mode():
        results = [run(net.model, arguments, torch.float32) for net in (fused, flat)]
        assert_as_exact_as_eager(*results, run(exactly(flat).model, arguments, torch.float64))


def test_weights_can_come_to_a_network_without_memory():
    """Construction on the meta device, and a state dict that is assigned."""
    fused, _ = pair("ncsnpp")
    with torch.device("meta"):
        empty = networks.EDMPrecond(**{**CONFIGURATIONS["ncsnpp"], "dropout": 0.0}).eval()
    empty.load_state_dict(fused.state_dict(), assign=True)
    arguments = inputs("ncsnpp")
    assert_same_bits(run(empty.model, arguments, torch.float32), run(fused.model, arguments, torch.float32))


def test_gradients_in_float64():
    """Through the reference ops; a little network, since gradcheck is slow."""
    tiny = {
        **SONG,
        "img_resolution": 4,
        "model_channels": 4,
        "channel_mult": [1, 1],
        "attn_resolutions": [2],
        "dropout": 0.0,
    }
    fused = networks.EDMPrecond(**tiny).double()
    x = torch.randn([1, 3, 4, 4], dtype=torch.float64, requires_grad=True)
    noise, labels = torch.ones(1, dtype=torch.float64), torch.ones([1, 4], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.autograd.gradcheck(lambda x: fused.model(x, noise, labels), x)


def test_autocast():
    """Convolutions in bfloat16, and the ops follow; close to the network in bfloat16."""
    fused, plain = pair()
    x, noise, labels, augment = inputs("ddpmpp")
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            out = fused.model(x, noise, labels, augment)
            eager = plain.model(x, noise, labels, augment)
        exact = run(exactly(plain.model), (x, noise, labels, augment), torch.float64)
    assert_as_exact_as_eager(out.float(), eager.float(), exact)


@pytest.mark.parametrize(("name", "dtype"), [("ncsnpp", "float32"), ("adm", "float32"), ("ncsnpp", "bfloat16")])
def test_it_compiles_without_graph_breaks(name, dtype):
    fused, _ = pair(name)
    fused.compute_dtype = getattr(torch, dtype)
    compiled = copy.deepcopy(fused)
    x, noise, labels, augment = inputs(name)
    x = x.to(fused.compute_dtype)

    def loss(net, x):
        return net.model(x, noise, labels, augment).square().sum()

    expected = loss(fused, x)
    expected.backward()
    actual = torch.compile(lambda x: loss(compiled, x), fullgraph=True, backend="aot_eager")(x)
    actual.backward()
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(compiled.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


DISTRIBUTED = """
import sys
import torch
from edm_fast.networks import EDMPrecond

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
net = EDMPrecond(8, 3, model_type="SongUNet", model_channels=8, channel_mult=[1, 1], num_blocks=1, dropout=0)
ddp = torch.nn.parallel.DistributedDataParallel(net)
x = torch.randn([2, 3, 8, 8], generator=torch.Generator().manual_seed(1))
ddp(x[rank : rank + 1], torch.ones(1)).square().sum().backward()
grads = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
net.zero_grad()
(net(x, torch.ones(2)).square().sum() / 2).backward()
whole = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
torch.save((grads, whole), f"{out}{rank}")
torch.distributed.destroy_process_group()
"""


def test_data_parallel_gradients(tmp_path):
    """Two processes with a sample each have the mean of the gradients."""
    processes = [
        subprocess.Popen([sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path / "store"), str(tmp_path / "out")])
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    (first, whole), (second, _) = (torch.load(tmp_path / f"out{rank}") for rank in range(2))
    assert_same_bits(first, second)
    torch.testing.assert_close(first, whole)
