"""Retrieval on a labelled set: its probes in its gallery, or each of its pictures among all others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.config import RetrievalConfig
from dist_train.evaluate.embedded_set import EmbeddedSet, embed_set
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.rerank import reranked
from dist_train.evaluate.retrieval import Judged, RetrievalFigures, Scores, Searches, cosines, judge_retrieval, ordered
from dist_train.evaluate.sameness import warn_of_sameness
from dist_train.evaluate.sets import ROLES, StoredSet
from dist_train.runtime.ranks import ALONE, Ranks

SHOWN = 8  # entries of an example
_EXAMPLES = (0.0, 0.1, 0.25, 0.5)  # shares of the probes that have a lower AP than the example


@dataclass(frozen=True)
class Found:
    """A gallery entry of an example: the encoded picture, its score, and whether it shows what the probe shows."""

    picture: bytes
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A search as a report shows it: the probe's encoded picture, its AP, and the first entries."""

    probe: bytes
    precision: float
    found: list[Found]


@dataclass(frozen=True)
class RetrievalResult:
    """What a model achieves on a set.

    Attributes:
        name: of the set.
        figures: by cosines.
        reranked: after re-ranking; None where none was asked for.
        probes: that have a mate.
        without_mate: probes that have none, and do not count.
        gallery: entries that a probe is compared with, at most.
        identities: labels of the gallery.
        ignore_same: field that a probe's mates may not share with it; None: none.
        examples: searches from the worst to the median.
    """

    name: str
    figures: RetrievalFigures
    reranked: RetrievalFigures | None
    probes: int
    without_mate: int
    gallery: int
    identities: int
    ignore_same: str | None
    examples: list[Example]

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "probes": self.probes,
            "without_mate": self.without_mate,
            "gallery": self.gallery,
            "identities": self.identities,
            "ignore_same": self.ignore_same,
            **self.figures.summary(),
            "reranked": None if self.reranked is None else self.reranked.summary(),
        }


def evaluate_retrieval(entry: RetrievalConfig, how: Judging) -> RetrievalResult:
    """Retrieval on a set of shards, over all ranks; every rank gets the same result. A collective.

    Raises:
        UserError: no such set, roles that do not fit, a field that pictures lack, no probe with a mate, or a set too
            large to be re-ranked.
        WorkError: a damaged picture or embeddings that are not finite.
    """
    embedded = embed_set(entry.set, how, () if entry.ignore_same is None else (entry.ignore_same,))
    if how.ranks.rank == 0:
        warn_of_sameness(f"retrieval set {entry.set}", embedded.features, embedded.labels)
    return judge_embedded(embedded, entry.ignore_same, rerank=entry.rerank, ranks=how.ranks)


def judge_embedded(
    embedded: EmbeddedSet, ignore_same: str | None = None, *, rerank: bool = False, ranks: Ranks = ALONE
) -> RetrievalResult:
    """As `evaluate_retrieval`, of a set whose embeddings are known."""
    where = f"retrieval set {embedded.path}"
    probe = _probes(where, embedded)
    groups = None if ignore_same is None else _groups(where, embedded, ignore_same)
    try:
        searches = ordered(embedded.features, embedded.labels, probe, groups)
        by_cosine = cosines(searches)
        judged = judge_retrieval(searches, by_cosine, ranks)
        again = judge_retrieval(searches, reranked(searches, ranks), ranks).figures if rerank else None
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    mated = int(judged.mated.sum())
    return RetrievalResult(
        embedded.name,
        judged.figures,
        again,
        mated,
        len(judged.mated) - mated,
        searches.entries,
        len(searches.gallery_labels.unique()),
        ignore_same,
        ranks.agree(lambda: _examples(embedded, searches, by_cosine, judged, probe), "all"),
    )


def _probes(where: str, embedded: EmbeddedSet) -> Sequence[bool] | None:
    """For each picture whether it is a probe; None where no picture has a role."""
    if all(role is None for role in embedded.roles):
        return None
    for key, role in zip(embedded.keys, embedded.roles, strict=True):
        if role not in ROLES:
            raise UserError(
                f"{where}: picture {key} has role {role!r} in its .json, others have one; expected one of {ROLES} for "
                "all, or none for any"
            )
    return [role == "probe" for role in embedded.roles]


def _groups(where: str, embedded: EmbeddedSet, field: str) -> Tensor:
    """A number for each value of a field, int64 [N]."""
    numbers: dict[object, int] = {}
    for key, value in zip(embedded.keys, embedded.columns[field], strict=True):
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{where}: picture {key} has {value!r} as its {field!r}, expected a text or a number; --ignore-same "
                "(ignore_same) needs the field in the .json of every picture"
            )
        numbers.setdefault(value, len(numbers))
    return torch.tensor([numbers[value] for value in embedded.columns[field]])


def _examples(
    embedded: EmbeddedSet, searches: Searches, scores: Scores, judged: Judged, probe: Sequence[bool] | None
) -> list[Example]:
    """Searches from the worst to the median, with their pictures; none of what has no pictures."""
    if not embedded.path.is_dir():
        return []
    mated = judged.mated.nonzero().squeeze(1)
    by_precision = mated[torch.argsort(judged.precision[mated], stable=True)]
    chosen = dict.fromkeys(int(by_precision[int(share * (len(mated) - 1))]) for share in _EXAMPLES)
    everyone = torch.arange(len(embedded))
    probes = everyone if probe is None else everyone[torch.tensor(probe)]
    entries = everyone if probe is None else everyone[~torch.tensor(probe)]
    entries = entries[torch.argsort(embedded.labels[entries], stable=True)]  # as `ordered` has them
    made = []
    with StoredSet(embedded.path) as pictures:
        for number in chosen:
            values = scores(slice(number, number + 1))[0]
            label = searches.labels[number]
            if searches.itself is not None:
                values[searches.itself[number]] = -torch.inf
            if searches.groups is not None and searches.gallery_groups is not None:
                same = (searches.gallery_labels == label) & (searches.gallery_groups == searches.groups[number])
                values[same] = -torch.inf
            best = values.topk(min(SHOWN, int(torch.isfinite(values).sum())))
            found = [
                Found(pictures.read(int(entries[row])), score, bool(searches.gallery_labels[row] == label))
                for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            made.append(Example(pictures.read(int(probes[number])), float(judged.precision[number]), found))
    return made
