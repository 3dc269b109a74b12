"""1:N identification: every probe against a gallery, exactly, by blocks and over ranks.

Closed set: the rank of a probe's mate, and the cumulative match characteristic. Open set: the share of searches whose
mate is accepted (TPIR) at a threshold where a share of searches without a mate accept somebody (FPIR); definitions of
ISO/IEC 19795-1 without a limit of the candidate list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.batches import EmbedFn
from dist_train.evaluate.embeddings import embed_pictures, rank_slice
from dist_train.evaluate.pictures import decoding
from dist_train.evaluate.sameness import warn_of_sameness
from dist_train.evaluate.search import TIE, score_blocks
from dist_train.evaluate.sets import RoleSet
from dist_train.runtime.ranks import ALONE, Ranks

CMC_RANKS = 100
FPIRS = (0.1, 0.01)


@dataclass(frozen=True)
class IdentificationResult:
    """What a model achieves on an identification set.

    Attributes:
        name: of the set.
        rank1: share of mated probes whose mate comes first.
        rank5: share of those whose mate is among the first five.
        cmc: share whose mate is among the first k, for k = 1, 2, ... [<= 100].
        tpir_at_fpir: by demanded FPIR; nan where there are too few searches to measure it.
        probes: number of mated probes.
        gallery: number of gallery entries.
        identities: number of enrolled identities.
        mate_scores: cosine of each mated probe and its best mate, float32 [probes].
        impostor_scores: best cosine of each search without a mate, float32.
    """

    name: str
    rank1: float
    rank5: float
    cmc: np.ndarray
    tpir_at_fpir: dict[float, float]
    probes: int
    gallery: int
    identities: int
    mate_scores: np.ndarray
    impostor_scores: np.ndarray

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "probes": self.probes,
            "gallery": self.gallery,
            "identities": self.identities,
            "rank1": self.rank1,
            "rank5": self.rank5,
            "cmc": self.cmc.tolist(),
            "tpir_at_fpir": {f"{fpir:g}": None if np.isnan(tpir) else tpir for fpir, tpir in self.tpir_at_fpir.items()},
        }


@dataclass(frozen=True)
class SearchOutcome:
    """What the search of each probe gave.

    Attributes:
        mate: cosine with the best gallery entry of the same identity, -inf without one, float32 [P].
        other: best cosine with an entry of another identity, -inf without one, float32 [P].
        rank: place of the best mate, 1 is first; entries of other identities that score the same, to within `TIE`,
            count as better. Meaningless without a mate. int64 [P].
    """

    mate: Tensor
    other: Tensor
    rank: Tensor


def search_gallery(
    probes: Tensor,
    probe_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    ranks: Ranks = ALONE,
) -> SearchOutcome:
    """Search every probe in the whole gallery; each rank takes a contiguous part of the gallery.

    Collectives (with several ranks): three all-reduces of [P].

    Args:
        probes: unit rows [P, D], the same on every rank.
        probe_labels: int64 [P].
        gallery: unit rows [N, D], the same on every rank.
        gallery_labels: int64 [N].
        ranks: the processes that share the work.

    Raises:
        UserError: empty gallery or no probes, or labels that do not fit.
    """
    if not len(gallery) or not len(probes):
        raise UserError(f"{len(probes)} probes and {len(gallery)} gallery entries; expected some of both")
    if len(probe_labels) != len(probes) or len(gallery_labels) != len(gallery):
        raise UserError(
            f"{len(probe_labels)} labels for {len(probes)} probes, {len(gallery_labels)} for {len(gallery)} "
            "gallery entries; expected one each"
        )
    start, stop = rank_slice(len(gallery), ranks.rank, ranks.world_size)
    part, part_labels = gallery[start:stop], gallery_labels[start:stop]
    mate_rows, mate_columns = mate_pairs(probe_labels, part_labels)
    mate = torch.full((len(probes),), -torch.inf)
    pair_scores = paired_products(probes, part, mate_rows, mate_columns)
    mate.scatter_reduce_(0, mate_rows, pair_scores, "amax")
    _reduce(mate, dist.ReduceOp.MAX, ranks)
    as_good = mate - TIE  # from here on another entry counts as better

    better = torch.zeros(len(probes), dtype=torch.int64)
    other = torch.full((len(probes),), -torch.inf)
    if len(part):
        by_column = torch.argsort(mate_columns, stable=True)
        mate_rows, mate_columns = mate_rows[by_column], mate_columns[by_column]
        for rows, columns, scores in score_blocks(probes, part):
            # Mates are taken out: they cannot come before the best of them.
            first, last = torch.searchsorted(mate_columns, torch.tensor([columns.start, columns.stop])).tolist()
            own_rows, own_columns = mate_rows[first:last], mate_columns[first:last] - columns.start
            inside = (own_rows >= rows.start) & (own_rows < rows.stop)
            scores[own_rows[inside] - rows.start, own_columns[inside]] = -torch.inf
            best = scores.amax(dim=1)
            other[rows] = torch.maximum(other[rows], best)
            beaten = (best >= as_good[rows]).nonzero().squeeze(1)  # most probes of a good model are not
            better[beaten + rows.start] += (scores[beaten] >= as_good[rows][beaten, None]).sum(dim=1)
    _reduce(other, dist.ReduceOp.MAX, ranks)
    _reduce(better, dist.ReduceOp.SUM, ranks)
    return SearchOutcome(mate, other, better + 1)


def mate_pairs(probe_labels: Tensor, gallery_labels: Tensor) -> tuple[Tensor, Tensor]:
    """All (probe, gallery entry) numbers of the same identity."""
    order = torch.argsort(gallery_labels, stable=True)
    ranked = gallery_labels[order]
    low = torch.searchsorted(ranked, probe_labels, side="left")
    counts = torch.searchsorted(ranked, probe_labels, side="right") - low  # [P]
    rows = torch.repeat_interleave(torch.arange(len(probe_labels)), counts)
    within = torch.arange(len(rows)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return rows, order[low[rows] + within]


def paired_products(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor, block: int = 65536) -> Tensor:
    """Inner products of the rows left[rows[i]] and right[columns[i]], [n], in bounded memory."""
    parts = [(left[rows[i : i + block]] * right[columns[i : i + block]]).sum(dim=1) for i in range(0, len(rows), block)]
    return torch.cat(parts) if parts else left.new_zeros(0)


def _reduce(values: Tensor, operation: dist.ReduceOp.RedOpType, ranks: Ranks) -> None:
    if ranks.control_group is not None:
        dist.all_reduce(values, operation, group=ranks.control_group)


def tpir_at_fpir(mate: np.ndarray, impostor: np.ndarray, fpirs: Sequence[float] = FPIRS) -> dict[float, float]:
    """Share of mated searches that accept their mate, at thresholds set by searches without a mate.

    Args:
        mate: score of the mate, for each mated search.
        impostor: best score, for each search without a mate.
        fpirs: demanded shares of `impostor` at or above the threshold.

    Returns:
        By FPIR; nan where there are fewer than 1 / FPIR searches without a mate.
    """
    ranked = np.sort(impostor)[::-1]
    result = {}
    for fpir in fpirs:
        allowed = int(fpir * len(ranked) + 1e-9)
        # A threshold above the first score that must not be accepted any more, and above what equals it.
        result[fpir] = float((mate > ranked[allowed] + TIE).mean()) if 1 <= allowed < len(ranked) else float("nan")
    return result


def judge_search(name: str, outcome: SearchOutcome, gallery_labels: Tensor, closed: bool) -> IdentificationResult:
    """The protocol's figures from the searches' outcome.

    Args:
        name: of the set.
        outcome: of all probes.
        gallery_labels: int64 [N].
        closed: every probe is also counted as a search without a mate, as if its identity were not enrolled;
            else only probes that have no mate are.

    Raises:
        UserError: no probe has a mate.
    """
    mated = torch.isfinite(outcome.mate)
    if not bool(mated.any()):
        raise UserError(f"identification set {name}: no probe's identity is in the gallery")
    ranks = outcome.rank[mated].numpy()
    impostor = outcome.other if closed else outcome.other[~mated]
    impostor = impostor[torch.isfinite(impostor)]
    counts = np.bincount(np.minimum(ranks, CMC_RANKS + 1), minlength=CMC_RANKS + 2)[1 : CMC_RANKS + 1]
    cmc = np.cumsum(counts)[: min(CMC_RANKS, len(gallery_labels))] / len(ranks)
    mate = outcome.mate[mated].numpy()
    return IdentificationResult(
        name=name,
        rank1=float((ranks <= 1).mean()),
        rank5=float((ranks <= 5).mean()),
        cmc=cmc,
        tpir_at_fpir=tpir_at_fpir(mate, impostor.numpy()),
        probes=len(ranks),
        gallery=len(gallery_labels),
        identities=len(gallery_labels.unique()),
        mate_scores=mate,
        impostor_scores=impostor.numpy(),
    )


def evaluate_identification(
    embed_fn: EmbedFn,
    set_dir: Path,
    image_size: int,
    batch_size: int,
    ranks: Ranks = ALONE,
    *,
    flip: bool = True,
    gallery_embed_fn: EmbedFn | None = None,
) -> IdentificationResult:
    """Identify the probes of a set among its gallery, over all ranks; every rank gets the same result.

    FPIR comes from the same probes, each searched once more as if its identity were not enrolled.

    Args:
        embed_fn: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        set_dir: shards whose samples' `.json` has "role": "gallery" or "probe".
        image_size: side of the network's input in pixels.
        batch_size: pictures per rank and forward pass.
        ranks: the processes that share the work.
        flip: add the mirrored picture's embedding.
        gallery_embed_fn: embeds the gallery, as an older model has done; None: `embed_fn`.

    Raises:
        UserError: no such set, or one without roles, gallery or probes.
        WorkError: a damaged picture or embeddings that are not finite.
    """
    name = f"identification set {set_dir}"
    with ranks.agree(lambda: RoleSet(set_dir), "all") as samples:
        load = decoding(samples.read, image_size, name)
        embed = partial(embed_pictures, batch_size=batch_size, flip=flip, name=name, ranks=ranks)
        embeddings = embed(embed_fn, load, len(samples))
        older = None
        if gallery_embed_fn is not None:
            entries = np.flatnonzero(samples.is_gallery)
            older = embed(gallery_embed_fn, lambda number: load(int(entries[number])), len(entries))
        labels, is_gallery = torch.from_numpy(samples.labels), torch.from_numpy(samples.is_gallery)
    features = embeddings.normalized()
    if older is not None:
        features[is_gallery] = older.normalized()
    if ranks.rank == 0:
        warn_of_sameness(name, features, labels)
    gallery_labels = labels[is_gallery]
    outcome = search_gallery(
        features[~is_gallery],
        labels[~is_gallery],
        features[is_gallery],
        gallery_labels,
        ranks=ranks,
    )
    return judge_search(Path(set_dir).resolve().name, outcome, gallery_labels, closed=True)
