"""The counter-based generator and the permutation that need no table."""

import numpy as np
import pytest

from dist_train.data.counters import permute, philox, uniforms


@pytest.mark.parametrize(
    ("seed", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(seed, counter, expected):
    assert philox(seed, counter).tolist() == list(expected)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 16, 17, 1000, 4096, 4097])
def test_a_permutation_takes_every_value_once(size):
    images = permute(np.arange(size), size, 3, 1)
    assert sorted(images.tolist()) == list(range(size))


def test_any_part_of_a_permutation_is_computed_alone():
    whole = permute(np.arange(5000), 5000, 9, 4)
    part = np.array([4999, 17, 17, 0])
    assert permute(part, 5000, 9, 4).tolist() == whole[part].tolist()


def test_permutations_with_other_keys_differ():
    images = {
        tuple(permute(np.arange(50), 50, seed, *tweak).tolist())
        for seed in (0, 1, 2**40)
        for tweak in [(0,), (1,), (0, 1), (2**33,), (0, 2**33)]
    }
    assert len(images) == 15


def test_small_permutations_are_close_to_uniform():
    counts: dict[tuple[int, ...], int] = {}
    trials = 1500
    for key in range(trials):
        image = tuple(permute(np.arange(3), 3, key).tolist())
        counts[image] = counts.get(image, 0) + 1
    assert len(counts) == 6
    chi_square = sum((count - trials / 6) ** 2 / (trials / 6) for count in counts.values())
    assert chi_square < 40  # 5 degrees of freedom: a tenth of a millionth by chance


def test_a_value_goes_anywhere_in_a_large_permutation():
    images = np.array([permute(np.array([7]), 1000, key)[0] for key in range(2000)])
    counts = np.bincount(images // 100, minlength=10)
    assert abs(counts - 200).max() < 76  # 5.7 deviations


def test_uniforms_depend_on_epoch_and_index_alone():
    epochs, indices = np.array([0, 0, 5]), np.array([3, 2**40, 3])
    together = uniforms(1, 1, epochs, indices, 20)
    alone = uniforms(1, 1, epochs[1:2], indices[1:2], 20)
    assert together.shape == (3, 20)
    assert (together[1] == alone[0]).all()
    assert len(np.unique(together)) == 60
    assert together.min() >= 0
    assert together.max() < 1
