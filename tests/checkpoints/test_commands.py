"""`edm-fast convert` and `edm-fast info FILE`."""

from __future__ import annotations

import pytest
import torch
from checkpoints.edm_files import Persistent, contents, dumps, edm_pickle, persistent, training_state
from checkpoints.test_edm_pickle import equal, made
from click.testing import CliRunner
from safetensors import safe_open

import edm_fast
from edm_fast.checkpoints import save_network
from edm_fast.cli import main, network


def run(*arguments, expect=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == expect, result.output
    return result.output


@pytest.fixture
def pickled(tmp_path):
    path = tmp_path / "in.pkl"
    path.write_bytes(edm_pickle(made()))
    return path


def test_convert_keeps_the_network(pickled, tmp_path):
    output = run("convert", pickled, tmp_path / "out.safetensors")
    assert "EDMPrecond" in output
    again = edm_fast.load(tmp_path / "out.safetensors")
    assert equal(again, made())
    assert again.init_kwargs == made().init_kwargs
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert file.metadata()["card"] == "Converted from in.pkl."


def test_convert_takes_entries_and_precisions(tmp_path):
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    net = made("VPPrecond")
    source.write_bytes(training_state(net))
    run("convert", source, target, "--entry", "net", "--dtype", "bfloat16")
    wanted = net.state_dict()["model.map_layer0.weight"].bfloat16().float()
    assert torch.equal(edm_fast.load(target).state_dict()["model.map_layer0.weight"], wanted)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["in.pkl", "out.pkl"], "must end in .safetensors", 2),
        (["absent.pkl", "out.safetensors"], "absent.pkl", 2),
        (["in.pkl", "out.safetensors", "--entry", "other"], "'other'", 1),
        (["in.pkl", "none/out.safetensors"], "none", 1),
        (["bad.pkl", "out.safetensors"], "bad.pkl.*truncated|truncated", 1),
    ],
)
def test_convert_says_what_is_wrong_and_leaves_nothing(arguments, message, code, pickled, tmp_path):
    (tmp_path / "bad.pkl").write_bytes(pickled.read_bytes()[:-100])
    before = sorted(tmp_path.iterdir())
    paths = [tmp_path / name for name in arguments[:2]]
    output = run("convert", *paths, *arguments[2:], expect=code)
    assert any(part in output.replace("\n", "") for part in message.split("|"))
    assert sorted(tmp_path.iterdir()) == before


def rows(path):
    lines = run("info", path).splitlines()
    return {label.strip(): text.strip() for label, _, text in (line.partition("  ") for line in lines)}


def test_info_describes_an_edm_pickle(pickled):
    found = rows(pickled)
    net = made()
    count = sum(parameter.numel() for parameter in net.parameters())
    assert "pickle of protocol 4" in found["file"]
    assert found["ema"] == "EDMPrecond around 'SongUNet'"
    assert found["ema parameters"] == f"{count:,} in {len(net.state_dict())} keys, float32"
    assert found["ema channel_mult"] == "[1, 2]"
    assert found["ema sigma_max"] == "inf"
    assert found["ema loadable"] == "yes"
    assert "EDMLoss" in found["loss_fn"]
    assert "'P_mean': -1.2" in found["loss_fn"]
    assert found["augment_pipe"] == "None"
    assert "'max_size': 50000" in found["dataset_kwargs"]


def test_info_tells_a_changed_source_by_its_hash(pickled, tmp_path):
    other = tmp_path / "other.pkl"
    other.write_bytes(dumps({"ema": persistent(made(), "short source")}))
    assert rows(pickled)["ema source"].startswith("sha256 ")
    assert rows(pickled)["ema source"] != rows(other)["ema source"]
    # printf 'short source' | sha256sum
    assert "8e17a0623a6b6ca4c758fe46218e243336d714118bf09da2cf00dad76bfccedf" in rows(other)["ema source"]


def test_info_says_why_a_network_does_not_load(tmp_path):
    path = tmp_path / "in.pkl"
    stand_in = persistent(made())
    stand_in.state["_init_kwargs"]["label_dim"] = 4
    path.write_bytes(dumps(contents(made(), net=stand_in, other=Persistent("EDMPrecond", {"_modules": {}}))))
    found = rows(path)
    assert found["ema loadable"] == "yes"
    assert found["net loadable"].startswith("no: model.map_label.weight has shape")
    assert "no _init_args" in found["other"]


def test_info_describes_our_own_files_and_state_dicts(tmp_path):
    net = made()
    save_network(net, tmp_path / "net.safetensors", card="A card.")
    found = rows(tmp_path / "net.safetensors")
    assert found["network loadable"] == "yes"
    assert found["card"] == "'A card.'"
    torch.save(net.state_dict(), tmp_path / "state.pt")
    assert f"state dict of {len(net.state_dict())} tensors" in run("info", tmp_path / "state.pt")


def test_info_does_not_let_a_file_write_to_the_terminal(tmp_path):
    path = tmp_path / "in.pkl"
    path.write_bytes(dumps({"\x1b[2J": "\x1b]0;title\x07", "ema\n": Persistent("\x1b[31m", {"a\x1b": "b\x1b"})}))
    assert "\x1b" not in run("info", path)


def test_info_of_a_damaged_file_fails_with_its_name(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04K")
    assert "bad.pkl: byte 2: truncated" in run("info", tmp_path / "bad.pkl", expect=1).replace("\n", "")


def test_a_url_is_downloaded_because_it_is_given(pickled, monkeypatch):
    asked = []
    monkeypatch.setattr(network, "download", lambda url: asked.append(url) or str(pickled))
    assert "EDMPrecond" in run("info", "https://example.test/in.pkl")
    assert asked == ["https://example.test/in.pkl"]
    monkeypatch.undo()
    assert "must begin with https" in run("info", "http://example.test/in.pkl", expect=2).replace("\n", "")
