"""Files of torch.save: training states, state dicts, and the zip archive that they come in."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile

import pytest
import torch
from checkpoints.edm_files import torch_file, training_state
from checkpoints.test_edm_pickle import ADM, SONG, equal, made
from safetensors.torch import save_file

import edm_fast
from edm_fast.checkpoints import save_network
from edm_fast.checkpoints.contents import read_contents
from edm_fast.errors import CheckpointError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "training-state.pt"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old"])
def test_training_states_open(legacy, path):
    net = made()
    content = training_state(net, legacy)  # steps the optimiser
    path.write_bytes(content)
    assert equal(edm_fast.load(path), net)


@pytest.mark.parametrize("model", [SONG, ADM], ids=["ddpmpp", "adm"])
@pytest.mark.parametrize("kind", ["zip", "old", "nested", "safetensors"])
def test_state_dicts_open_with_given_arguments(model, kind, path):
    net = made("VPPrecond", model)
    state = net.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        value = {"step": 3, "ema": state} if kind == "nested" else state
        torch.save(value, path, _use_new_zipfile_serialization=kind != "old")
    arguments = {**net.init_kwargs, "channel_mult": tuple(net.init_kwargs["channel_mult"])}
    again = edm_fast.load(path, class_name="VPPrecond", init_kwargs=arguments)
    assert equal(again, net)
    assert again.init_kwargs == net.init_kwargs
    with pytest.raises(ValueError, match="class_name and init_kwargs must be given for a state dict"):
        edm_fast.load(path)
    with pytest.raises(ValueError, match="class must be one of .*'UNet'"):
        edm_fast.load(path, class_name="UNet", init_kwargs=arguments)
    with pytest.raises(ValueError, match="img_channels must be an integer"):
        edm_fast.load(path, class_name="VPPrecond", init_kwargs={**arguments, "img_channels": 0})
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*keys do not match|shape"):
        edm_fast.load(path, class_name="VPPrecond", init_kwargs={**arguments, "label_dim": 0})


def test_our_own_files_open_from_paths_and_open_files(path):
    net = made()
    save_network(net, path)
    assert equal(edm_fast.load(path), net)
    assert equal(edm_fast.load(io.BytesIO(path.read_bytes())), net)
    with pytest.raises(ValueError, match="not for .*training-state.pt, a checkpoint of edm_fast"):
        edm_fast.load(path, entry="ema")


def test_without_a_path_the_shipped_model_opens():
    assert edm_fast.load().label_dim == 10
    assert edm_fast.load(dtype=torch.bfloat16).compute_dtype == torch.bfloat16


def test_a_flipped_bit_in_an_archive_is_noticed(path):
    net = made()
    content = bytearray(torch_file({"net": net.state_dict()}))
    arguments = {"class_name": "EDMPrecond", "init_kwargs": net.init_kwargs}
    at = content.index(net.state_dict()["model.map_layer0.weight"].numpy().tobytes())
    content[at + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"training-state.pt: net: damaged: the bytes of .* checksum"):
        edm_fast.load(path, **arguments)
    content[at + 5] ^= 1
    content[content.index(b"map_layer0")] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged: the bytes of '.*data.pkl' .* checksum"):
        edm_fast.load(path, **arguments)


def members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def archive(files, method=zipfile.ZIP_STORED, comment=b""):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, content in files:
            archive.writestr(name, content)
        archive.comment = comment
    return buffer.getvalue()


def state_archive():
    return list(members(torch_file({"weight": torch.arange(6.0)})).items())


def hostile_archives():
    good = state_archive()
    [folder] = {name.split("/")[0] for name, _ in good}
    storage = f"{folder}/data/0"
    replaced = [(name, b"big" if name.endswith("byteorder") else content) for name, content in good]
    yield "compressed", archive(good, zipfile.ZIP_DEFLATED), "compressed or encrypted"
    yield "zip bomb", archive([*good, ("a/zeros", bytes(10**7))], zipfile.ZIP_BZIP2), "compressed or encrypted"
    for name in ("../evil", f"{folder}/../../evil", "/etc/evil", f"{folder}//x", "a\\b"):
        yield name, archive([*good, (name, b"x")]), "leaves the archive"
    yield "twice", archive([*good, (storage, bytes(24))]), "two members named"
    yield "comment", archive(good, comment=b"PK"), "no end of a directory|a comment"
    yield "trailing", archive(good) + b"\0", "no end of a directory"
    yield "big-endian", archive(replaced), "big-endian"
    yield "no storage", archive([item for item in good if item[0] != storage]), "no storage '0'"
    yield "short storage", archive([(n, c[:20] if n == storage else c) for n, c in good]), "is 20 bytes; 6 elements"
    yield "long storage", archive([(n, c + c if n == storage else c) for n, c in good]), "is 48 bytes; 6 elements"
    yield "no pickle", archive([item for item in good if not item[0].endswith("pkl")]), "0 members named data.pkl"
    yield "two pickles", archive([*good, ("b/data.pkl", b"N.")]), "2 members named data.pkl"
    yield "after the pickle", archive([(n, c + b"." if n.endswith("pkl") else c) for n, c in good]), "1 bytes follow"
    yield "many", archive([(f"{index}", b"") for index in range(20_001)]), "20001 members"


HOSTILE = {name: (content, message) for name, content, message in hostile_archives()}


@pytest.mark.parametrize("name", HOSTILE)
def test_archives_that_torch_does_not_write_are_refused(name, path):
    content, message = HOSTILE[name]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*({message})"):
        edm_fast.load(path)
    assert list(path.parent.iterdir()) == [path]


def at(content, signature, offset, layout, value):
    """The archive with a field of its last header of one kind replaced."""
    changed = bytearray(content)
    struct.pack_into(layout, changed, content.rindex(signature) + offset, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("signature", "offset", "layout", "value", "message"),
    [
        (b"PK\x05\x06", 10, "<H", 2, "several parts"),
        (b"PK\x05\x06", 12, "<L", 2**31, "directory is 2147483648 bytes"),
        (b"PK\x05\x06", 16, "<L", 0, "but it ends at"),
        (b"PK\x05\x06", 20, "<H", 9, "a comment"),
        (b"PK\x01\x02", 8, "<H", 1, "encrypted"),
        (b"PK\x01\x02", 10, "<H", 8, "compressed"),
        (b"PK\x01\x02", 20, "<L", 10**9, "two sizes differ"),
        (b"PK\x01\x02", 24, "<L", 0xFFFFFFFF, "no zip64 sizes"),
        (b"PK\x01\x02", 28, "<H", 60000, "reaches outside"),
        (b"PK\x01\x02", 42, "<L", 1, "no member"),
        (b"PK\x01\x02", 42, "<L", 0, "another member"),
        (b"PK\x01\x02", 46, "<B", 0xFF, "not UTF-8"),
        (b"PK\x03\x04", 30, "<B", 65, "another member"),
    ],
)
def test_archives_that_contradict_themselves_are_refused(signature, offset, layout, value, message, path):
    path.write_bytes(at(archive(state_archive()), signature, offset, layout, value))
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*{message}"):
        edm_fast.load(path)


def test_members_that_overlap_are_refused(path):
    """One member's content holds another member, header and all."""
    inner = archive([("x/data/0", bytes(24))])
    header = inner[: inner.index(b"PK\x01\x02")]
    content = bytearray(archive([("x/data.pkl", b"\x80\x02N."), ("x/carrier", header), ("x/data/0", bytes(24))]))
    inside = content.index(header)
    struct.pack_into("<L", content, content.rindex(b"PK\x01\x02") + 42, inside)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="members that overlap"):
        edm_fast.load(path)


def test_sizes_of_64_bits_are_understood(path):
    """As torch writes them for files beyond 4 GiB."""
    content = archive(state_archive())
    end = len(content) - 22
    _, _, _, count, _, _, start, _ = struct.unpack_from("<4s4H2LH", content, end)
    entries = bytearray(content[start:end])
    last = entries.rindex(b"PK\x01\x02")
    fields = list(struct.unpack_from("<4s6H3L5H2L", entries, last))
    wide = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
    fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
    fields[11] = len(wide)
    name = entries[last + 46 : last + 46 + fields[10]]
    entries[last:] = struct.pack("<4s6H3L5H2L", *fields) + name + wide
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(entries), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(entries), 1)
    last_record = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(content[:start] + entries + record + locator + last_record)
    tensor = read_contents(memoryview(bytearray(path.read_bytes()))).entries["the file"]["weight"]
    assert torch.equal(tensor.copy("cpu", torch.float32), torch.arange(6.0))
