"""Pictures with a wrong label: another identity is nearer than the picture's own.

The margin of a picture is its cosine to the centre of its identity's other pictures, less its cosine to the nearest
other centre. A picture of somebody who is in the set is near to that centre; one of nobody in it is as near to its own
as to a centre at random, and far from the nearest of many. How margins of wrong labels are distributed is seen on
pictures of this set that are given another label at random.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.clean.cores import Cores
from dist_train.clean.mixture import Floats, Mixture, mixture
from dist_train.clean.neighbours import nearest_rows
from dist_train.data.counters import Ints
from dist_train.runtime.distinct import distinct
from dist_train.runtime.ranks import Ranks

NEAREST = 4  # other identities that are kept for each suspect
_SAMPLE = 20_000  # pictures that are given another label
_SUSPECT = 0.999  # share of wrong labels that are looked at
_SEED = 0


class Outliers(NamedTuple):
    """Pictures that were looked at, since their cosine to their own identity is not above that of wrong labels.

    Attributes:
        rows: their numbers, int64 [S].
        margin: own cosine less the nearest other's; nan where an identity has one picture [S].
        near: labels of the nearest other identities, -1 for none, int64 [S, NEAREST].
        near_cosine: to these [S, NEAREST].
        mixture: what the margins say.
        cut: pictures at or below it have a wrong label.
        found: places in `rows` of the pictures with a wrong label, the surest first.
    """

    rows: Ints
    margin: Floats
    near: Ints
    near_cosine: Floats
    mixture: Mixture
    cut: float
    found: Ints


class Akin:
    """Tells which labels may be one person's.

    Args:
        pairs: of such labels, int64 [P, 2].
        one: for each label the least that it is one with, through any number of pairs [C].
    """

    def __init__(self, pairs: Ints, one: Ints) -> None:
        self._one = one
        self._keys = distinct(self._key(pairs[:, 0], pairs[:, 1]))

    def _key(self, left: Ints, right: Ints) -> Ints:
        key: Ints = np.minimum(left, right) * len(self._one) + np.maximum(left, right)
        return key

    def __call__(self, left: Ints, right: Ints) -> NDArray[np.bool_]:
        """Whether labels may be one person's, of arrays of one shape."""
        same: NDArray[np.bool_] = (self._one[left] == self._one[right]) | np.isin(self._key(left, right), self._keys)
        return same


def find_outliers(
    features: Tensor, cores: Cores, akin: Akin, certainty: float, cut: float | None, ranks: Ranks
) -> Outliers:
    """Look for pictures with a wrong label; a collective.

    Args:
        features: unit rows [N, D].
        cores: of their identities.
        akin: labels that may be one person's: a picture near to such a one is right.
        certainty: share of right ones that is asked for.
        cut: largest margin of a wrong label; None: by the set's own.
        ranks: the processes that share the search.
    """
    labelled = (cores.labels >= 0).numpy()
    own = cores.own.numpy()
    random = np.random.default_rng(_SEED)
    usable = np.flatnonzero(labelled & np.isfinite(own))
    sample = np.sort(random.choice(usable, min(_SAMPLE, len(usable)), replace=False))
    given = cores.labels.numpy()[random.choice(usable, len(sample))] if len(usable) else usable
    other = ~akin(given, cores.labels.numpy()[sample])
    sample, given = sample[other], given[other]
    # Of those given alone: a table of all centres beside the one that is searched below would be the most that is held.
    strangers = torch.nn.functional.normalize(cores.sums[torch.from_numpy(given)], dim=1)
    at_random = (features[torch.from_numpy(sample)] * strangers).sum(dim=1).numpy()
    bound = np.quantile(at_random, _SUSPECT) if len(sample) else -1.0
    rows = np.flatnonzero(labelled & ~(own > bound))
    looked_at = np.union1d(rows, sample)
    near, near_cosine = _nearest_others(features, cores, akin, looked_at, ranks)
    of_sample, of_rows = np.searchsorted(looked_at, sample), np.searchsorted(looked_at, rows)
    known = at_random - np.maximum(own[sample], near_cosine[of_sample, 0])
    near, near_cosine = near[of_rows], near_cosine[of_rows]
    margin = own[rows] - near_cosine[:, 0]
    judged = np.isfinite(margin)
    found = mixture(margin[judged], known[at_random <= bound], certainty)
    sure = np.zeros(len(rows), np.float32)
    sure[judged] = found.certainty
    cut = found.cut if cut is None else cut
    wrong = _minorities(np.flatnonzero(margin <= cut), margin, rows, cores)
    return Outliers(rows, margin, near, near_cosine, found._replace(certainty=sure), cut, wrong)


def _nearest_others(features: Tensor, cores: Cores, akin: Akin, rows: Ints, ranks: Ranks) -> tuple[Ints, Floats]:
    """Labels of the nearest centres of others, and cosines to them, falling; -1 and -1 where there are no more."""
    present = (cores.counts > 0).nonzero().squeeze(1)
    scores, places = nearest_rows(features[torch.from_numpy(rows)], cores.centers[present], NEAREST + 3, ranks)
    labels = present[places].numpy()
    own = np.broadcast_to(cores.labels.numpy()[rows, None], labels.shape)
    cosines = np.where(akin(labels, own), -np.inf, scores.numpy())
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
    cosines, labels = np.take_along_axis(cosines, order, axis=1), np.take_along_axis(labels, order, axis=1)
    nobody = ~np.isfinite(cosines)
    return _wide(np.where(nobody, -1, labels), -1), _wide(np.where(nobody, -1, cosines).astype(np.float32), -1)


def _wide(values: np.ndarray, filler: int) -> np.ndarray:
    """[S, n] -> [S, NEAREST]: a set may have fewer identities."""
    wide: np.ndarray = np.pad(values, ((0, 0), (0, NEAREST - values.shape[1])), constant_values=filler)
    return wide


def _minorities(places: Ints, margin: Floats, rows: Ints, cores: Cores) -> Ints:
    """Of the places those that are at most half of their identity, the smallest margins first.

    Of two pictures that differ nobody knows which one is wrong; the one that is nearer to somebody else is taken.
    """
    labels = cores.labels.numpy()[rows[places]]
    order = np.lexsort((margin[places], labels))
    labels = labels[order]
    within = np.arange(len(order)) - np.searchsorted(labels, labels, side="left")
    kept = places[order[within < cores.counts.numpy()[labels] // 2]]
    rising: Ints = kept[np.argsort(margin[kept], kind="stable")]
    return rising
