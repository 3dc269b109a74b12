"""A detector of faces by a one-stage network in an ONNX file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.detectors.decoded import Decoded, Head
from data_prep.detectors.graph import Graph, per_picture
from data_prep.detectors.letterbox import CELL_PX, Fit, draw, fit
from data_prep.detectors.retinaface import RetinaFace
from data_prep.detectors.scrfd import Scrfd
from data_prep.detectors.yunet import YuNet
from data_prep.mtcnn.faces import Faces, Picture
from dist_train.errors import UserError, WorkError
from dist_train.runtime.text import shown_start

KINDS = (Scrfd, RetinaFace, YuNet)
MIN_SCORE = 0.5
SIDE_PX = 640
"""Longest side at which pictures go through a network that takes any size: that of these networks' training."""
_MOST_FACES = 5000  # of a picture, before suppression, which compares all pairs
_SHOWN = 12  # most outputs in a message


class OnnxDetector:
    """The detector in an ONNX file, by the kind of network that its outputs show.

    Args:
        path: of the file.
        device: cpu or cuda.
        min_face_px: faces whose longer side is shorter are left out.
        min_score: faces with a lower score are left out.
        batch_px: most pixels of canvases in a call, where the network takes several.
        side_px: longest side at which pictures are searched, where the network takes any.

    Raises:
        UserError: the file cannot be taken (`Graph`), or its outputs are of no known kind.
    """

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        min_face_px: float = 20,
        min_score: float = MIN_SCORE,
        batch_px: int = 8_000_000,
        side_px: int = SIDE_PX,
    ) -> None:
        self._graph = Graph(path, device)
        self._head, self._batched = _recognise(self._graph)
        self._min_face_px, self._min_score = min_face_px, min_score
        self._batch_px, self._side_px = batch_px, side_px
        self.name, self.digest, self.has_points = self._head.name, self._graph.digest, self._head.has_points
        self.sure = self._head.sure

    def detect(self, images: Sequence[Picture]) -> list[Faces]:
        """The faces of each picture, uint8 [height, width, 3], RGB.

        Raises:
            WorkError: onnxruntime failed.
        """
        fits = [fit(image.shape[0], image.shape[1], self._graph.side, self._side_px) for image in images]
        found: list[Faces] = [_NOTHING] * len(images)
        for numbers in self._calls(fits):
            pictures, places = [images[number] for number in numbers], [fits[number] for number in numbers]
            for number, decoded in zip(numbers, self._decoded(draw(pictures, places)), strict=True):
                found[number] = self._faces(decoded, images[number], fits[number])
        return found

    def _calls(self, fits: Sequence[Fit]) -> Iterator[list[int]]:
        """Numbers of the pictures of each call of the network: of one size of canvas, as many as it takes."""
        by_canvas: dict[tuple[int, int], list[int]] = {}
        for number, place in enumerate(fits):
            by_canvas.setdefault(place.canvas, []).append(number)
        for (height, width), numbers in by_canvas.items():
            most = max(1, self._batch_px // (height * width)) if self._batched else 1
            for start in range(0, len(numbers), self._graph.batch or most):
                yield numbers[start : start + (self._graph.batch or most)]

    def _decoded(self, canvases: Picture) -> list[Decoded]:
        """The faces on canvases [n, H, W, 3]; a batch of fixed size is filled with the last one."""
        count, height, width = canvases.shape[:3]
        if self._graph.batch:
            canvases = canvases[np.arange(self._graph.batch).clip(max=count - 1)]
        outputs = per_picture(self._graph.run(self._head.values(canvases)), len(canvases))
        if outputs is None:
            raise WorkError(f"detector {self._graph.path}: other outputs for {len(canvases)} pictures than for one")
        return [self._head.decode(each, height, width, self._min_score) for each in outputs[:count]]

    def _faces(self, decoded: Decoded, picture: Picture, place: Fit) -> Faces:
        """Faces in pixels of the picture, suppressed, the most certain first."""
        boxes, scores, points = decoded
        grown = np.array(picture.shape[1::-1]) / place.size[::-1]  # x, y
        boxes = boxes * np.tile(grown, 2)
        usable = np.isfinite(boxes).all(1) & ((boxes[:, 2:] - boxes[:, :2]).max(1, initial=0) >= self._min_face_px)
        if self.has_points:
            usable &= np.isfinite(points).all((1, 2))
        best = np.flatnonzero(usable)
        best = best[np.argsort(-scores[best], kind="stable")[:_MOST_FACES]]
        kept = best[_suppressed(boxes[best], scores[best], self._head.overlap)]
        return Faces(
            boxes[kept].astype(np.float32), scores[kept].astype(np.float32), (points[kept] * grown).astype(np.float32)
        )


_NOTHING = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))


def _suppressed(boxes: NDArray[np.float64], scores: NDArray[np.float64], overlap: float) -> NDArray[np.int64]:
    """Numbers of the boxes that survive, the most certain first."""
    import torch

    from data_prep.mtcnn.boxes import suppress

    kept = suppress(
        torch.from_numpy(boxes), torch.from_numpy(scores), torch.zeros(len(boxes), dtype=torch.long), overlap
    )
    return np.asarray(kept.numpy(), np.int64)


def _recognise(graph: Graph) -> tuple[Head, bool]:
    """The kind of a network, and whether it takes several pictures at once, by its outputs for black pictures."""
    height, width = graph.side or (2 * CELL_PX, 3 * CELL_PX)  # not square: so outputs of turned grids differ
    # A graph may declare one picture, or any number, and still have outputs for one alone.
    count = graph.batch or 1
    try:
        outputs = graph.run(np.zeros((count, 3, height, width), np.float32))
    except WorkError as error:  # such as a layer that takes one size of picture alone
        raise UserError(f"{error}; expected a network that takes pictures [{count}, 3, {height}, {width}]") from error
    each = per_picture(outputs, count)
    shapes = [(len(output), output.shape[1]) for output in each[0]] if each else []
    heads = [head for kind in KINDS if each and (head := kind.of(graph.names, shapes, height, width))]
    if not heads:
        listed = [f"{shown_start(name)} {list(out.shape)}" for name, out in zip(graph.names, outputs, strict=True)]
        raise UserError(
            f"detector {graph.path}: outputs {', '.join(listed[:_SHOWN])} for pictures [{count}, 3, {height}, {width}] "
            f"are of no known kind; expected those of {_expected()}"
        )
    return heads[0], graph.batch is None and all(output.ndim == 3 for output in outputs)


def _expected() -> str:
    return (
        "SCRFD (scores, distances and points at strides 8, 16, 32, two anchors), RetinaFace (boxes, two scores and "
        "points a prior), or YuNet (cls_8 ... kps_32)"
    )
