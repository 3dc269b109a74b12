"""Files of weights as anybody may hand them over."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dist_train.errors import UserError
from dist_train.weights.files import read_weights
from tests.security.payloads import Attack

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -1.0], dtype=torch.float16)}


def same(found, expected=STATE):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


def test_safetensors_give_tensors_and_what_the_file_says_of_itself(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors", {"license": "MIT"})
    weights = read_weights(tmp_path / "a.safetensors")
    assert same(weights.state)
    assert weights.about == {"license": "MIT"}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
        lambda state: {"state_dict_backbone": state, "state_dict_softmax_fc": {"weight": torch.ones(5, 3)}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()} | {"n_averaged": torch.ones(())},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: (
            {f"backbone.{name}": torch.nn.Parameter(one) for name, one in state.items()}
            | {"head.weight": torch.ones(3)}
        ),
    ],
    ids=["plain", "state_dict", "arcface_torch", "nested", "averaged", "compiled under DDP", "whole model"],
)
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_state_dict_is_found_in_what_projects_wrap_it_with(tmp_path, wrapped, suffix):
    torch.save(wrapped(STATE), tmp_path / f"a{suffix}")
    weights = read_weights(tmp_path / f"a{suffix}")
    assert same(weights.state)
    assert weights.about == {}


def test_a_networks_own_state_dict_is_read_with_its_metadata(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(network.state_dict(), tmp_path / "a.pth")
    assert same(read_weights(tmp_path / "a.pth").state, network.state_dict())


def test_a_pickle_with_code_is_refused_and_nothing_is_run(tmp_path):
    mark = tmp_path / "ran"
    torch.save({"state_dict": STATE, "args": Attack(mark)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"its pickle calls .*, which no weights need; refused, nothing was run")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Attack(mark)))
    refused(tmp_path / "b.pt", "no file by torch.save")
    assert not mark.exists()


def archive_with(path, change, **options):
    """A file by `torch.save` with another pickle; `options` are those of `ZipFile.writestr`."""
    whole = io.BytesIO()
    torch.save(STATE, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, change(data) if entry.filename.endswith(".pkl") else data, **options)


def test_an_archive_that_takes_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    archive_with(path, bytes, compress_type=zipfile.ZIP_DEFLATED)
    refused(path, "a compressed archive")
    archive_with(path, lambda _: b"\x80\x02" + b"N0" * (5 << 20))
    refused(path, r"data.pkl has [\d,]+ bytes, expected at most 8,388,608")
    archive_with(path, lambda _: b"cbuiltins\nbytearray\n(I100000000000\ntR.")
    refused(path, "calls builtins.bytearray")
    archive_with(path, lambda _: b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.")  # a key of 2^60 members
    refused(path, "damaged: a nested or long key")


def test_numbers_that_are_not_there_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    expanded = torch.ones(1).expand(10**6, 10**6)
    torch.save({"fc.weight": expanded}, path)
    refused(path, "'fc.weight' claims more numbers than are there")
    archive_with(path, lambda record: record.replace(b"X\x01\x00\x00\x000q", b"X\x01\x00\x00\x007q"))
    refused(path, "damaged: .*data/7")
    archive_with(path, lambda record: record.replace(b"K\x06", b"K\xff", 1))
    refused(path, "damaged: numbers that are not there: '0'")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", b"weights", "not a file of weights; expected a name that ends in .safetensors, .pt"),
        ("a.pt", b"just text\n", "no file by torch.save, or cut off"),
        ("a.safetensors", b"just text, of some length\n", "its header claims [0-9,]+ bytes, expected at most 26;"),
        ("a.safetensors", (50 << 30).to_bytes(8, "little") + b"{}", "its header claims 53,687,091,200 bytes"),
        ("a.safetensors", b"", "cut off, or no safetensors file"),
        ("a.safetensors", (4).to_bytes(8, "little") + b"{{{{", "cut off, or no safetensors file"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)


def test_an_archive_whose_names_are_no_text_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(2)}, path)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last one of the directory: its flags say that the name is UTF-8
    content[entry + 9] |= 0x08
    content[entry + 46] = 0xAF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pt: no file by torch\.save, or cut off \('utf-8' codec can't decode"):
        read_weights(path)


def test_a_cut_file_is_refused(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-10])
        refused(path, "cut off")


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "a pipe, a device or a directory")
    (tmp_path / "b.safetensors").mkdir()
    refused(tmp_path / "b.safetensors", "Is a directory")
    refused(tmp_path / "c.pt", "No such file")
    with (tmp_path / "d.pt").open("wb") as file:
        file.truncate(65 << 30)
    refused(tmp_path / "d.pt", "65 GiB, expected at most 64")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}, "'state', 'param_groups'"),
        ({"optimizer": {"state": {}}, "epoch": 3}, "'optimizer', 'epoch'"),
        ({}, "nothing"),
        ([torch.ones(2)], "list"),
        (torch.ones(2), "Tensor"),
    ],
    ids=["optimizer", "wrapped optimizer", "empty", "list", "tensor"],
)
def test_a_file_without_weights_is_refused_with_what_is_in_it(tmp_path, content, found):
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", f"no weights of a network in it; found {found}; expected a state dict")


def test_arrays_in_place_of_tensors_are_refused(tmp_path):
    torch.save({"fc.weight": np.ones(3)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "its pickle calls numpy")
