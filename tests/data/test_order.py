"""The sample order is a pure function of seed and position: coverage, ranks, mixtures, classes."""

import numpy as np
import pytest

from dist_train.data.order import ClassOrder, MixedOrder, SingleOrder, WindowShuffle
from dist_train.errors import UserError

SHARDS = [10, 7, 0, 13, 5, 9, 20]  # 64 samples


def identify(order, positions):
    places = order.locate(np.asarray(positions, dtype=np.int64))
    return list(zip(places.shard.tolist(), places.sample.tolist(), strict=True))


def single(window=3, seed=1, batch=8, last_batch="drop", shards=SHARDS):
    return SingleOrder(WindowShuffle(shards, window, seed), batch, last_batch)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_shows_each_sample_once(window, epoch):
    order = single(window)
    length = order.epoch_length
    assert length == 64
    seen = identify(order, range(epoch * length, (epoch + 1) * length))
    assert sorted(seen) == [(s, i) for s, count in enumerate(SHARDS) for i in range(count)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_order_does_not_depend_on_the_number_of_ranks(world_size):
    order = single(batch=24)
    whole = identify(order, range(5 * 24))
    share = 24 // world_size
    by_ranks = [
        identify(order, range(step * 24 + rank * share, step * 24 + (rank + 1) * share))
        for step in range(5)
        for rank in range(world_size)
    ]
    assert [each for part in by_ranks for each in part] == whole


def test_epochs_and_seeds_have_orders_of_their_own():
    order = single()
    epochs = [tuple(identify(order, range(e * 64, e * 64 + 64))) for e in range(4)]
    other = tuple(identify(single(seed=2), range(64)))
    assert len({*epochs, other}) == 5


def test_dropping_leaves_out_the_last_partial_batch_and_padding_starts_the_epoch_again():
    dropped, padded = single(batch=10), single(batch=10, last_batch="pad")
    assert (dropped.epoch_length, padded.epoch_length) == (60, 70)
    seen = identify(padded, range(70))
    assert seen[64:] == seen[:6]
    assert len(set(seen)) == 64
    assert len(set(identify(dropped, range(60)))) == 60
    assert identify(dropped, range(60)) == seen[:60]


def test_a_batch_larger_than_the_set_is_refused_with_both_numbers():
    with pytest.raises(UserError, match="64 samples, fewer than one global batch of 65"):
        single(batch=65)
    assert single(batch=65, last_batch="pad").epoch_length == 65


def test_samples_of_a_shard_stay_within_one_window():
    shards = [50] * 20
    order = single(window=4, batch=10, shards=shards)
    shard = order.locate(np.arange(1000)).shard
    for number in range(20):
        positions = np.flatnonzero(shard == number)
        assert positions.max() - positions.min() < 200
        assert positions.min() // 200 == positions.max() // 200


def test_a_sample_can_come_at_any_time_of_an_epoch():
    order = single(window=4, batch=10, shards=[50] * 20)
    times = []
    for epoch in range(40):
        places = order.locate(np.arange(1000) + 1000 * epoch)
        times.append(np.flatnonzero((places.shard == 0) & (places.sample == 0))[0])
    assert min(times) < 200
    assert max(times) >= 800


def test_a_batch_draws_from_the_window_as_a_full_shuffle_would():
    order = single(window=20, batch=10, shards=[50] * 20)
    shard = order.locate(np.arange(1000)).shard.reshape(50, 20)
    full = np.random.default_rng(0).permutation(1000).reshape(50, 20) // 50
    distinct, expected = (np.mean([len(set(batch)) for batch in each.tolist()]) for each in (shard, full))
    assert abs(distinct - expected) < 1


def test_shards_needed_next_are_known_ahead():
    order = single(window=2, batch=8)
    now = set(order.locate(np.arange(8)).shard.tolist())
    assert now <= set(order.upcoming(0).tolist())
    for position in range(0, 256, 8):
        read = set(order.locate(np.arange(position, position + 8)).shard.tolist())
        assert read <= set(order.upcoming(position).tolist())


def mixture(weights, sizes=((100,) * 6, (30,) * 5), seed=3, batch=20):
    shuffles = [WindowShuffle(list(shards), 2, seed, stream) for stream, shards in enumerate(sizes)]
    return MixedOrder(shuffles, weights, seed, batch)


def test_a_mixture_keeps_its_shares_over_every_thousand_positions():
    order = mixture([0.7, 0.3])
    for start in (0, 1000, 5000):
        source = order.locate(np.arange(start, start + 1000)).shard >= 6
        assert source.sum() == 300
    assert 10 < (order.locate(np.arange(100)).shard >= 6).sum() < 50


def test_each_set_of_a_mixture_goes_through_epochs_of_its_own():
    order = mixture([7, 3])
    seen = identify(order, range(2000))  # 1,400 and 600 samples
    first = [each for each in seen if each[0] < 6]
    second = [each for each in seen if each[0] >= 6]
    assert set(np.unique([first.count(each) for each in set(first)])) <= {2, 3}
    assert {second.count(each) for each in set(second)} == {4}
    assert len(set(first)) == 600
    assert len(set(second)) == 150


def test_an_epoch_of_a_mixture_is_as_long_as_its_first_set_takes():
    assert mixture([0.5, 0.5]).epoch_length == 1200
    assert mixture([1.0, 1e-9]).epoch_length == 600


def by_class(counts, per_class, batch, seed=0):
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(5)
    labels = labels[rng.permutation(len(labels))]
    members = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[members], np.arange(len(counts) + 1))
    shards = [len(labels) // 2, len(labels) - len(labels) // 2]
    return ClassOrder(members, starts, shards, per_class, seed, batch), labels, shards


def test_class_balanced_batches_hold_p_classes_of_k_pictures():
    order, labels, shards = by_class([9, 4, 0, 30, 6, 5], per_class=4, batch=12)
    places = order.locate(np.arange(240))
    found = labels[places.sample + np.where(places.shard == 1, shards[0], 0)].reshape(-1, 4)
    assert (found == found[:, :1]).all()
    for cycle in found[:, 0].reshape(-1, 5):
        assert sorted(cycle.tolist()) == [0, 1, 3, 4, 5]


def test_a_class_shows_all_its_pictures_before_it_repeats_one():
    order, labels, shards = by_class([9, 4, 0, 30, 6, 5], per_class=3, batch=6)
    places = order.locate(np.arange(5 * 3 * 10))
    number = places.sample + np.where(places.shard == 1, shards[0], 0)
    shown = number[labels[number] == 3]
    assert len(shown) == 30
    assert len(set(shown.tolist())) == 30


def test_more_classes_than_there_are_is_an_error_with_both_numbers():
    with pytest.raises(UserError, match="needs 6 identities, the set has 5"):
        by_class([9, 4, 0, 30, 6, 5], per_class=2, batch=12)
