"""Snapshots of power-function averages as files, and the command that combines them."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from tiny_networks import tiny

import edm_fast
from edm_fast.checkpoints import save_network
from edm_fast.cli import main
from edm_fast.errors import CheckpointError
from edm_fast.training.ema_reconstruction import combination, reconstruct
from edm_fast.training.ema_snapshots import read_snapshot, save_snapshots
from edm_fast.training.power_ema import PowerEMA

SMALL = {"model_channels": 8, "channel_mult": [1], "attn_resolutions": []}


def network(seed: int = 7, **changes):
    return tiny(seed=seed, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, paths of four snapshots, the averages at the end, all weights of them in float32)."""
    folder = tmp_path_factory.mktemp("run")
    ema, paths = PowerEMA(network()), []
    for step in range(4):
        ema.update(network(seed=step), 10 * step, 10)
        if step % 2:
            paths += save_snapshots(ema, folder, 10 * (step + 1), dtype=torch.float32)
    return folder, paths, ema


def command(*arguments, expect=0):
    result = CliRunner().invoke(main, ["reconstruct-ema", *map(str, arguments)])
    assert result.exit_code == expect, result.output
    return result.output.replace("\n", " ")


def test_snapshots_are_named_by_images_and_width(run):
    assert [path.name for path in run[1]] == [
        "power-ema-0000000020-0.05.safetensors",
        "power-ema-0000000020-0.1.safetensors",
        "power-ema-0000000040-0.05.safetensors",
        "power-ema-0000000040-0.1.safetensors",
    ]


def test_a_snapshot_is_a_checkpoint_that_says_what_it_is(run):
    _, paths, ema = run
    snapshot = read_snapshot(paths[3])
    assert (snapshot.sigma_rel, snapshot.images_seen, snapshot.name) == (0.10, 40, str(paths[3]))
    assert snapshot.architecture == read_snapshot(paths[0]).architecture
    for net in (snapshot.load(), edm_fast.load(paths[3])):
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, ema.nets[1].state_dict()[name])


def test_snapshots_are_float16_unless_asked_and_keep_constants(run, tmp_path):
    net = network(embedding_type="fourier")
    [path] = save_snapshots(PowerEMA(net, [0.05]), tmp_path, 10)
    loaded = read_snapshot(path).load().state_dict()
    parameters = dict(net.named_parameters())
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in parameters} == {torch.float16}
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().float() if name in parameters else tensor)


def test_files_combine_by_their_weights(run):
    snapshots = [read_snapshot(path) for path in run[1]]
    weights = combination([0.05, 0.10, 0.05, 0.10], [20, 20, 40, 40], 0.07, 40)
    nets = [snapshot.load().state_dict() for snapshot in snapshots]
    state = reconstruct(snapshots, 0.07)
    for name, parameter in run[2].nets[0].named_parameters():
        wanted = sum(weight * net[name].double() for weight, net in zip(weights, nets, strict=True)).float()
        assert torch.equal(state[name], wanted)
        assert state[name].shape == parameter.shape


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "a network, but no snapshot"),
        ("{", "metadata power_ema is no width"),
        ("[]", "metadata power_ema is no width"),
        ('{"sigma_rel": 0.05}', "metadata power_ema is no width.*images_seen"),
        ('{"sigma_rel": 0.5, "images_seen": 10}', "sigma_rel must be"),
        ('{"sigma_rel": "0.05", "images_seen": 10}', "'0.05'"),
        ('{"sigma_rel": 0.05, "images_seen": 0}', "images_seen 0"),
        (json.dumps({"sigma_rel": 0.05, "images_seen": 10**30}), "images_seen 1000"),
        ('{"sigma_rel": 0.05, "images_seen": 1.5}', "images_seen 1.5"),
    ],
)
def test_files_that_are_no_snapshots_are_named(record, message, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(network(), path, metadata=None if record is None else {"power_ema": record})
    with pytest.raises(CheckpointError, match=rf"{path}: .*{message}"):
        read_snapshot(path)


def test_the_command_writes_a_network_of_the_width(run, tmp_path):
    out = tmp_path / "net.safetensors"
    assert f"{out}: sigma_rel 0.07 after 40 images" in command(*run[1], "--sigma_rel", 0.07, "--out", out)
    wanted = reconstruct([read_snapshot(path) for path in run[1]], 0.07)
    net = edm_fast.load(out)
    assert net.init_kwargs == run[2].nets[0].init_kwargs
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, wanted[name])
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["card"] == "Power-function average of relative width 0.07 after 40 images."
    command(*run[1], "--sigma_rel", 0.1, "--images", 20, "--out", out, "--dtype", "float16")
    early = edm_fast.load(run[1][1]).state_dict()
    for name, tensor in edm_fast.load(out).state_dict().items():
        torch.testing.assert_close(tensor, early[name], rtol=2**-10, atol=1e-6)


def test_the_command_says_what_is_wrong_and_writes_nothing(run, tmp_path):
    folder, paths, _ = run
    out = tmp_path / "net.safetensors"
    good = [*paths, "--out", out, "--sigma_rel"]
    assert "sigma_rel must be at least 0.001" in command(*good, 0.4, expect=2)
    assert "t must be at most 40" in command(*good, 0.07, "--images", 50, expect=1)
    assert "Missing argument" in command("--out", out, "--sigma_rel", 0.07, expect=2)
    assert "absent" in command(folder / "absent", *good, 0.07, expect=2)
    [other] = save_snapshots(PowerEMA(network(model_channels=16), [0.07]), tmp_path, 30)
    said = command(other, *good, 0.07, expect=1)
    assert f"snapshots must be of one network, but {paths[0]} and {other} are not" in said
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(paths[0].read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert f"{damaged}: damaged" in command(damaged, *paths[1:], *good[4:], 0.07, expect=1)
    assert "must end in .safetensors" in command(*paths, "--sigma_rel", 0.07, "--out", tmp_path / "net.pkl", expect=2)
    assert not out.exists()
    before = paths[0].read_bytes()
    assert "is one of the snapshots" in command(*paths, "--sigma_rel", 0.07, "--out", paths[0], expect=2)
    assert paths[0].read_bytes() == before
    nowhere = tmp_path / "no" / "net.safetensors"
    assert f"cannot read or write {nowhere.parent}" in command(*paths, "--sigma_rel", 0.07, "--out", nowhere, expect=1)
