"""Identification among distractors: MegaFace's protocol (Kemelmacher-Shlizerman et al. 2016).

Each pair of pictures of an identity is one search: the first picture is the probe, the second its mate, hidden among n
distractors, which are pictures of strangers. Rank-1 is the share of searches whose mate comes first, for n = 10, 100,
1,000, ... and all; the smaller sets of distractors are random parts of the larger ones. Verification counts the same
pairs against all pairs of a probe and a distractor. Distractors are embedded, searched and forgotten block by block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.batches import EmbedFn, embed_batches
from dist_train.evaluate.curves import TarAtFar
from dist_train.evaluate.embeddings import embed_pictures, rank_slice
from dist_train.evaluate.identification import CMC_RANKS, mate_pairs, paired_products
from dist_train.evaluate.pictures import decoding
from dist_train.evaluate.sameness import warn_of_sameness
from dist_train.evaluate.search import GALLERY_BLOCK, TIE, score_blocks
from dist_train.evaluate.sets import ROLES, StoredSet
from dist_train.runtime.ranks import ALONE, Ranks

FARS = (1e-6, 1e-5, 1e-4)
_SEED = 0  # of the parts of the distractors
_SPARE_SCORES = 1 << 20


@dataclass(frozen=True)
class DistractorResult:
    """What a model achieves among distractors.

    Attributes:
        name: of the set and of the distractors' set.
        rank1: share of searches whose mate comes first, by number of distractors, rising.
        cmc: among all distractors, share whose mate is among the first k, for k = 1 .. 100.
        tar_at_far: by demanded FAR, exact over all pairs of a probe and a distractor.
        probes: number of pictures that are searched.
        searches: number of pairs of a probe and a mate.
    """

    name: str
    rank1: dict[int, float]
    cmc: np.ndarray
    tar_at_far: dict[float, TarAtFar]
    probes: int
    searches: int

    @property
    def distractors(self) -> int:
        """Number of all distractors."""
        return max(self.rank1)

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "probes": self.probes,
            "searches": self.searches,
            "distractors": self.distractors,
            "rank1": {str(count): share for count, share in self.rank1.items()},
            "rank5": float(self.cmc[4]),
            "cmc": self.cmc.tolist(),
            "tar_at_far": {f"{far:g}": entry.tar for far, entry in self.tar_at_far.items()},
            "unresolved_fars": [f"{far:g}" for far, entry in self.tar_at_far.items() if not entry.resolved],
        }


class Mates:
    """The searches: which probe, and how its mate scores.

    Attributes:
        probes: unit rows [P, D].
        row: number of each search's probe, int64 [M].
        score: cosine of its probe and its mate, float32 [M].
    """

    def __init__(self, features: Tensor, labels: Tensor, is_gallery: Tensor | None) -> None:
        """From unit rows [N, D] and labels [N]; without a gallery every picture is a probe and each other one a mate.

        Raises:
            UserError: no identity has two pictures.
        """
        if is_gallery is None:
            self.probes, mates = features, features
            rows, columns = mate_pairs(labels, labels)
            rows, columns = rows[rows != columns], columns[rows != columns]
        else:
            self.probes, mates = features[~is_gallery], features[is_gallery]
            rows, columns = mate_pairs(labels[~is_gallery], labels[is_gallery])
        if not len(rows):
            raise UserError("no probe has a second picture of its identity to be found")
        self.row, self.score = rows, paired_products(self.probes, mates, rows, columns)


class DistractorScores:
    """The best scores of distractors, collected block by block in memory that does not grow with their number.

    Args:
        probes: unit rows [P, D].
        tail: how many of the highest scores of all probes together are kept.

    Attributes:
        best: the highest scores of each probe, falling, -inf where there are fewer, [P, 100].
    """

    def __init__(self, probes: Tensor, tail: int) -> None:
        self._probes, self._tail = probes, tail
        self.best = probes.new_full((len(probes), CMC_RANKS), -torch.inf)
        self._highest = probes.new_empty(0)
        self._candidates: list[Tensor] = []
        self._floor, self._waiting = -torch.inf, 0

    def add(self, block: Tensor) -> None:
        """Search all probes in `block`, unit rows [n, D]."""
        for rows, _, scores in score_blocks(self._probes, block):
            highest = scores.amax(dim=1)  # far cheaper than a selection, and most rows need none
            above = scores[highest > self._floor]
            self._candidates.append(above[above > self._floor])
            self._waiting += len(self._candidates[-1])
            if self._waiting > self._tail + _SPARE_SCORES:
                self.highest()
            hopeful = (highest > self.best[rows, -1]).nonzero().squeeze(1)
            if len(hopeful):
                chosen = scores[hopeful].topk(min(CMC_RANKS, scores.shape[1]), dim=1).values
                merged = torch.cat([self.best[rows][hopeful], chosen], dim=1).topk(CMC_RANKS, dim=1).values
                self.best[hopeful + rows.start] = merged

    def highest(self) -> Tensor:
        """The highest scores of all so far, falling, at most `tail`."""
        every = torch.cat([self._highest, *self._candidates])
        self._highest = every.topk(min(self._tail, len(every))).values
        self._candidates, self._waiting = [], 0
        if len(self._highest) == self._tail:
            self._floor = float(self._highest[-1])
        return self._highest


def distractor_counts(count: int) -> list[int]:
    """10, 100, 1,000, ... below `count`, and `count` itself."""
    return [10**k for k in range(1, 19) if 10**k < count] + [count]


def distractor_parts(count: int, ranks: Ranks) -> Iterator[np.ndarray]:
    """For each of `distractor_counts` the numbers that it adds to the one before, as far as this rank works on them.

    The parts are random; numbers in a part rise, so that shards are read from front to back.
    """
    order = np.random.default_rng(_SEED).permutation(count)
    start = 0
    for stop in distractor_counts(count):
        part = np.sort(order[start:stop])
        yield part[slice(*rank_slice(len(part), ranks.rank, ranks.world_size))]
        start = stop


def judge_distractors(
    name: str, mates: Mates, best: Sequence[Tensor], places: Tensor, highest: Tensor, distractors: int
) -> DistractorResult:
    """The protocol's figures.

    Args:
        name: of the sets.
        mates: the searches.
        best: the best score [P] of a distractor for each of `distractor_counts(distractors)`.
        places: how many of all distractors score at least as high as the mate of each search, [M]; above 99 any number.
        highest: the highest scores of all pairs of a probe and a distractor, falling.
        distractors: their number.
    """
    rank1 = {
        count: float((mates.score > scores[mates.row] + TIE).float().mean())
        for count, scores in zip(distractor_counts(distractors), best, strict=True)
    }
    found = np.bincount(places.clamp(max=CMC_RANKS).numpy(), minlength=CMC_RANKS + 1)[:CMC_RANKS]
    negatives = len(mates.probes) * distractors
    tars = {}
    for far in FARS:
        allowed = int(far * negatives * (1 + 1e-12))
        barred = float(highest[allowed]) if allowed < len(highest) else -torch.inf
        share = float((mates.score > barred + TIE).float().mean())
        tars[far] = TarAtFar(far, share, int((highest > barred + TIE).sum()) / negatives, negatives)
    return DistractorResult(
        name, rank1, np.cumsum(found) / len(places), tars, len(mates.probes), searches=len(mates.score)
    )


def search_distractors(
    name: str,
    mates: Mates,
    parts: Iterator[Iterator[Tensor]],
    distractors: int,
    ranks: Ranks = ALONE,
) -> DistractorResult:
    """Search the mates among distractors and judge the searches.

    Collectives (with several ranks): a gather of messages, all-reduces of [C, P] and [M], an all-gather of the tail.

    Args:
        name: of the sets.
        mates: the searches, the same on every rank.
        parts: this rank's share of the distractors that each of `distractor_counts` adds, as blocks of unit rows.
        distractors: their number over all ranks.
        ranks: the processes that share the work.
    """
    tail = int(max(FARS) * len(mates.probes) * distractors) + 2
    scores = DistractorScores(mates.probes, tail)

    def search() -> Tensor:
        bests = []
        for part in parts:
            for block in part:
                scores.add(block)
            bests.append(scores.best[:, 0].clone())
        return torch.stack(bests)

    best = ranks.agree(search, "all")
    places = torch.cat(
        [
            (scores.best[rows] >= score[:, None] - TIE).sum(dim=1)
            for rows, score in zip(mates.row.split(1 << 16), mates.score.split(1 << 16), strict=True)
        ]
    )
    highest = scores.highest()
    if (group := ranks.control_group) is not None:
        dist.all_reduce(best, dist.ReduceOp.MAX, group=group)
        dist.all_reduce(places, group=group)
        mine = torch.nn.functional.pad(highest, (0, tail - len(highest)), value=-torch.inf)
        tails = [torch.empty_like(mine) for _ in range(ranks.world_size)]
        dist.all_gather(tails, mine, group=group)
        highest = torch.cat(tails).topk(tail).values
        highest = highest[torch.isfinite(highest)]
    return judge_distractors(name, mates, list(best), places, highest, distractors)


def evaluate_distractors(
    embed_fn: EmbedFn,
    set_dir: Path,
    distractor_dir: Path,
    image_size: int,
    batch_size: int,
    ranks: Ranks = ALONE,
    *,
    flip: bool = True,
) -> DistractorResult:
    """Identify the pictures of a set among the distractors of another, over all ranks; all get the same result.

    Args:
        embed_fn: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        set_dir: shards. Where samples have the roles "gallery" and "probe", these say who is mate and who probe;
            without any roles every picture is a probe, and each other picture of its identity a mate.
        distractor_dir: shards of strangers; labels are not looked at.
        image_size: side of the network's input in pixels.
        batch_size: pictures per rank and forward pass.
        ranks: the processes that share the work.
        flip: add the mirrored picture's embedding.

    Raises:
        UserError: no such set, roles on some samples only, no two pictures of an identity, or no distractors.
        WorkError: a damaged picture or embeddings that are not finite.
    """
    name, other = f"set {set_dir}", f"distractors {distractor_dir}"

    def read() -> tuple[StoredSet, StoredSet, Tensor, Tensor | None]:
        samples, strangers = StoredSet(set_dir), StoredSet(distractor_dir, labelled=False)
        labels, roles = samples.labels_and_roles()
        odd = [number for number, role in enumerate(roles) if role not in ROLES]
        if odd and any(role is not None for role in roles):
            raise UserError(
                f"{name}: sample {samples.sample(odd[0]).key} has role {roles[odd[0]]!r} in its .json; expected one of "
                f"{ROLES} in all of them, or in none"
            )
        if not len(strangers):
            raise UserError(f"{other}: no pictures in it")
        is_gallery = None if odd else torch.tensor([role == "gallery" for role in roles])
        return samples, strangers, torch.from_numpy(labels), is_gallery

    samples, strangers, labels, is_gallery = ranks.agree(read, "all")
    with samples, strangers:
        load = decoding(samples.read, image_size, name)
        found = embed_pictures(
            embed_fn,
            load,
            len(samples),
            batch_size,
            flip=flip,
            name=name,
            ranks=ranks,
        )
        if ranks.rank == 0:
            warn_of_sameness(name, found.features, labels)
        try:
            mates = Mates(found.normalized(), labels, is_gallery)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error

        def blocks(numbers: np.ndarray) -> Iterator[Tensor]:
            waiting: list[Tensor] = []
            load = decoding(strangers.read, image_size, other)
            for _, features, _ in embed_batches(embed_fn, load, numbers, batch_size, flip=flip, name=other):
                waiting.append(torch.nn.functional.normalize(features, dim=1))
                if sum(map(len, waiting)) >= GALLERY_BLOCK:
                    yield torch.cat(waiting)
                    waiting = []
            if waiting:
                yield torch.cat(waiting)

        parts = (blocks(numbers) for numbers in distractor_parts(len(strangers), ranks))
        both = f"{Path(set_dir).resolve().name} + {Path(distractor_dir).resolve().name}"
        return search_distractors(both, mates, parts, len(strangers), ranks)
