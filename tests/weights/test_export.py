"""Weights handed on: files, names, centers and the model card."""

import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from dist_train.backbones.config import backbone_section
from dist_train.checkpoint.cli import checkpoints_at
from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.reader import load_tensors
from dist_train.checkpoint.store import read_progress, write_progress
from dist_train.config import RunConfig
from dist_train.data.aligner import Aligner
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.calibration import read_calibration, stated_calibration
from dist_train.evaluate.models import load_model
from dist_train.weights import centers as centers_module
from dist_train.weights import export as export_module
from dist_train.weights.card import escaped, fenced
from dist_train.weights.centers import plain_centers
from dist_train.weights.export import export_checkpoint, renamed
from dist_train.weights.fit import fit_weights
from dist_train.weights.names import TABLES
from dist_train.weights.write import Blocks, write_safetensors, write_weights
from tests.evaluate.figures import figures, point, write_figures
from tests.weights.arcface import Formula
from tests.weights.runs import CLASSES, read_once, train_run, write_names


@pytest.fixture(autouse=True)
def checkpoints_are_read_once(monkeypatch):
    read_once(monkeypatch, export_module)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("handed"))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """Where the run is exported to, with everything."""
    place = tmp_path_factory.mktemp("whole")
    export_checkpoint(checkpoints_at(run)[-1], place / "model.safetensors", "headcount", True)
    return place


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(run, tmp_path / "copied")


def export(run, output, names="headcount", centers=False):
    return export_checkpoint(checkpoints_at(run)[-1], output, names, centers)


def same_tensors(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_both_forms_hold_the_state_dict_of_the_run_and_nothing_else(run, whole, tmp_path):
    state = load_backbone(run)[0].state_dict()
    assert same_tensors(load_file(whole / "model.safetensors"), state)
    export(run, tmp_path / "model.pt")
    assert same_tensors(torch.load(tmp_path / "model.pt", weights_only=True), state)
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"archive"}, "not host and process"


def test_thresholds_of_the_checkpoint_stand_in_its_header_and_on_its_card(run, whole, tmp_path):
    network = load_model(run, torch.device("cpu"))
    points = [point(1e-2, 0.25), point(1e-4, 0.5, resolved=False), point(1e-6, None)]
    measured = write_figures(tmp_path / "figures.json", figures(network.digest(), points, sets=("a|b",)))
    export_checkpoint(checkpoints_at(run)[-1], tmp_path / "m.safetensors", "headcount", False, measured)
    model = load_model(tmp_path / "m.safetensors", torch.device("cpu"))
    found = stated_calibration(model.thresholds(), model.owner())
    assert found == read_calibration(measured, network.owner())
    card = (tmp_path / "m.md").read_text()
    assert "Measured on a\\|b: FMR is the share of its 1,710 pairs" in card
    assert "| 0.0001 \\* | 0.5000 | 3.20% (95 %: 2.80% to 3.90%) |" in card
    assert "1e-06" not in card
    assert "## Thresholds" not in (whole / "model.md").read_text()
    assert load_model(whole / "model.safetensors", torch.device("cpu")).thresholds() == ""


def test_header_and_card_tell_what_aligned_the_faces(whole, copied, tmp_path):
    cpu = torch.device("cpu")
    assert load_model(whole / "model.safetensors", cpu).aligner() is None
    assert "| faces aligned by | unknown |" in (whole / "model.md").read_text()
    checkpoint, aligner = checkpoints_at(copied)[-1], Aligner("scrfd", "b" * 64)
    write_progress(checkpoint, replace(read_progress(checkpoint), aligner=aligner))
    export(copied, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", cpu).aligner() == load_model(copied, cpu).aligner() == aligner
    assert f"| faces aligned by | scrfd, SHA-256 {'b' * 64} |" in (tmp_path / "m.md").read_text()


def test_the_header_states_network_input_and_recipe(run, whole):
    with safe_open(whole / "model.safetensors", "pt") as file:
        about = file.metadata()
    told = {key: about[key] for key in ("names", "image_size", "embedding_dim", "input_color", "parents")}
    assert told == {
        "names": "headcount",
        "image_size": "32",
        "embedding_dim": "16",
        "input_color": "RGB",
        "parents": "run, step 4",
    }
    assert RunConfig.model_validate(yaml.safe_load(about["recipe"])) == load_backbone(run)[1]
    assert json.loads(about["network"])["name"] == "tiny"


def test_an_exported_file_embeds_as_its_run_and_other_files_are_refused(run, whole, tmp_path):
    pictures = torch.rand(3, 3, 32, 32) * 2 - 1
    from_file, from_run = (load_model(path, torch.device("cpu")) for path in (whole / "model.safetensors", run))
    assert torch.equal(from_file.embed(pictures), from_run.embed(pictures))
    assert from_file.digest() == from_run.digest()
    state = load_file(whole / "model.safetensors")
    wrong = {
        "does not say network and image_size": (state, {}),
        "names no network of ours": (state, {"network": '{"name": "no such"}', "image_size": "32"}),
        "pictures of 99999 px": (state, {"network": '{"name": "tiny"}', "image_size": "99999"}),
        "not of the network that its header names": (state, {"network": '{"name": "nano"}', "image_size": "32"}),
    }
    for reason, (tensors, about) in wrong.items():
        write_weights(tmp_path / "wrong.safetensors", tensors, about)
        with pytest.raises(UserError, match=reason):
            load_model(tmp_path / "wrong.safetensors", torch.device("cpu"))


def test_the_same_weights_are_the_same_bytes_and_readable_by_all_whom_the_umask_allows(run, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        export(run, tmp_path / folder / "model.safetensors")
        export(run, tmp_path / folder / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (tmp_path / "plain").touch()
    assert (tmp_path / "a" / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_centers_come_row_by_row_with_the_names_of_the_set(run, whole):
    state = {"head": {"centers": torch.empty(CLASSES, 16)}}
    load_tensors(state, checkpoints_at(run)[-1], alone=True)
    assert torch.equal(load_file(whole / "model.centers.safetensors")["centers"], state["head"]["centers"])
    names = pq.read_table(whole / "model.identities.parquet")
    assert names.to_pydict() == {"label": list(range(CLASSES)), "name": [f"person {n}" for n in range(CLASSES)]}


def test_a_checkpoint_is_exported_from_its_own_folder_too(copied, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoints_at(copied)[0])
    card = export_checkpoint(Path(), tmp_path / "model.safetensors", "headcount", True)
    assert str(card.parents[0]) == "copied, step 2"
    assert (tmp_path / "model.identities.parquet").exists()


def test_names_that_the_run_keeps_come_before_those_of_the_set(copied, tmp_path):
    write_names(copied / "identities.parquet", [f"kept {n}" for n in range(CLASSES)])
    export(copied, tmp_path / "model.safetensors", centers=True)
    assert pq.read_table(tmp_path / "model.identities.parquet")["name"].to_pylist()[0] == "kept 0"


def test_centers_whose_names_nobody_knows_are_refused_and_nothing_is_written(copied, tmp_path):
    config = copied / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(tree | {"data": tree["data"] | {"path": str(tmp_path / "gone")}}))
    with pytest.raises(UserError, match=r"--centers: .*no identities.parquet.*leave --centers out"):
        export(copied, tmp_path / "model.safetensors", centers=True)
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize(("k", "bias"), [(1, 0), (1, 1), (3, 0), (3, 1)])
def test_stored_rows_lose_their_bias_and_become_float32_block_by_block(monkeypatch, k, bias):
    dim, classes = 4, 7
    stored = torch.randn(classes, k * (dim + bias)).bfloat16()
    config = SimpleNamespace(head=SimpleNamespace(centers_per_class=k), backbone=SimpleNamespace(embedding_dim=dim))
    table = SimpleNamespace(shape=tuple(stored.shape), take=lambda rows: stored[torch.from_numpy(rows)])
    monkeypatch.setattr(centers_module, "StoredTable", lambda *_: table)
    monkeypatch.setattr(centers_module, "_BLOCK_BYTES", 3 * 4 * k * (dim + bias))
    found = plain_centers("step-1", config)
    blocks = list(found.blocks)
    expected = stored.view(classes, k, dim + bias)[:, :, :dim].float()
    assert [len(block) for block in blocks] == [3, 3, 1]
    assert torch.equal(torch.cat(blocks), expected[:, 0] if k == 1 else expected)
    assert found.shape == tuple(torch.cat(blocks).shape)
    config.backbone.embedding_dim = 9
    with pytest.raises(UserError, match=rf"are \[7, \d+\], expected {k} x 9 numbers"):
        plain_centers("step-1", config)


def test_tensors_get_the_names_of_another_project_whose_norms_have_scale_and_bias(run, tmp_path, monkeypatch):
    state = load_backbone(run)[0].state_dict()
    theirs = {f"theirs.{name}": name for name in state}
    table = SimpleNamespace(own_names=lambda backbone: theirs)
    monkeypatch.setitem(sys.modules, "dist_train.weights.names", SimpleNamespace(TABLES={"arcface_torch": table}))
    export(run, tmp_path / "model.safetensors", names="arcface_torch")
    found = load_file(tmp_path / "model.safetensors")
    added = {"theirs.embed.4.weight": torch.ones(16), "theirs.embed.4.bias": torch.zeros(16)}
    assert same_tensors(found, {name: state[ours] for name, ours in theirs.items()} | added)
    assert r"named as in arcface\_torch" in (tmp_path / "model.md").read_text()
    del theirs["theirs.stem.0.weight"]
    with pytest.raises(UserError, match=r"--names arcface_torch: 1 tensors have no name there, the first: stem"):
        export(run, tmp_path / "other.safetensors", names="arcface_torch")


def test_the_names_of_arcface_torch_are_all_that_its_networks_ask_for():
    formula = Formula()
    formula("iresnet18", torch.zeros(1, 3, 112, 112))
    for norm in ("bias", "fixed"):
        section = backbone_section({"name": "iresnet18", "embedding_norm": norm})
        own = TABLES["arcface_torch"].own_names(section)
        state = {ours: formula.state[theirs] for theirs, ours in own.items()}
        plain = {} if norm == "bias" else {"features.weight": torch.ones(512), "features.bias": torch.zeros(512)}
        written = renamed(state, section, "arcface_torch")
        assert same_tensors(written, formula.state | plain)
        assert fit_weights(written, state, section).misfits() == "", "and a network of ours starts from it"
        written["features.bias"] = torch.ones(512)
        assert ("features.bias" in fit_weights(written, state, section).misfits()) == (norm == "fixed")


def test_the_card_says_what_the_network_takes_how_it_is_loaded_and_how_good_it_is(whole):
    text = (whole / "model.md").read_text()
    for line in (
        "# run, step 4",
        "float32 [B, 3, 32, 32], red first, -1..1",
        "| trained on | 10 identities, 80 pictures, set ",
        "(10.94, 14.77)",  # the left eye of 112 pixels, at 32
        "backbone: model.safetensors",
        "load_file('model.safetensors')",
        r"| verification\_accuracy | 0.75 |",
        r"| tar\_at\_far, 0.001 | 0.5 |",
        "model.centers.safetensors",
        "global_batch_size: 48",
    ):
        assert line in text


def test_figures_of_another_step_and_a_damaged_summary_are_left_out(copied, tmp_path, caplog):
    summary = copied / "summary.json"
    for content, warned in (('{"steps": 2, "rank1": 0.5}', False), ("[" * 9999, True), ('{"steps": 4}', False)):
        summary.write_text(content)
        export(copied, tmp_path / "model.safetensors")
        assert "Figures" not in (tmp_path / "model.md").read_text()
        assert ("the model card has no figures" in caplog.text) == warned
        caplog.clear()


def test_text_of_a_run_cannot_become_markup(copied, tmp_path):
    evil = copied.rename(copied.with_name("x|y <img src=a> [b](c) `d`\n# e"))
    summary = {"steps": 4, "a | <b>\n# c": 1, "huge": 10**400, "text": "z", "flag": True, "nan": float("nan")}
    (evil / "summary.json").write_text(json.dumps(summary))
    export(evil, tmp_path / "model.safetensors")
    text = (tmp_path / "model.md").read_text()
    prose = text[: text.index("```")]
    assert not [line for line in text.splitlines() if line.startswith("# ") and "step 4" not in line]
    assert r"x\|y \<img src=a\> \[b\]\(c\) \`d\`\\n\# e, step 4" in prose
    assert "huge" not in text
    assert escaped("a_b\u202e") == r"a\_b\\u202e"
    assert fenced("a\n````\nb", "text") == "`````text\na\n````\nb\n`````"


@pytest.mark.parametrize("refused", ["model.safetensors", "model.md", "model.centers.safetensors"])
def test_a_full_disk_is_said_and_leaves_nothing(run, tmp_path, refused):
    (tmp_path / f".{refused}.{os.uname().nodename}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(WorkError, match=r"model.safetensors: cannot be written: No space left on device; make room"):
        export(run, tmp_path / "model.safetensors", centers=True)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_of_a_plain_state_dict_too(tmp_path):
    (tmp_path / f".model.pt.{os.uname().nodename}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(WorkError, match=r"model.pt: cannot be written: No space left on device"):
        write_weights(tmp_path / "model.pt", {"a": torch.zeros(9)}, {})
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_to_are_refused_before_any_work(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "README.md").write_text("# mine")
    for name, reason in (
        ("model.onnx", r"ends in .safetensors or .pt"),
        ("model", r"ends in .safetensors or .pt"),
        ("nowhere/model.pt", "no directory"),
        ("folder.pt", "is a directory"),
        ("README.pt", "README.md: is there and no model card"),
    ):
        with pytest.raises(UserError, match=reason):
            export_checkpoint(tmp_path / "no-run", tmp_path / name, "headcount", False)
    assert (tmp_path / "README.md").read_text() == "# mine"


def test_files_are_those_of_the_library_whatever_the_type(tmp_path):
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    state = {f"{kind}": torch.arange(5).to(kind) for kind in (*kinds, torch.int8, torch.uint8, torch.bool)}
    state |= {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "turned": torch.arange(6.0).view(2, 3).T}
    write_weights(tmp_path / "all.safetensors", state, {"é": "\n"})
    assert same_tensors(load_file(tmp_path / "all.safetensors"), state)
    with safe_open(tmp_path / "all.safetensors", "pt") as file:
        assert file.metadata() == {"é": "\n"}
    for shape, blocks in (((4,), [torch.zeros(3)]), ((2,), [torch.zeros(3)]), ((3,), [torch.zeros(3).half()])):
        with pytest.raises(ValueError, match="a: "), (tmp_path / "wrong").open("wb") as file:
            write_safetensors(file, {"a": Blocks(shape, torch.float32, blocks)}, {})
