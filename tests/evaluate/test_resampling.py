import numpy as np
import pytest

from dist_train.evaluate.resampling import fnmr_intervals
from dist_train.evaluate.thinned import PairSample

FMRS = (0.4, 0.2)


def listed(scores, left, right):
    """Pairs [n] as a sample of all of them."""
    order = np.argsort(scores, kind="stable")
    ends = (each[order].astype(np.int32) for each in (left, right))
    return PairSample(scores[order].astype(np.float32), *ends, np.ones(len(scores)))


def people(sizes, errors=0.3, seed=0):
    """Both kinds of pairs of pictures of people with `sizes`, with scores of which several are equal."""
    generator = np.random.default_rng(seed)
    identity = np.repeat(np.arange(len(sizes)), sizes)
    left, right = np.triu_indices(len(identity), 1)
    same = identity[left] == identity[right]
    scores = np.where(same, 1 - errors * generator.random(len(left)), generator.random(len(left))).round(2)
    return [listed(scores[kind], identity[left[kind]], identity[right[kind]]) for kind in (same, ~same)]


def drawn_plainly(genuine, impostor, sizes, fmr):
    """FNMR at `fmr` of the first drawing, by writing every pair down as often as it counts."""
    counts = np.bincount(np.random.default_rng((19795, 0)).integers(0, len(sizes), len(sizes)), minlength=len(sizes))
    false = np.sort(np.repeat(impostor.scores, counts[impostor.left] * counts[impostor.right]))[::-1]
    true = np.repeat(genuine.scores, counts[genuine.left])
    return (true <= false[int(fmr * len(false) * (1 + 1e-12))]).mean()


@pytest.mark.parametrize("all_pairs", [True, False])
def test_a_drawing_counts_a_pair_as_often_as_its_people_are_drawn(all_pairs):
    sizes = np.array([3, 1, 4, 2, 5, 1, 2, 3])
    genuine, impostor = people(sizes, errors=0.9)
    ends = fnmr_intervals(genuine, impostor, FMRS, len(sizes), sizes if all_pairs else None, rounds=1)
    for (low, high), fmr in zip(ends, FMRS, strict=True):
        plain = drawn_plainly(genuine, impostor, sizes, fmr)
        assert 0 < plain < 1
        assert (low, high) == pytest.approx((plain, plain), abs=1e-12)


def test_no_error_among_few_people_is_no_proof_of_none():
    genuine, impostor = people(np.full(20, 2), errors=0.0)
    for pairs, expected in (
        ((genuine, impostor._replace(scores=impostor.scores - 2)), (0, 1 - 0.05 ** (1 / 20))),
        ((genuine._replace(scores=genuine.scores - 3), impostor), (0.05 ** (1 / 20), 1)),
    ):
        assert fnmr_intervals(*pairs, (0.1,), 20, rounds=20)[0] == pytest.approx(expected)


def test_drawings_that_have_one_person_alone_are_left_out():
    sizes = np.array([3, 3])
    genuine, impostor = people(sizes, errors=0.9)
    plain = (genuine.scores <= np.sort(impostor.scores)[::-1][int(0.4 * 9)]).mean()
    assert fnmr_intervals(genuine, impostor, (0.4,), 2, sizes, rounds=20)[0].tolist() == [plain, plain]


def test_an_interval_is_as_wide_as_people_differ_not_as_their_pairs():
    identities, pairs = 200, 20
    who = np.repeat(np.arange(identities), pairs)
    scores = np.where(who % 5 == 0, 0.2, 0.8)  # the pairs of a person fail together
    generator = np.random.default_rng(0)
    impostor = listed(generator.random(300) * 0.5, *generator.integers(0, identities, (2, 300)))
    low, high = fnmr_intervals(listed(scores, who, who), impostor, (0.05,), identities)[0]
    expected = 2 * 1.96 * (0.2 * 0.8 / identities) ** 0.5
    assert low < 0.2 < high
    assert high - low == pytest.approx(expected, rel=0.1)
