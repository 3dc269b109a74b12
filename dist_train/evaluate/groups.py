"""Error rates of groups of pictures at one global threshold: differential performance, as ISO/IEC 19795-10 has it.

The threshold is that of an FMR over all impostor pairs of the set: a system has one threshold for everybody. Then come,
for each group, the false match rate of impostor pairs inside the group and the false non-match rate of its genuine
pairs; for each pair of groups, the false match rate of impostor pairs across them; and for all groups, the worst rate
over the best and the Gini coefficient, for FMR (false match rate differential) and FNMR (false non-match rate
differential).

A picture without a value belongs to the group "(none)", which is shown and takes no part in the comparison of groups.
Where one identity's pictures have several values, its genuine pairs across groups count for the pair of groups alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.group_results import NONE, SIGNIFICANT, Differential, Group, GroupsResult
from dist_train.evaluate.operating_points import notes_on_rate, threshold_at
from dist_train.evaluate.pair_counts import order_by_identity
from dist_train.evaluate.rates import Dyads, Rate, adjusted, genuine_rate, gini, higher, impostor_rate, pooled
from dist_train.evaluate.scored_pairs import ScoredPairs, false_matches, genuine_pairs
from dist_train.runtime.ranks import ALONE, Ranks

MOST_GROUPS = 64


def evaluate_groups(embedded: EmbeddedSet, by: str, fmr: float, ranks: Ranks = ALONE) -> GroupsResult:
    """The rates of the groups of a set at the threshold of an FMR over all its impostor pairs. A collective.

    Pictures without a label are left out.

    Args:
        embedded: the set, with the column.
        by: name of the column.
        fmr: demanded of all impostor pairs.
        ranks: the processes that share the work.

    Raises:
        UserError: no pair of one identity or none of two, no groups, or too many.
        WorkError: embeddings that are not finite.
    """
    name = f"set {embedded.path}"
    ordered = order_by_identity(embedded.features, embedded.labels, name)
    names, group = group_values([embedded.columns[by][number] for number in ordered.order], by, name)
    threshold = threshold_at(ordered, fmr, ranks)
    labels = torch.from_numpy(ordered.identity)
    genuine = genuine_pairs(ordered.features, labels, ranks)
    matches = false_matches(ordered.features, labels, threshold, ranks)
    title = (embedded.name, by, fmr)
    return judge_groups(labels, group, genuine, matches, threshold, names=names, title=title)


def group_values(values: Sequence[object], by: str, name: str) -> tuple[list[str], np.ndarray]:
    """The groups' names, rising with "(none)" last, and the number of each picture's group, int64 [N].

    A missing value, an empty text and nan are no value.

    Raises:
        UserError: no picture has a value, a value is no text or number, or there are more than 64 groups.
    """
    texts = [_text(value, by, name) for value in values]
    names = sorted({text for text in texts if text is not None})
    if not names:
        raise UserError(
            f"{name}: no picture has a value in {by!r}; name a column of the set's identities.parquet or a field of "
            "its samples' .json"
        )
    if len(names) > MOST_GROUPS:
        raise UserError(
            f"{name}: {by!r} has {len(names):,} values, expected at most {MOST_GROUPS} groups; write a column with "
            "classes of values, as 0-17, 18-39, 40+"
        )
    if None in texts:
        names.append(NONE)
    numbers = {text: number for number, text in enumerate(names)}
    return names, np.array([numbers[NONE if text is None else text] for text in texts], np.int64)


def _text(value: object, by: str, name: str) -> str | None:
    if value is None or value == "" or value != value:
        return None
    if not isinstance(value, str | int | float):
        raise UserError(f"{name}: {by!r} is a {type(value).__name__} in a sample, expected a text or a number")
    if value == NONE:
        raise UserError(f"{name}: a value of {by!r} is {NONE!r}, which stands for pictures without one; rename it")
    return str(value)


def judge_groups(
    labels: Tensor,
    group: np.ndarray,
    genuine: ScoredPairs,
    matches: ScoredPairs,
    threshold: float,
    *,
    names: Sequence[str],
    title: tuple[str, str, float],
) -> GroupsResult:
    """The rates of groups at a threshold.

    Args:
        labels: int64 [N].
        group: number of each picture's group, int64 [N].
        genuine: all genuine pairs.
        matches: all impostor pairs at or above the threshold.
        threshold: cosine.
        names: of the groups.
        title: name of the set, of the column, and the FMR demanded.
    """
    identity = torch.unique(labels, return_inverse=True)[1].numpy()
    pictures = np.zeros((identity.max() + 1, len(names)), np.int64)  # [I, G]
    np.add.at(pictures, (identity, group), 1)
    across_fmr, across_fnmr = {}, {}
    inside: list[Group] = []
    false = _numbered(matches.left, matches.right, group)
    mates = _numbered(genuine.left, genuine.right, group)
    for one, first in enumerate(names):
        for other in range(one, len(names)):
            chosen = (false[0] == one) & (false[1] == other)
            fmr = _impostor(identity, matches, chosen, pictures[:, one], pictures[:, other], one == other)
            fnmr = _genuine(identity, genuine, (mates[0] == one) & (mates[1] == other), threshold, len(pictures))
            if one == other:
                column = pictures[:, one]
                inside.append(Group(first, int(column.sum()), int((column > 0).sum()), fmr, fnmr))
            else:
                across_fmr[first, names[other]] = fmr
                if fnmr.pairs:
                    across_fnmr[first, names[other]] = fnmr
    everyone = pictures.sum(axis=1)
    every = np.ones(len(matches.left), bool), np.ones(len(genuine.left), bool)
    overall = _impostor(identity, matches, every[0], everyone, everyone, True)
    compared = [each for each in inside if each.name != NONE]
    groups = (*_compared(compared), *(each for each in inside if each.name == NONE))
    return GroupsResult(
        *title,
        threshold,
        overall,
        _genuine(identity, genuine, every[1], threshold, len(pictures)),
        groups,
        across_fmr,
        across_fnmr,
        _differential([each.fmr for each in compared]),
        _differential([each.fnmr for each in compared]),
        (*notes_on_rate(title[2], overall.pairs), *_notes(groups, pictures)),
    )


def _numbered(left: np.ndarray, right: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the higher group of each pair."""
    return np.minimum(group[left], group[right]), np.maximum(group[left], group[right])


def _impostor(
    identity: np.ndarray,
    matches: ScoredPairs,
    chosen: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    inside: bool,
) -> Rate:
    """The FMR of chosen matches among all impostor pairs of two groups with `one` and `other` [I] pictures."""
    count = len(one)
    pair = identity[np.stack([matches.left[chosen], matches.right[chosen]])]  # [2, M]
    keys, found = np.unique(pair.min(axis=0) * count + pair.max(axis=0), return_counts=True)
    left, right = keys // count, keys % count
    a, b = one.astype(np.float64), other.astype(np.float64)
    first, second, shared = (int(there.sum()) for there in (one > 0, other > 0, (one > 0) & (other > 0)))
    if inside:
        own, squares = a * (a.sum() - a), ((a**2).sum() ** 2 - (a**4).sum()) / 2
        pairs = one[left] * one[right]
        dyads = first * (first - 1) // 2
    else:
        own = a * (b.sum() - b) + b * (a.sum() - a)
        # Over i < j of (a_i b_j + a_j b_i)^2: half of the sum over i != j.
        mixed = (a * b).sum()
        squares = (a**2).sum() * (b**2).sum() + mixed**2 - 2 * ((a * b) ** 2).sum()
        pairs = one[left] * other[right] + one[right] * other[left]
        dyads = first * second - shared - shared * (shared - 1) // 2
    return impostor_rate(Dyads(left, right, found, pairs), own, dyads, float(squares))


def _genuine(identity: np.ndarray, genuine: ScoredPairs, chosen: np.ndarray, threshold: float, count: int) -> Rate:
    """The FNMR of chosen genuine pairs."""
    whose = identity[genuine.left[chosen]]
    missed = genuine.score[chosen] < np.float32(threshold)
    return genuine_rate(np.bincount(whose[missed], minlength=count), np.bincount(whose, minlength=count))


def _compared(groups: list[Group]) -> list[Group]:
    """The groups with the probabilities that they are only by chance worse than the others together."""
    if len(groups) < 2:
        return groups
    tests = [
        higher(getattr(each, rate), pooled([getattr(other, rate) for other in groups if other is not each]))
        for rate in ("fmr", "fnmr")
        for each in groups
    ]
    family = adjusted(tests)
    return [
        replace(each, fmr_p=fmr_p, fnmr_p=fnmr_p)
        for each, fmr_p, fnmr_p in zip(groups, family[: len(groups)], family[len(groups) :], strict=True)
    ]


def _differential(rates: list[Rate]) -> Differential:
    shares = [rate.share for rate in rates if rate.pairs]
    if len(shares) < 2:
        return Differential(None, None)
    return Differential(max(shares) / min(shares) if min(shares) else None, gini(shares))


def _notes(groups: Sequence[Group], pictures: np.ndarray) -> list[str]:
    notes = []
    if (several := int(((pictures > 0).sum(axis=1) > 1).sum())) > 0:
        notes.append(
            f"{several:,} of {len(pictures):,} identities have pictures of several groups: their genuine pairs across "
            "groups count in none of them"
        )
    for group in groups:
        if group.name == NONE:
            notes.append(f"{group.pictures:,} pictures have no value: {NONE} is not compared with the groups")
            continue
        for kind, rate in (("impostor", group.fmr), ("genuine", group.fnmr)):
            if not rate.pairs:
                notes.append(f"group {group.name} has no {kind} pair, and no {'FMR' if kind[0] == 'i' else 'FNMR'}")
    flagged = [
        f"{kind} of group {group.name}"
        for group in groups
        for kind, worse in (("FMR", group.worse_fmr), ("FNMR", group.worse_fnmr))
        if worse
    ]
    if flagged:
        notes.append(
            f"significantly higher than in the other groups (chance of any wrong flag {100 * SIGNIFICANT:g} %): "
            + ", ".join(flagged)
        )
    return notes
