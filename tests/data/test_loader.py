"""Batches: what they hold, over ranks, workers, restarts and epochs."""

import sys

import numpy as np
import pytest
import torch

from dist_train.data import loader as loader_module
from dist_train.data.batch import Transfer
from dist_train.data.config import AugmentConfig, DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import Manifest
from dist_train.errors import UserError
from tests.data.sets import make_set, picture, sample, write_tar
from tests.processes import data_workers

SHARDS = [10, 7, 0, 13, 5, 9, 20]
CPU = torch.device("cpu")
FIELD = {
    "rotation": 10, "crop": 0.8, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "grey": 0.1, "blur": 0.2,
    "low_resolution": 0.2, "jpeg": 0.2, "erase": 0.2,
}  # fmt: skip
WITH_WORKERS = pytest.param({"workers": 2, "prefetch": 2}, marks=pytest.mark.job)  # a second for each process


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("set")
    make_set(directory, SHARDS, num_classes=9)
    return str(directory)


def config(path, **values):
    return DataConfig.model_validate({"path": path, "workers": 0, "window_shards": 3, "backend": "opencv"} | values)


def take(loader, count):
    batches = [next(loader) for _ in range(count)]
    return [torch.cat(parts).numpy() for parts in zip(*batches, strict=True) if parts[0] is not None]


def load(config, count, batch_size=8, rank=0, world_size=1, seed=5, start=0):
    with build_loader(config, batch_size, rank, world_size, seed, start) as loader:
        return take(loader, count)


def test_a_batch_holds_normalised_pictures_with_their_labels(path):
    with build_loader(config(path, augment={"flip": 0}), 8, 0, 1, 0) as loader:
        batch = next(loader)
        assert loader.manifest.samples == 64
        assert loader.steps_per_epoch == 8
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous()
    assert -1 <= batch.images.min() < batch.images.max() <= 1
    assert batch.positions.tolist() == list(range(8))
    shown = [np.abs(np.stack([picture(n) for n in range(64)]) / 127.5 - 1 - image).mean(axis=(1, 2, 3)).argmin()
             for image in batch.images.permute(0, 2, 3, 1).numpy()]  # fmt: skip
    assert [n % 9 for n in shown] == batch.labels.tolist()


def test_batches_stay_as_they_are_when_later_ones_come(path):
    with build_loader(config(path), 8, 0, 1, 0) as loader:
        kept = [next(loader) for _ in range(6)]
        copies = [batch.images.clone() for batch in kept]
        for _ in range(6):
            next(loader)
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_together_get_what_one_rank_gets(path, world_size):
    values = config(path, augment=FIELD)
    images, labels, positions, *_ = load(values, 4, batch_size=24)
    parts = [load(values, 4, 24 // world_size, rank, world_size) for rank in range(world_size)]
    joined = [np.concatenate([np.split(part[i], 4)[step] for step in range(4) for part in parts]) for i in range(3)]
    assert np.array_equal(joined[2], positions)
    assert np.array_equal(joined[1], labels)
    assert np.array_equal(joined[0], images)


@pytest.mark.job
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_what_the_training_process_itself_gives(path, workers):
    alone = load(config(path, augment=FIELD), 10, batch_size=7)
    helped = load(config(path, augment=FIELD, workers=workers, prefetch=2), 10, batch_size=7)
    assert all(np.array_equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("steps", [1, 3, 8, 13])
def test_a_resumed_run_gets_the_remaining_samples_on_another_number_of_ranks(path, steps):
    values = config(path, augment=FIELD)
    with build_loader(values, 8, 0, 1, 5) as loader:
        take(loader, steps)
        state = loader.state_dict()
        expected = take(loader, 4)
    assert state == {"position": 8 * steps, "seed": 5}
    parts = [load(values, 4, 4, rank, 2, state["seed"], state["position"]) for rank in range(2)]
    for i in range(3):
        joined = np.concatenate([np.split(part[i], 4)[step] for step in range(4) for part in parts])
        assert np.array_equal(joined, expected[i])


def test_the_state_counts_what_was_consumed_and_not_what_was_prefetched(path):
    with build_loader(config(path, prefetch=5), 8, 0, 2, 5) as loader:
        assert loader.state_dict()["position"] == 0
        next(loader)
        assert loader.state_dict()["position"] == 16


def test_the_wait_for_data_is_reported_once(path):
    with build_loader(config(path), 8, 0, 1, 5) as loader:
        next(loader)
        assert loader.take_wait() > 0
        assert loader.take_wait() == 0


def test_a_mixture_puts_the_labels_of_further_sets_behind_the_first_ones(path, tmp_path):
    make_set(tmp_path / "more", [30], num_classes=4)
    mix = {"path": str(tmp_path / "more"), "weight": 1}
    with build_loader(config(path, mix=[mix]), 40, 0, 1, 0) as loader:
        assert loader.manifest.num_classes == 13
        assert set(take(loader, 10)[1].tolist()) == set(range(13))
    with build_loader(config(path, mix=[mix | {"shared_labels": True}]), 40, 0, 1, 0) as loader:
        assert loader.manifest.num_classes == 9
        labels = take(loader, 10)[1]
    assert set(labels.tolist()) == set(range(9))
    assert (labels < 4).mean() > 0.6


@pytest.mark.parametrize("backend", [{}, WITH_WORKERS, {"backend": "dali"}], ids=str)
def test_each_sample_of_a_mixture_says_which_set_it_was_read_from(path, tmp_path, backend):
    if "backend" in backend:
        pytest.importorskip("nvidia.dali")
    make_set(tmp_path, [30], num_classes=4)
    (tmp_path / "bad").mkdir()
    spoilt = [[(f"{n}.jpg", b"no picture"), (f"{n}.cls", b"0")] for n in range(10)]
    Manifest(32, 2, (write_tar(tmp_path / "bad" / "x-000000.tar", spoilt),)).save(tmp_path / "bad")
    mix = [{"path": str(tmp_path / "bad"), "weight": 0.2}, {"path": str(tmp_path), "weight": 1}]
    values = config(path, mix=mix, max_bad_fraction=1, **backend)
    with build_loader(values, 40, 0, 1, 0) as loader:
        batches = [next(loader) for _ in range(2)]
        assert loader.bad_samples > 2, "samples of the second set, all bad, are replaced by those of the others"
    for batch in batches:
        assert batch.source.dtype == torch.int64
        assert torch.equal(batch.source, (batch.host_labels >= 11) * 2), "labels of the third set begin at 9 + 2"
        assert set(batch.source.tolist()) == {0, 2}
        assert torch.equal(torch.cat([part.source for part in batch.chunk(3)]), batch.source)
    with build_loader(config(path), 8, 0, 1, 0) as loader:
        assert not next(loader).source.any()


@pytest.mark.job
def test_class_balanced_batches_are_the_same_from_workers(path, tmp_path):
    values = {"images_per_class": 3, "cache_dir": str(tmp_path)}
    labels = load(config(path, **values), 6, batch_size=12)[1].reshape(-1, 3)
    assert (labels == labels[:, :1]).all()
    helped = load(config(path, **values, workers=2), 6, batch_size=12)[1].reshape(-1, 3)
    assert np.array_equal(labels, helped)
    with pytest.raises(UserError, match=r"batch of 8 is not a multiple of data.images_per_class=3"):
        build_loader(config(path, **values), 8, 0, 1, 0)


def test_pictures_of_another_size_are_resized_with_one_warp(path):
    with build_loader(config(path, image_size=48, augment={"flip": 0}), 8, 0, 1, 5) as large:
        big = next(large).images
    small = torch.from_numpy(load(config(path, augment={"flip": 0}), 1)[0])
    again = torch.nn.functional.interpolate(small, size=(48, 48), mode="bilinear")
    assert (again - big)[:, :, 2:-2, 2:-2].abs().mean() < 0.01


def test_a_missing_set_and_a_manifest_that_disagrees_are_user_errors(path, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such directory"):
        build_loader(config(str(tmp_path / "nowhere")), 8, 0, 1, 0)
    make_set(tmp_path / "a", [4, 4])
    (tmp_path / "a" / "x-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard x-000001.tar: No such file"):
        build_loader(config(str(tmp_path / "a")), 2, 0, 1, 0)
    write_tar(tmp_path / "a" / "x-000001.tar", [])
    with pytest.raises(UserError, match=r"shard x-000001.tar: 10240 bytes, the manifest says \d+"):
        build_loader(config(str(tmp_path / "a")), 2, 0, 1, 0)


def test_a_pool_lends_an_array_only_when_nothing_looks_at_it_any_more(monkeypatch):
    # What another interpreter, which keeps other counts of references, would answer.
    monkeypatch.setattr(sys, "getrefcount", lambda _: 3)
    transfer = Transfer(torch.device("cpu"))

    def batch(level):
        pixels = np.full((2, 3, 4, 4), level, dtype=np.uint8)
        return transfer(pixels, *[np.zeros(2, np.int64)] * 3).images

    held = [batch(level) for level in range(3)]
    slices = [held[0][1:], held[1].detach().view(-1)]
    held[:2] = []  # only parts of the first two are left
    later = [batch(200) for _ in range(6)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in [*slices, held[0], *later]}) == 9
    for level, tensor in enumerate([*slices, held[0]]):
        assert torch.equal(tensor, torch.full_like(tensor, level / 127.5 - 1)), "overwritten while in use"
    places = {tensor.untyped_storage().data_ptr() for tensor in [*slices, held[0], later[0]]}
    slices = held = later = None
    assert {batch(7).untyped_storage().data_ptr() for _ in range(4)} <= places, "memory is used again"


def test_a_start_that_fails_after_its_workers_began_ends_them(path, monkeypatch):
    def fails(*_):
        raise UserError("no such device")

    monkeypatch.setattr(loader_module, "Transfer", fails)
    with pytest.raises(UserError, match="no such device"):
        build_loader(config(path, workers=1), 8, 0, 1, 0)
    assert not data_workers()


def load_views(config, count, batch_size=8, rank=0, world_size=1):
    with build_loader(config, batch_size, rank, world_size, 5, views=2) as loader:
        return take(loader, count)


def test_two_views_show_the_same_samples_under_other_draws_and_the_first_is_the_usual_one(path):
    values = config(path, augment=FIELD)
    usual = load(values, 4)
    *first, other = load_views(values, 4)
    assert all(np.array_equal(a, b) for a, b in zip(usual, first, strict=True))
    assert (np.abs(other - first[0]).reshape(32, -1).max(axis=1) > 0.01).all(), "each picture has draws of its own"
    *first, other = load_views(config(path, augment={"flip": 0}), 4)
    assert np.array_equal(first[0], other), "without random changes the views are the same picture"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.job)])
def test_two_views_are_the_same_from_workers_and_over_ranks_with_bad_samples_among_them(tmp_path, workers):
    samples = [sample(n, n % 5) for n in range(40)]
    samples[7], samples[22] = ([(f"{n}.jpg", b"no picture"), (f"{n}.cls", b"0")] for n in (7, 22))
    Manifest(32, 5, (write_tar(tmp_path / "x-000000.tar", samples),)).save(tmp_path)
    values = config(str(tmp_path), augment={"flip": 0}, max_bad_fraction=1, workers=workers, prefetch=2)
    images, *_, other = load_views(values, 5)
    assert np.array_equal(images, other), "a bad sample's place is taken by the same one in both views"
    values = values.model_copy(update={"augment": AugmentConfig.model_validate(FIELD)})
    whole = load_views(config(str(tmp_path), augment=FIELD, max_bad_fraction=1), 5)
    parts = [load_views(values, 5, 4, rank, 2) for rank in range(2)]
    for field, expected in enumerate(whole):
        joined = np.concatenate([np.split(part[field], 5)[step] for step in range(5) for part in parts])
        assert np.array_equal(joined, expected)


def test_micro_batches_keep_both_views_of_a_sample_together(path):
    with build_loader(config(path, augment=FIELD), 7, 0, 1, 5, views=2) as loader:
        batch = next(loader)
    parts = batch.chunk(3)
    assert [len(part.labels) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.other for part in parts]), batch.other)
    assert [part.other for part in batch._replace(other=None).chunk(3)] == [None] * 3


@pytest.mark.job
def test_a_changed_augmentation_and_size_hold_from_the_next_batch_on_and_the_order_goes_on(path):
    before, after = config(path), config(path, augment=FIELD, image_size=48)
    one_worker = {"workers": 1}
    with build_loader(before.model_copy(update=one_worker), 8, 0, 1, 5) as loader:
        first = take(loader, 2)
        loader.change(after.model_copy(update=one_worker))
        second = take(loader, 2)
        loader.change(after.model_copy(update=one_worker))  # which is what it is
        third = take(loader, 1)
        assert loader.image_size == 48
    for found, expected in zip(
        (first, second, third), (load(before, 2), load(after, 2, start=16), load(after, 1, start=32)), strict=True
    ):
        for values, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(values, wanted)
