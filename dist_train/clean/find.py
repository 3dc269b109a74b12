"""All that is wrong in a set: each kind of finding after the other, since each tells the next what it may rely on.

    cores of identities -> identities that are one -> wrong labels -> pictures that are there twice, and in test sets

Identities come first: what is near to the other half of its own is no outlier.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dist_train.clean.cores import Cores, find_cores
from dist_train.clean.duplicates import Pairs, alike, gate, near_in_test, near_pairs, to_leave_out
from dist_train.clean.finding import Finding, Findings, tabled
from dist_train.clean.likeness import ALIKE, ReadFn
from dist_train.clean.merges import Merges, find_merges, joined
from dist_train.clean.outliers import Akin, Outliers, find_outliers
from dist_train.data.counters import Ints
from dist_train.errors import UserError
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.runtime.ranks import Ranks

logger = logging.getLogger(__name__)


class ForbiddenSet(NamedTuple):
    """Pictures that must not be in the set.

    Attributes:
        name: of the test set.
        features: unit rows [M, D], by the same model.
        read: gives a picture's bytes.
    """

    name: str
    features: Tensor
    read: ReadFn


@dataclass(frozen=True)
class Labelled:
    """The set that is looked through.

    Attributes:
        embedded: its pictures as the model sees them, in the set's order.
        names: of its identities, by label.
        read: gives a picture's bytes.
        about: what identifies the set and the model, as JSON values, with the set's `digest`.
    """

    embedded: EmbeddedSet
    names: Sequence[str | None]
    read: ReadFn
    about: Mapping[str, Any]


class Faults(NamedTuple):
    """What was found.

    Attributes:
        findings: as a table.
        cores: of the identities.
    """

    findings: Findings
    cores: Cores


def find_faults(
    labelled: Labelled,
    tests: Sequence[ForbiddenSet],
    certainty: float,
    thresholds: Mapping[str, float],
    ranks: Ranks,
) -> Faults:
    """Look through a set; a collective, equal on every rank.

    Args:
        labelled: the set.
        tests: sets whose pictures must not be in it.
        certainty: share of right findings that thresholds are chosen for.
        thresholds: by kind of finding, in place of those that the set itself gives.
        ranks: the processes that share the work.

    Raises:
        UserError: fewer than two identities.
        WorkError: a picture cannot be read.
    """
    features, labels = labelled.embedded.features, labelled.embedded.labels
    if len(labels[labels >= 0].unique()) < 2:
        raise UserError(
            f"set {labelled.embedded.path}: all pictures are of one identity; what is wrong shows only beside others"
        )
    cores = find_cores(features, labels, len(labelled.names))
    logger.info("identities are compared")
    merges = find_merges(features, cores, certainty, thresholds.get("merge"), ranks)
    one = joined(merges.pairs[merges.found], len(labelled.names))
    logger.info("labels are compared")
    akin = Akin(merges.pairs[merges.distance <= merges.possible], one)
    outliers = find_outliers(features, cores, akin, certainty, thresholds.get("outlier"), ranks)
    logger.info("pictures are compared")
    least, likeness = gate(features, labels), thresholds.get("duplicate", ALIKE)
    pairs = near_pairs(features, cores, one, outliers, least, ranks)
    pairs = alike(pairs, labelled.read, labelled.read, likeness, ranks)
    in_tests = []
    for test in tests:
        found = near_in_test(features, test.features, least, ranks)
        in_tests.append(alike(found, labelled.read, test.read, thresholds.get("test", ALIKE), ranks))
    told = _Telling(labelled, cores)
    findings = [
        *told.outliers(outliers),
        *told.merges(merges),
        *told.duplicates(pairs, outliers),
        *(each for test, found in zip(tests, in_tests, strict=True) for each in told.in_test(test, found)),
    ]
    about = {
        "set": dict(labelled.about),
        "certainty": certainty,
        "thresholds": {
            "outlier": _number(outliers.cut),
            "merge": _number(merges.cut),
            "duplicate": likeness,
            "test": thresholds.get("test", ALIKE),
        },
        "cosine_of_duplicates": least,
        "mixed": merges.mixed,
        "expected": {"outlier": outliers.mixture.expected, "merge": merges.mixture.expected},
        "against": [test.name for test in tests],
    }
    return Faults(tabled(findings, about), cores)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class _Telling:
    """Findings in words and numbers, of what was found in one set."""

    def __init__(self, labelled: Labelled, cores: Cores) -> None:
        self._set, self._cores = labelled, cores
        self._labels: Ints = cores.labels.numpy()

    def _name(self, label: int) -> str:
        name = self._set.names[label]
        return f"label {label}" if name is None else name

    def _of(self, kind: str, rows: list[int], labels: list[int], **fields: Any) -> Finding:  # noqa: ANN401 - its fields
        keys = [self._set.embedded.keys[row] for row in rows]
        return Finding(kind, rows, keys, labels, [self._name(label) for label in labels], **fields)

    def outliers(self, found: Outliers) -> list[Finding]:
        told = []
        for place in found.found.tolist():
            row, near = int(found.rows[place]), int(found.near[place, 0])
            label, cosine = int(self._labels[row]), float(self._cores.own[row])
            others, to_near = int(self._cores.counts[label]) - 1, float(found.near_cosine[place, 0])
            told.append(
                self._of(
                    "outlier",
                    [row],
                    [label],
                    cosine=cosine,
                    score=float(found.margin[place]),
                    near_label=near,
                    near_name=self._name(near),
                    near_cosine=to_near,
                    certainty=float(found.mixture.certainty[place]),
                    evidence=f"cosine {cosine:.2f} to the {others} others of {self._name(label)}, "
                    f"{to_near:.2f} to {self._name(near)}",
                )
            )
        return told

    def merges(self, found: Merges) -> list[Finding]:
        told = []
        for number in found.found.tolist():
            labels = found.pairs[number].tolist()
            few, many = (int(self._cores.counts[label]) for label in labels)
            distance, cosine = float(found.distance[number]), float(found.cosine[number])
            told.append(
                self._of(
                    "merge",
                    [],
                    labels,
                    cosine=cosine,
                    score=distance,
                    certainty=float(found.mixture.certainty[number]),
                    evidence=f"{few} and {many} pictures, cosine {cosine:.2f} between the centers, distance "
                    f"{distance:.2f} where halves of one identity have 1 on average",
                )
            )
        return told

    def duplicates(self, pairs: Pairs, outliers: Outliers) -> list[Finding]:
        worth = np.nan_to_num(self._cores.own.numpy(), nan=0.0)
        worth[outliers.rows[outliers.found]] -= 2  # what goes for its label does not stay for its pixels
        going, staying, said_by = to_leave_out(pairs, worth)
        told = []
        for row, stays, number in zip(going.tolist(), staying.tolist(), said_by.tolist(), strict=True):
            likeness, cosine = float(pairs.likeness[number]), float(pairs.cosine[number])
            told.append(
                self._of(
                    "duplicate",
                    [row, stays],
                    [int(self._labels[each]) for each in (row, stays)],
                    cosine=cosine,
                    likeness=likeness,
                    score=likeness,
                    evidence=f"pixels alike by {likeness:.3f}, cosine {cosine:.2f}; "
                    f"{self._set.embedded.keys[stays]} stays",
                )
            )
        return sorted(told, key=lambda each: (each.labels[0] == each.labels[1], -each.score))

    def in_test(self, test: ForbiddenSet, pairs: Pairs) -> list[Finding]:
        told = []
        for (row, other), cosine, likeness in zip(
            pairs.rows.tolist(), pairs.cosine.tolist(), pairs.likeness.tolist(), strict=True
        ):
            told.append(
                self._of(
                    "test",
                    [row],
                    [int(self._labels[row])],
                    cosine=cosine,
                    likeness=likeness,
                    score=likeness,
                    evidence=f"is picture {other} of {test.name}: pixels alike by {likeness:.3f}, cosine {cosine:.2f}",
                )
            )
        return sorted(told, key=lambda each: -each.score)


def central_rows(cores: Cores, label: int, count: int) -> list[int]:
    """The pictures of an identity that are nearest to its centre, at most `count`."""
    rows = (cores.labels == label).nonzero().squeeze(1)
    nearest = torch.argsort(cores.own[rows].nan_to_num(0), descending=True, stable=True)
    return [int(row) for row in rows[nearest[:count]]]
