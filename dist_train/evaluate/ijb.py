"""IJB-B and IJB-C: templates of many pictures and frames, 1:1 and 1:N, from their file layout.

A picture's feature is (f(picture) + f(mirrored picture)) times its detector score; a medium's the mean over its
pictures; a template's the sum over its media, normalised (protocols: Whitelam et al. 2017, Maze et al. 2018). That is
linear in the pictures' features, so templates are summed up batch by batch and no picture's feature is kept. On request
pictures weigh by the length of their feature alone, or all the same.
"""

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.data.alignment import align_face
from dist_train.data.pictures import PictureError, check, decode_checked
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.batches import EmbedFn, embed_batches
from dist_train.evaluate.config import Templates
from dist_train.evaluate.curves import DRAWN_POINTS, Histogram, Roc, TarAtFar, histogram, roc, sort_scores, tar_at_far
from dist_train.evaluate.embeddings import rank_slice
from dist_train.evaluate.identification import IdentificationResult, judge_search, search_gallery
from dist_train.evaluate.ijb_layout import Layout, Pairs, Subjects, read_layout, read_pairs, read_subjects
from dist_train.evaluate.sameness import note_on_sameness
from dist_train.runtime.files import read_bounded
from dist_train.runtime.ranks import ALONE, Ranks

_MAX_FILE_BYTES = 64 << 20  # of a picture

logger = logging.getLogger(__name__)

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
_PAIR_BLOCK = 1 << 20  # pairs scored at a time


@dataclass(frozen=True)
class IjbResult:
    """What a model achieves on IJB-B or IJB-C.

    Attributes:
        name: `ijbb` or `ijbc`.
        tar_at_far: 1:1, by demanded FAR, exact over all pairs.
        curve: the ROC, thinned for drawing.
        scores: the spread of the cosines.
        templates: number of templates.
        pairs: number of pairs.
        positives: pairs of the same identity.
        identification: 1:N, one result per gallery that the layout has.
    """

    name: str
    tar_at_far: dict[float, TarAtFar]
    curve: Roc
    scores: Histogram
    templates: int
    pairs: int
    positives: int
    identification: tuple[IdentificationResult, ...]

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "templates": self.templates,
            "pairs": self.pairs,
            "positives": self.positives,
            "tar_at_far": {f"{far:g}": entry.tar for far, entry in self.tar_at_far.items()},
            "unresolved_fars": [f"{far:g}" for far, entry in self.tar_at_far.items() if not entry.resolved],
            "identification": [result.summary() for result in self.identification],
        }


def embed_templates(
    embed_fn: EmbedFn,
    layout: Layout,
    image_size: int,
    batch_size: int,
    ranks: Ranks = ALONE,
    *,
    flip: bool = True,
    unit: bool = False,
) -> Tensor:
    """Unit features [T, D] of all templates; pictures are split over ranks, and their features made `unit` on request.

    Collectives (with several ranks): one gather of messages, one of widths, one all-reduce of [T, D].

    Raises:
        WorkError: a picture that is missing or damaged, or embeddings that are not finite.
    """

    def load(number: int) -> np.ndarray:
        path = layout.root / "loose_crop" / layout.names[number]
        try:
            data = read_bounded(path, _MAX_FILE_BYTES)
            check(data)
            picture = decode_checked(data)
        except (OSError, ValueError, PictureError) as error:
            raise WorkError(f"{layout.kind}: picture {path} is missing or damaged: {error}") from error
        return cv2.cvtColor(align_face(picture, layout.landmarks[number], image_size), cv2.COLOR_BGR2RGB)

    def embed_part() -> Tensor | None:
        sums: Tensor | None = None
        numbers = range(*rank_slice(len(layout.names), ranks.rank, ranks.world_size))
        for part, features, _ in embed_batches(embed_fn, load, numbers, batch_size, flip=flip, name=layout.kind):
            if sums is None:
                sums = torch.zeros(len(layout.template_ids), features.shape[1])
            rows = slice(*np.searchsorted(layout.picture, [part.start, part.stop]))
            if unit:
                features = torch.nn.functional.normalize(features, dim=1)
            weighted = features[layout.picture[rows] - part.start] * torch.from_numpy(layout.weight[rows, None])
            sums.index_add_(0, torch.from_numpy(layout.template[rows]), weighted)
        return sums

    sums = ranks.agree(embed_part, "all")
    if ranks.control_group is not None:
        width = max(ranks.gather(0 if sums is None else sums.shape[1]))
        if sums is None:
            sums = torch.zeros(len(layout.template_ids), width)
        dist.all_reduce(sums, group=ranks.control_group)
    if sums is None:
        raise UserError(f"{layout.root}: no pictures listed")
    return torch.nn.functional.normalize(sums, dim=1)


def score_templates(features: Tensor, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines float32 [n] of pairs of unit template features [T, D]; memory beside the result is that of one block."""
    scores = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), _PAIR_BLOCK):
        part = slice(start, start + _PAIR_BLOCK)
        # The products of chosen rows and columns: pairs are the entries of a sparse matrix [T, T], sorted by row.
        order = np.argsort(left[part], kind="stable")
        bounds = np.searchsorted(left[part][order], np.arange(len(features) + 1))
        columns = right[part][order].astype(np.int64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            chosen = torch.sparse_csr_tensor(
                torch.from_numpy(bounds),
                torch.from_numpy(columns),
                torch.zeros(len(columns)),
                size=(len(features), len(features)),
                check_invariants=False,  # columns need not be sorted here
            )
        products = torch.sparse.sampled_addmm(chosen, features, features.T, beta=0)
        scores[part][order] = products.values().numpy()
    return scores


def judge_pairs_of_templates(name: str, features: Tensor, pairs: Pairs) -> IjbResult:
    """The 1:1 figures, from template features and pairs; without 1:N results.

    Raises:
        UserError: only one kind of pairs.
    """
    scores = sort_scores(score_templates(features, pairs.left, pairs.right), pairs.same)
    for note in note_on_sameness(scores.negatives):
        logger.warning("%s: %s", name, note)
    return IjbResult(
        name=name,
        tar_at_far={far: tar_at_far(scores, far) for far in FARS},
        curve=roc(scores, DRAWN_POINTS),
        scores=histogram(scores),
        templates=len(features),
        pairs=len(pairs.same),
        positives=len(scores.positives),
        identification=(),
    )


def evaluate_ijb(
    embed_fn: EmbedFn,
    root: Path,
    image_size: int,
    batch_size: int,
    ranks: Ranks = ALONE,
    *,
    flip: bool = True,
    templates: Templates = "score",
) -> IjbResult:
    """Evaluate on IJB-B or IJB-C, 1:1 and, where its lists are there, 1:N; every rank gets the same result.

    Args:
        embed_fn: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        root: directory with `meta` and `loose_crop`.
        image_size: side of the network's input in pixels.
        batch_size: pictures per rank and forward pass.
        ranks: the processes that share the work.
        flip: add the mirrored picture's embedding.
        templates: how much a picture weighs in its template: all the same (sum), by the length of its feature (norm),
            or by that and the detector's score (score), as in published figures.

    Raises:
        UserError: files missing, malformed or disagreeing.
        WorkError: a picture missing or damaged, or embeddings that are not finite.
    """

    def read() -> tuple[Layout, Pairs | None, Subjects | None, list[tuple[str, Subjects | None]]]:
        layout = read_layout(root, scored=templates == "score")
        # 15.7 million pairs are held once, however many ranks share the machine; the first judges them.
        pairs = read_pairs(layout) if ranks.rank == 0 else None
        galleries = [(name, read_subjects(layout, f"gallery_{name}")) for name in GALLERIES[layout.kind]]
        return layout, pairs, read_subjects(layout, "probe_mixed"), galleries

    layout, pairs, probes, galleries = ranks.agree(read, "all")
    features = embed_templates(embed_fn, layout, image_size, batch_size, ranks, flip=flip, unit=templates == "sum")
    searched = []
    for name, gallery in galleries:
        if probes is None or gallery is None:
            continue
        labels = torch.from_numpy(gallery.subject)
        outcome = search_gallery(
            features[probes.template],
            torch.from_numpy(probes.subject),
            features[gallery.template],
            labels,
            ranks=ranks,
        )
        # A subject is enrolled in one of the two galleries: its probes are the strangers of the other.
        searched.append(judge_search(f"{layout.kind} {name}", outcome, labels, closed=False))

    def judge() -> IjbResult | None:
        return judge_pairs_of_templates(layout.kind, features, pairs) if pairs is not None else None

    judged = ranks.gather(ranks.agree(judge, "all"))
    return replace(cast(IjbResult, judged[0]), identification=tuple(searched))
