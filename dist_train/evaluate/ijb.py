"""IJB-B and IJB-C: templates of many pictures and frames, 1:1 and 1:N, from their file layout.

A picture's feature is (f(picture) + f(mirrored picture)) times its detector score; a medium's the mean over its
pictures; a template's the sum over its media, normalised (protocols: Whitelam et al. 2017, Maze et al. 2018). That is
linear in the pictures' features, so templates are summed up batch by batch and no picture's feature is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.errors import UserError, WorkError
from dist_train.evaluate.alignment import align_face
from dist_train.evaluate.curves import Roc, TarAtFar, roc, tar_at_far, thin
from dist_train.evaluate.embed import EmbedFn, embed_batches, rank_slice, together
from dist_train.evaluate.identification import IdentificationResult, judge_search, search_gallery

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
KINDS = ("ijbb", "ijbc")
GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
_PAIR_BLOCK = 8192  # pairs scored at a time: two blocks of features that stay in the caches


@dataclass(frozen=True)
class IjbResult:
    """What a model achieves on IJB-B or IJB-C.

    Attributes:
        name: `ijbb` or `ijbc`.
        tar_at_far: 1:1, by demanded FAR, exact over all pairs.
        curve: the ROC, thinned for drawing.
        templates: number of templates.
        pairs: number of pairs.
        positives: pairs of the same identity.
        identification: 1:N, one result per gallery that the layout has.
    """

    name: str
    tar_at_far: dict[float, TarAtFar]
    curve: Roc
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


class Layout(NamedTuple):
    """The pictures of a set and the templates that they belong to.

    Attributes:
        kind: `ijbb` or `ijbc`.
        root: directory that holds `meta` and `loose_crop`.
        names: file names of the pictures, [N].
        landmarks: float64 [N, 5, 2], pixels in the loose crops.
        scores: of the detector, float32 [N].
        picture: number of the picture of each row, sorted, [R]; a picture may belong to several templates.
        template: number of the template of each row, [R].
        weight: detector score / pictures of the row's medium in its template, float32 [R].
        template_ids: the set's own ids of templates 0 .. T - 1, sorted.
    """

    kind: str
    root: Path
    names: list[str]
    landmarks: np.ndarray
    scores: np.ndarray
    picture: np.ndarray
    template: np.ndarray
    weight: np.ndarray
    template_ids: np.ndarray


def ijb_kind(root: Path) -> str | None:
    """`ijbb` or `ijbc` if `root` holds such a set, else None."""
    return next((kind for kind in KINDS if (root / "meta" / f"{kind}_face_tid_mid.txt").exists()), None)


def read_layout(root: Path) -> Layout:
    """Read which pictures a set has, where the faces in them are, and their templates.

    Raises:
        UserError: a file is missing or malformed, or a template's picture is not listed.
    """
    kind = ijb_kind(root)
    if kind is None:
        raise UserError(f"{root}: no IJB set: meta/ijbb_face_tid_mid.txt or meta/ijbc_face_tid_mid.txt is not there")
    faces = root / "meta" / f"{kind}_name_5pts_score.txt"
    names, values = [], []
    for number, words in _lines(faces, 12):
        names.append(words[0])
        values.append(_floats(faces, number, words[1:]))
    table = np.array(values)
    index = {name: number for number, name in enumerate(names)}
    members = root / "meta" / f"{kind}_face_tid_mid.txt"
    rows = []
    for number, words in _lines(members, 3):
        if words[0] not in index:
            raise UserError(f"{members}, line {number}: picture {words[0]} is not in {faces.name}")
        rows.append((index[words[0]], int(words[1]), int(words[2])))
    picture, template_id, media = np.array(sorted(rows), dtype=np.int64).T
    template_ids, template = np.unique(template_id, return_inverse=True)
    _, medium, counts = np.unique(np.stack([template, media]), axis=1, return_inverse=True, return_counts=True)
    weight = table[picture, 10] / counts[medium]
    return Layout(
        kind,
        root,
        names,
        table[:, :10].reshape(-1, 5, 2),
        table[:, 10].astype(np.float32),
        picture,
        template,
        weight.astype(np.float32),
        template_ids,
    )


def _lines(path: Path, words: int) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                parts = line.split()
                if len(parts) != words:
                    raise UserError(f"{path}, line {number}: {len(parts)} words, expected {words}")
                yield number, parts
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _floats(path: Path, number: int, words: list[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error}") from error


def read_pairs(layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 1:1 protocol: numbers of both templates, int32 [n] each, and whether they are the same identity, bool [n].

    Raises:
        UserError: missing or malformed, or a template without pictures.
    """
    import pyarrow as pa
    from pyarrow import csv

    path = layout.root / "meta" / f"{layout.kind}_template_pair_label.txt"
    columns = ["left", "right", "same"]
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=columns),
            csv.ParseOptions(delimiter=" "),
            csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.int32())),
        )
    except OSError as error:
        raise UserError(f"{path}: {error}") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: expected lines of two templates and 0 or 1: {error}") from error
    left, right, same = (table[name].to_numpy() for name in columns)
    if not np.isin(same, (0, 1)).all():
        raise UserError(f"{path}: a label that is neither 0 nor 1")
    return _numbers(layout, left, path), _numbers(layout, right, path), same.astype(bool)


def _numbers(layout: Layout, ids: np.ndarray, path: Path) -> np.ndarray:
    """Numbers of templates from the set's own ids."""
    found = np.searchsorted(layout.template_ids, ids).clip(max=len(layout.template_ids) - 1)
    missing = layout.template_ids[found] != ids
    if missing.any():
        raise UserError(
            f"{path}: template {ids[missing][0]} has no pictures in {layout.kind}_face_tid_mid.txt "
            f"({int(missing.sum())} such entries)"
        )
    return found.astype(np.int32)


def read_subjects(layout: Layout, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """A list of the 1:N protocol: templates' numbers and their subjects, int64; None where there is no such file.

    Raises:
        UserError: malformed, or a template without pictures.
    """
    path = layout.root / "meta" / f"{layout.kind}_1N_{name}.csv"
    if not path.exists():
        return None
    rows: dict[int, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        words = line.split(",")
        if len(words) < 2 or not (words[0].strip().isdigit() and words[1].strip().isdigit()):
            raise UserError(f"{path}, line {number}: {line[:60]!r}, expected template,subject,...")
        rows[int(words[0])] = int(words[1])  # one line per picture, the same subject in each
    if not rows:
        raise UserError(f"{path}: it lists no templates")
    return _numbers(layout, np.array(list(rows)), path), np.array(list(rows.values()))


def embed_templates(
    embed_fn: EmbedFn,
    layout: Layout,
    image_size: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    group: dist.ProcessGroup | None = None,
    *,
    flip: bool = True,
) -> Tensor:
    """Unit features [T, D] of all templates; pictures are split over ranks.

    Collectives (with a group): one gather of messages, one of widths, one all-reduce of [T, D].

    Raises:
        WorkError: a picture that is missing or damaged, or embeddings that are not finite.
    """

    def load(number: int) -> np.ndarray:
        path = layout.root / "loose_crop" / layout.names[number]
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise WorkError(f"{layout.kind}: picture {path} is missing or damaged")
        return cv2.cvtColor(align_face(picture, layout.landmarks[number], image_size), cv2.COLOR_BGR2RGB)

    def embed_part() -> Tensor | None:
        sums: Tensor | None = None
        numbers = range(*rank_slice(len(layout.names), rank, world_size))
        for part, features, _ in embed_batches(embed_fn, load, numbers, batch_size, flip=flip, name=layout.kind):
            if sums is None:
                sums = torch.zeros(len(layout.template_ids), features.shape[1])
            rows = slice(*np.searchsorted(layout.picture, [part.start, part.stop]))
            weighted = features[layout.picture[rows] - part.start] * torch.from_numpy(layout.weight[rows, None])
            sums.index_add_(0, torch.from_numpy(layout.template[rows]), weighted)
        return sums

    sums = together(embed_part, group)
    if group is not None:
        widths = [0] * world_size
        dist.all_gather_object(widths, 0 if sums is None else sums.shape[1], group=group)
        if sums is None:
            sums = torch.zeros(len(layout.template_ids), max(widths))
        dist.all_reduce(sums, group=group)
    if sums is None:
        raise UserError(f"{layout.root}: no pictures listed")
    return torch.nn.functional.normalize(sums, dim=1)


def score_templates(features: Tensor, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines float32 [n] of pairs of unit template features [T, D]; memory beside the result is two small blocks."""
    scores = torch.empty(len(left))
    first, second = (torch.empty(min(_PAIR_BLOCK, len(left)), features.shape[1]) for _ in range(2))
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    for start in range(0, len(left), _PAIR_BLOCK):
        stop = min(start + _PAIR_BLOCK, len(left))
        one, other = first[: stop - start], second[: stop - start]
        torch.index_select(features, 0, a[start:stop], out=one)
        torch.index_select(features, 0, b[start:stop], out=other)
        torch.sum(one.mul_(other), dim=1, out=scores[start:stop])
    return scores.numpy()


def judge_pairs_of_templates(
    name: str, features: Tensor, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> IjbResult:
    """The 1:1 figures, from template features and pairs; without 1:N results."""
    left, right, same = pairs
    curve = roc(score_templates(features, left, right), same)
    negatives = int((~same).sum())
    return IjbResult(
        name=name,
        tar_at_far={far: tar_at_far(curve, far, negatives) for far in FARS},
        curve=thin(curve),
        templates=len(features),
        pairs=len(same),
        positives=int(same.sum()),
        identification=(),
    )


def evaluate_ijb(
    embed_fn: EmbedFn,
    root: Path,
    image_size: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    group: dist.ProcessGroup | None = None,
    *,
    flip: bool = True,
) -> IjbResult:
    """Evaluate on IJB-B or IJB-C, 1:1 and, where its lists are there, 1:N; every rank gets the same result.

    Args:
        embed_fn: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        root: directory with `meta` and `loose_crop`.
        image_size: side of the network's input in pixels.
        batch_size: pictures per rank and forward pass.
        rank: this process among `world_size`.
        world_size: processes that share the work.
        group: their group over CPU tensors (gloo); None when alone.
        flip: add the mirrored picture's embedding.

    Raises:
        UserError: files missing, malformed or disagreeing.
        WorkError: a picture missing or damaged, or embeddings that are not finite.
    """
    layout = read_layout(root)
    pairs = read_pairs(layout)
    probes = read_subjects(layout, "probe_mixed")
    galleries = [(name, read_subjects(layout, f"gallery_{name}")) for name in GALLERIES[layout.kind]]
    features = embed_templates(embed_fn, layout, image_size, batch_size, rank, world_size, group, flip=flip)
    searched = []
    for name, gallery in galleries:
        if probes is None or gallery is None:
            continue
        labels = torch.from_numpy(gallery[1])
        outcome = search_gallery(
            features[probes[0]],
            torch.from_numpy(probes[1]),
            features[gallery[0]],
            labels,
            rank=rank,
            world_size=world_size,
            group=group,
        )
        # A subject is enrolled in one of the two galleries: its probes are the strangers of the other.
        searched.append(judge_search(f"{layout.kind} {name}", outcome, labels, closed=False))
    result = judge_pairs_of_templates(layout.kind, features, pairs)
    return replace(result, identification=tuple(searched))
