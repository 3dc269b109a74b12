"""What a head cannot start from is named, with what was found and the way out."""

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from dist_train.checkpoint.store import Progress, write_checksums, write_progress
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError, WorkError
from dist_train.start.head import start_head
from tests.ranks import ranks_here
from tests.sets import write_set
from tests.start.runs import build, recipe, write_names, write_run

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    write_set(folder / "set", classes=4, views=1)
    write_names(folder / "set", NAMES)
    write_run(recipe(folder / "old", folder / "set", {}), NAMES)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """The set and the run `old`, to be spoilt."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def start(folder, head=None, settings=None, dim=8, classes=4, **more):
    options = {"head": head or folder / "old", "new_rows": "random"} | more
    config = recipe(folder / "new", folder / "set", settings or {}, options, dim)
    made = build(config, classes)
    try:
        return start_head(config, made, torch.nn.Identity(), 32, ranks_here(0, 1))
    finally:
        made.close()


def checkpoint_of(folder):
    return folder / "old" / "checkpoints" / "step-00000002"


def flip(folder):
    file = next(checkpoint_of(folder).glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def edit_config(folder, old, new):
    path = folder / "old" / "config.yaml"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 16}, r"backbone\.embedding_dim is 8 there and 16 here"),
        ({"settings": {"centers_per_class": 3}}, r"head\.centers_per_class is 1 there and 3 here"),
        ({"settings": {"margin": "softmax"}}, r"rows there have none, here head\.margin=softmax: they have a bias"),
    ],
)
def test_rows_of_another_shape_are_refused_with_both_values(made, options, message):
    with pytest.raises(UserError, match=rf"start\.head: the rows of .*step-00000002 do not fit: {message}"):
        start(made, **options)


def test_a_head_without_names_is_refused_unless_its_set_still_has_them(made, folder):
    (folder / "old" / "identities.parquet").unlink()
    with pytest.raises(UserError, match=r"old: no identities\.parquet in it, and its set .* nobody knows which"):
        start(folder)
    edit_config(folder, str(made), str(folder))
    write_progress(checkpoint_of(folder), Progress(2, 24, 32, 4, load_manifest(folder / "set").digest))
    write_checksums(checkpoint_of(folder), 0, 1)
    assert start(folder)["start/carried"] == 4


@pytest.mark.parametrize("place", ["old", "set"])
def test_two_identities_of_one_name_are_named_with_their_file(folder, place):
    write_names(folder / place, ["a", "b", "b", "d"])
    where = rf"{folder}/old/identities\.parquet" if place == "old" else rf"identities\.parquet of {folder}/set"
    with pytest.raises(UserError, match=rf"{where}: labels [12] and [12] are both named 'b', of 1 names"):
        start(folder)


def test_a_set_without_names_or_with_other_names_is_refused(folder):
    write_names(folder / "set", ["1", "2", "3", "4"])
    with pytest.raises(UserError, match=r"no identity in common: names there are like 'd', here like '4'"):
        start(folder)
    (folder / "set" / "identities.parquet").unlink()
    with pytest.raises(UserError, match=r"there is no identities\.parquet in .*set; write the set with"):
        start(folder)


def test_new_identities_are_not_embedded_by_a_network_that_has_learned_nothing(folder):
    write_names(folder / "set", ["a", "b", "x", "y"])
    with pytest.raises(UserError, match=r"2 identities of .* are new, .*; give start\.backbone.* or start\.new_rows=r"):
        start(folder, new_rows="embed")


@pytest.mark.parametrize("spelling", ["{}/new", "{}/old/../new", "{}/link", "{}/new/checkpoints/step-00000002"])
def test_a_run_does_not_start_from_itself_however_it_is_spelt(folder, spelling):
    shutil.copytree(folder / "old", folder / "new")
    os.symlink(folder / "new", folder / "link")
    with pytest.raises(
        UserError, match=r"start\.head .*: lies in the run's own run_dir .*/new; to go on with that run use --resume"
    ):
        start(folder, head=spelling.format(folder))


def test_places_without_a_head_are_named(folder):
    (folder / "empty").mkdir()
    (folder / "text.pt").write_text("weights")
    for head, message in (
        ("nowhere", r"start\.head .*nowhere: no such file or directory; give a run directory .* or exported centers"),
        ("empty", r"start\.head .*empty: a directory without checkpoints"),
        ("text.pt", r"text\.centers\.safetensors is not beside it"),
    ):
        with pytest.raises(UserError, match=message):
            start(folder, head=folder / head)


def test_a_damaged_checkpoint_is_passed_over_and_refused_where_it_was_asked_for(folder):
    flip(folder)
    with pytest.raises(WorkError, match=r"start\.head .*: every checkpoint there is damaged; start from another one"):
        start(folder)
    with pytest.raises(WorkError, match=r"step-00000002: is damaged: .* has another checksum"):
        start(folder, head=checkpoint_of(folder))


def test_a_checkpoint_beside_another_recipe_than_its_own_is_refused(folder):
    edit_config(folder, "embedding_dim: 8", "embedding_dim: 16")
    with pytest.raises(UserError, match=r"head\.centers is \[4, 8\], expected \[4, 16\] by the config\.yaml"):
        start(folder, dim=16)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"rows": torch.zeros(4, 8)}, "no tensor centers in it"),
        ({"centers": torch.zeros(4)}, r"centers is F32 \[4\], expected F32 \[C, D\] or \[C, K, D\]"),
        ({"centers": torch.zeros(4, 8).double()}, r"centers is F64 \[4, 8\]"),
        ({"centers": torch.zeros(2, 8)}, "4 rows for 2 identities"),
        ({"centers": torch.zeros(4, 6)}, r"embedding_dim is 6 there and 8 here"),
        (None, "no file of centers: .*; export it again"),
    ],
)
def test_other_files_than_exported_centers_are_refused_by_name(folder, tensors, message):
    path = folder / "m.centers.safetensors"
    shutil.copyfile(folder / "set" / "identities.parquet", folder / "m.identities.parquet")
    if tensors is None:
        path.write_bytes((50 << 30).to_bytes(8, "little") + b"{")
    else:
        save_file(tensors, path)
    with pytest.raises(UserError, match=message):
        start(folder, head=path)
