"""What samples weigh, the mixtures that say so, and figures by set."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import Manifest
from dist_train.objectives.by_source import LossBySource, set_names
from dist_train.objectives.gathering import Gathering
from dist_train.objectives.weights import sample_weights
from tests.data.sets import encode, make_set, picture, write_tar
from tests.ranks import ranks_here, run_ranks

SOURCES = np.array([0, 1, 0, 2, 0, 1, 0])
LOSSES = np.arange(7.0) + 1


def data(mix, **values):
    mix = [{"path": f"sets/{number}", "weight": 1} | each for number, each in enumerate(mix)]
    return DataConfig.model_validate({"path": "sets/first", "mix": mix} | values)


def test_without_keys_samples_have_no_weights():
    assert sample_weights(data([{}, {}]), SOURCES) is None


def test_the_weighted_loss_is_the_sum_over_sets_of_weight_times_mean():
    found = sample_weights(data([{"loss_weight": 0.3}, {"loss_weight": 0}], loss_weight=0.7), SOURCES)
    expected = 0.7 * LOSSES[SOURCES == 0].mean() + 0.3 * LOSSES[SOURCES == 1].mean()
    np.testing.assert_allclose(found @ LOSSES, expected, rtol=1e-15)
    only_first = sample_weights(data([{"loss_weight": 0.3}], loss_weight=0.7), np.zeros(4, np.int64))
    np.testing.assert_array_equal(only_first, np.full(4, 0.7 / 4))


def test_unlabelled_sets_have_no_part_in_the_mean_or_in_the_weighted_sum():
    found = sample_weights(data([{}, {"labelled": False}]), SOURCES)
    np.testing.assert_allclose(found @ LOSSES, LOSSES[SOURCES != 2].mean(), rtol=1e-15)
    found = sample_weights(data([{"loss_weight": 0.3}, {"labelled": False}], loss_weight=0.7), SOURCES)
    assert found[3] == 0
    np.testing.assert_array_equal(sample_weights(data([{"labelled": False}]), np.ones(4, np.int64)), np.zeros(4))


@pytest.mark.parametrize(
    ("mix", "values", "said"),
    [
        ([{}], {"loss_weight": 0.7}, "loss_weight is given, mix.0.loss_weight is not"),
        ([{"loss_weight": 1}], {}, "mix.0.loss_weight is given, loss_weight is not"),
        ([], {"loss_weight": 0.7}, "there is one; remove it"),
        ([{"labelled": False}], {"loss_weight": 0.7}, "there is one; remove it"),
        ([{"loss_weight": 0}], {"loss_weight": 0}, "0 for every set"),
        ([{"loss_weight": -1}], {"loss_weight": 1}, "greater than or equal to 0"),
        ([{"loss_weight": float("nan")}], {"loss_weight": 1}, "loss_weight"),
        ([{"labelled": False, "shared_labels": True}], {}, "shared_labels"),
        ([{"labelled": False, "loss_weight": 1}], {}, "weighs losses that need labels"),
    ],
)
def test_weights_that_make_no_sense_are_refused(mix, values, said):
    with pytest.raises(ValidationError, match=said):
        data(mix, **values)


def test_an_unlabelled_set_needs_no_labels_adds_no_classes_and_gives_label_minus_1(tmp_path):
    make_set(tmp_path / "first", [20], num_classes=5)
    bare = [[(f"{n}.jpg", encode(picture(n)))] for n in range(20)]
    (tmp_path / "bare").mkdir()
    Manifest(32, 3, (write_tar(tmp_path / "bare" / "x-000000.tar", bare),)).save(tmp_path / "bare")
    make_set(tmp_path / "last", [20], num_classes=4)
    mix = [
        {"path": str(tmp_path / "bare"), "weight": 1, "labelled": False},
        {"path": str(tmp_path / "last"), "weight": 1},
    ]
    config = DataConfig.model_validate(
        {"path": str(tmp_path / "first"), "mix": mix, "workers": 0, "backend": "opencv", "max_bad_fraction": 0}
    )
    with build_loader(config, 40, 0, 1, 0) as loader:
        assert loader.manifest.num_classes == 9
        batches = [next(loader) for _ in range(3)]
    labels, sources = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("labels", "source"))
    assert (labels[sources == 1] == -1).all()
    assert set(labels[sources == 0].tolist()) == set(range(5))
    assert set(labels[sources == 2].tolist()) == set(range(5, 9))
    assert set(sources.tolist()) == {0, 1, 2}


def test_sets_are_named_by_the_last_part_of_their_path_and_a_number_where_that_is_not_enough():
    assert set_names(["/a/faces", "s3://b/faces/", "c"]) == ["faces.0", "faces.1", "c"]


def figures(rank, world_size):
    told = LossBySource(data([{}, {}, {"labelled": False}]), Gathering(ranks_here(rank, world_size)))
    sources = torch.tensor([[0, 1], [0, 3], [1, 3]])[:world_size]
    told.add(torch.full((2 * world_size,), 100.0), sources[rank])
    told.begin()  # a refused step
    for losses in (torch.arange(2.0 * world_size), torch.arange(2.0 * world_size) + 10):
        told.add(losses, sources[rank])
    found = told.figures()
    told.begin()
    return found, told.figures()


@pytest.mark.parametrize("world_size", [1, 3])
def test_figures_by_set_are_of_all_ranks_and_micro_batches_of_the_step(world_size):
    ranks = run_ranks(world_size, figures) if world_size > 1 else [figures(0, 1)]
    few = {"share.first": 1 / 2, "share.0": 1 / 2, "share.1": 0, "share.2": 0, "loss.first": 5, "loss.0": 6}
    many = {"share.first": 1 / 3, "share.0": 1 / 3, "share.1": 0, "share.2": 1 / 3, "loss.first": 6, "loss.0": 7.5}
    for found, after in ranks:
        assert found == pytest.approx(few if world_size == 1 else many)
        assert after == {}
