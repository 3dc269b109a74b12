"""Several labels a sample: from `.json` lists to batches and to a run."""

import json

import pytest
import torch

from dist_train.config import RunConfig
from dist_train.data.config import DataConfig, SourceConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import Manifest, load_manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError
from tests.data.sets import encode, picture, write_tar

LISTS = [[0], [2, 1], [1, 3, 2], [], None, [4, 4, 0]]  # of samples with labels 0, 1, 2, 3, 4, 0


def sample(number, label, labels):
    record = [] if labels is None else [(f"{number:04d}.json", json.dumps({"labels": labels}).encode())]
    return [(f"{number:04d}.jpg", encode(picture(number))), (f"{number:04d}.cls", b"%d" % label), *record]


def write(folder, lists, classes=5):
    folder.mkdir()
    samples = [sample(number, number % 5, labels) for number, labels in enumerate(lists)]
    Manifest(32, classes, (write_tar(folder / "x-000000.tar", samples),)).save(folder)
    return str(folder)


def batch_of(config, size):
    with build_loader(config, size, 0, 1, 0) as loader:
        return next(loader)


WANTED = {(0, -1, -1), (1, 2, -1), (2, 1, 3), (3, -1, -1), (4, -1, -1), (0, 4, -1)}


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_all_labels_of_their_samples_the_own_one_first(tmp_path, workers):
    config = DataConfig(path=write(tmp_path / "set", LISTS), workers=workers, labels_per_sample=3)
    batch = batch_of(config, 6)
    assert {tuple(row) for row in batch.several.tolist()} == WANTED
    assert torch.equal(batch.several[:, 0], batch.labels)
    assert torch.equal(batch.host_labels, batch.labels)
    first, second = batch.chunk(2)
    assert torch.equal(torch.cat([first.several, second.several]), batch.several)


def test_labels_of_a_further_set_stand_behind_those_of_the_first_and_an_unlabelled_one_has_none(tmp_path):
    first, second, third = (write(tmp_path / name, LISTS) for name in ("first", "second", "third"))
    mix = (SourceConfig(path=second, weight=1), SourceConfig(path=third, weight=1, labelled=False))
    batch = batch_of(DataConfig(path=first, workers=0, labels_per_sample=3, mix=mix), 18)
    for source, shift in ((0, 0), (1, 5)):
        found = {tuple(row) for row in batch.several[batch.source == source].tolist()}
        assert found <= {tuple(each + shift if each >= 0 else -1 for each in row) for row in WANTED}
        assert len(found) > 1
    assert (batch.several[batch.source == 2] == -1).all()


def test_with_one_label_a_sample_lists_are_not_read(tmp_path):
    batch = batch_of(DataConfig(path=write(tmp_path / "set", [[9, 9], "?", *LISTS[2:]]), workers=0), 6)
    assert batch.several is None
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([1, 2, 3], "4 labels, but data.labels_per_sample is 3"),
        ([1, 5], "label 5, but the set has 5 classes"),
        ([1, -1], r"its \.json has 'labels' = \[1, -1\], expected a list of class numbers"),
        ([True], r"'labels' = \[True\]"),
        ([1.5], r"'labels' = \[1\.5\]"),
        ({"1": 2}, "'labels' = {'1': 2}"),
        ("12", "'labels' = 12"),
    ],
)
def test_samples_with_lists_that_are_no_labels_are_bad(tmp_path, labels, reason):
    path = write(tmp_path / "set", [labels])
    reader = SampleReader([ImageSet(path, load_manifest(path))], "label", 1, most_labels=3)
    with pytest.raises(BadSampleError, match=reason):
        reader.read(0, 0)
    reader.close()


def test_a_recipe_with_several_labels_names_a_margin_that_takes_them(tmp_path):
    body = {"run_dir": str(tmp_path / "run"), "data": {"path": "set", "labels_per_sample": 8}}
    body |= {"backbone": {"name": "mobilefacenet"}, "train": {"steps": 5, "global_batch_size": 4}}
    assert RunConfig.model_validate(body | {"head": {"margin": "cosface"}}).data.labels_per_sample == 8
    with pytest.raises(ValueError, match=r"head\.margin=adaface takes one label a sample.*several: cosface, arcface"):
        RunConfig.model_validate(body | {"head": {"margin": "adaface"}})
    with pytest.raises(ValueError, match=r"data\.labels_per_sample is for the head's loss, and head is null"):
        RunConfig.model_validate(body | {"head": None, "objectives": {"triplet": {}}})
    phases = [{"at": 2, "head": {"margin": "adaface"}}]
    with pytest.raises(ValueError, match="takes one label a sample"):
        RunConfig.model_validate(body | {"phases": phases})
