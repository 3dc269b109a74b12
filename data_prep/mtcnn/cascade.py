"""The cascade of three networks, from pictures of mixed sizes to faces.

    pictures ──► all levels of all pictures, packed on canvases ──► P-Net ──► boxes, suppressed per level and picture
             ──► their 24x24 crops ──► R-Net ──► fewer boxes ──► their 48x48 crops ──► O-Net ──► faces, five landmarks

Every step works on the candidates of the whole batch. Memory is bounded: pictures are taken in groups with a limited
number of pixels, canvases have a fixed size, crops go through the networks in chunks.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.mtcnn.boxes import pixels, regress, square, suppress, suppress_nested
from data_prep.mtcnn.faces import Faces, Picture
from data_prep.mtcnn.packing import Canvas, Place, pack
from data_prep.mtcnn.pyramid import CELL, STRIDE, Piece, pieces
from data_prep.mtcnn.weights import Networks, open_networks
from data_prep.mtcnn.windows import CHANNELS, SumTables, cells
from dist_train.errors import UserError
from dist_train.runtime.heap import keep_heap


class Limits(NamedTuple):
    """Sizes of a network's input on a kind of device: enough to keep it busy, little enough for its memory.

    Attributes:
        canvas_px: height and width of P-Net's input, even.
        rnet: candidates in a call of R-Net.
        onet: candidates in a call of O-Net.
    """

    canvas_px: tuple[int, int]
    rnet: int
    onet: int


# On CPU every tensor is smaller than the blocks that `keep_heap` keeps.
LIMITS = {"cpu": Limits((200, 640), 128, 24), "cuda": Limits((2048, 2048), 8192, 4096)}


class _Candidates(NamedTuple):
    """Candidates of the whole batch: pictures [n], boxes [n, 4], scores [n]."""

    picture: Tensor
    boxes: Tensor
    scores: Tensor


class Candidates(NamedTuple):
    """The candidates of a picture, the most certain first.

    Attributes:
        boxes: [n, 4] float32: squares that count from 1 and are inclusive, as in the authors' programs.
        scores: [n] float32, certainty from 0 to 1.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]


class Detector:
    """A detector of faces in batches of pictures of mixed sizes, for one thread at a time."""

    def __init__(
        self,
        device: str | torch.device = "cpu",
        min_face_px: float = 20,
        thresholds: tuple[float, float, float] | None = None,
        factor: float = 0.709,
        overlaps: tuple[float, float, float, float] = (0.5, 0.7, 0.7, 0.7),
        precision: torch.dtype | None = None,
        batch_px: int = 8_000_000,
        weights: Path | Networks | None = None,
    ) -> None:
        """A detector with the pretrained networks, or with others.

        Args:
            device: device of the networks.
            min_face_px: side of the smallest face to be found, in pixels.
            thresholds: of the three networks' scores; None: those that the networks are meant to be used with.
            factor: ratio of one scale of a picture to the scale before.
            overlaps: overlaps above which the less certain of two boxes is dropped: within a scale, across scales,
                after R-Net (intersection over union), after O-Net (intersection over the smaller box).
            precision: type of the networks' numbers. On an H100 float16 was no faster and found other boxes at the
                thresholds: 2 of 209 faces.
            batch_px: most pixels in work at a time, at 16 bytes each; a larger picture is a group of its own.
            weights: a file by `headcount prep train-detector`, or networks, theirs from now on; None: the pretrained
                ones.

        Raises:
            UserError: a value is out of range, there is no such device, or the file of weights is not one.
        """
        if min_face_px < CELL:
            raise UserError(f"min_face_px is {min_face_px}, expected at least {CELL}, the smallest window")
        if not 0.3 <= factor <= 0.95:
            raise UserError(f"factor is {factor}, expected 0.3 to 0.95")
        if batch_px < 1:
            raise UserError(f"batch_px is {batch_px}, expected at least 1")
        networks = weights if isinstance(weights, Networks) else open_networks(weights)
        thresholds = networks.thresholds if thresholds is None else thresholds
        for name, values in (("thresholds", thresholds), ("overlaps", overlaps)):
            if not all(0 < value < 1 for value in values):
                raise UserError(f"{name} are {values}, expected numbers between 0 and 1")
        self.device = _device(device)
        self.min_face_px, self.factor = min_face_px, factor
        self.thresholds, self.overlaps = thresholds, overlaps
        self.precision = precision
        self.batch_px = batch_px
        self._limits = LIMITS[self.device.type]
        self._pnet, self._rnet, self._onet = networks.pnet, networks.rnet, networks.onet
        for network in (self._pnet, self._rnet, self._onet):
            network.eval().requires_grad_(False).to(self.device, self.precision)
            network.to(memory_format=torch.channels_last)
        self._buffer = np.empty((0, CHANNELS), np.int32)
        if self.device.type == "cpu":
            keep_heap()

    @torch.inference_mode()
    def detect(self, images: Sequence[Picture]) -> list[Faces]:
        """The faces of each picture.

        Args:
            images: uint8 [height, width, 3], RGB, of any sizes.

        Raises:
            UserError: an image has another type or shape.
        """
        _check(images)
        return [faces for group in _groups(images, self.batch_px) for faces in self._detect(group)]

    @torch.inference_mode()
    def candidates(self, images: Sequence[Picture], after: Literal["pnet", "rnet"]) -> list[Candidates]:
        """What the first networks leave of each picture for the next one, the most certain first; see `detect`."""
        _check(images)
        found: list[Candidates] = []
        for group in _groups(images, self.batch_px):
            tables = self._tables(group)
            given = self._propose(tables)
            given = given if after == "pnet" else self._refine(tables, given)
            order = given.scores.argsort(descending=True, stable=True)
            picture, boxes, scores = (values[order].cpu().numpy() for values in given)
            mine = (np.flatnonzero(picture == number) for number in range(len(group)))
            found += [Candidates(boxes[each], scores[each]) for each in mine]
        return found

    def _tables(self, images: Sequence[Picture]) -> SumTables:
        needed = sum(cells(image) for image in images)
        if len(self._buffer) < needed:
            self._buffer = np.empty((needed, CHANNELS), np.int32)
        return SumTables(images, self._buffer, self.device)

    def _detect(self, images: Sequence[Picture]) -> list[Faces]:
        tables = self._tables(images)
        found, landmarks = self._output(tables, self._refine(tables, self._propose(tables)))
        order = found.scores.argsort(descending=True, stable=True)
        picture, boxes, scores, points = (
            values[order].cpu().numpy() for values in (found.picture, found.boxes, found.scores, landmarks)
        )
        return [
            Faces(boxes[mine], scores[mine], points[mine])
            for mine in (np.flatnonzero(picture == number) for number in range(len(images)))
        ]

    def _propose(self, tables: SumTables) -> _Candidates:
        """Candidates of P-Net over all levels."""
        height, width = self._limits.canvas_px
        todo = [
            piece
            for number, shape in enumerate(tables.shapes)
            for piece in pieces(number, shape, self.min_face_px, self.factor, height, width)
        ]
        places, canvases = _packed(tuple((piece.height, piece.width) for piece in todo), height, width)
        content: list[list[tuple[Piece, Place]]] = [[] for _ in canvases]
        for piece, place in zip(todo, places, strict=True):
            content[place.canvas].append((piece, place))
        hits = [self._propose_on(tables, *both) for both in zip(canvases, content, strict=True)]
        picture, level, boxes, scores, offsets = (
            torch.cat(values) for values in zip(*hits, _nothing(self.device), strict=True)
        )
        kept = suppress(boxes, scores, picture * (level.amax() + 1) + level if len(level) else level, self.overlaps[0])
        kept = kept[suppress(boxes[kept], scores[kept], picture[kept], self.overlaps[1])]
        return _Candidates(picture[kept], square(regress(boxes[kept], offsets[kept], 0)), scores[kept])

    def _propose_on(
        self, tables: SumTables, canvas: Canvas, content: list[tuple[Piece, Place]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Picture [n], level [n], box [n, 4], score [n] and regression [n, 4] of the windows above the threshold."""
        # Pixels outside of all pieces stay zero; windows in them belong to no picture.
        canvas_pixels = torch.zeros(canvas.height, canvas.width, CHANNELS, device=self.device)
        owner = np.full((canvas.height // STRIDE, canvas.width // STRIDE), -1, np.int64)
        for number, (piece, at) in enumerate(content):
            part = canvas_pixels[at.top : at.top + piece.height, at.left : at.left + piece.width]
            tables.level(piece.picture, *piece.size, piece.top, piece.left, part)
            y, x = at.top // STRIDE, at.left // STRIDE
            beyond = (CELL - STRIDE) // STRIDE  # windows that begin in the piece but do not end in it
            owner[y : y + piece.height // STRIDE - beyond, x : x + piece.width // STRIDE - beyond] = number
        logits, features = self._pnet(canvas_pixels.permute(2, 0, 1)[None].to(self.precision))
        row, column = (logits[0] >= _logit(self.thresholds[0])).nonzero().unbind(1)
        piece_of = torch.from_numpy(owner).to(self.device)[row, column]
        owned = piece_of >= 0
        row, column, piece_of = row[owned], column[owned], piece_of[owned]

        def of(values: list[int]) -> Tensor:
            return torch.tensor(values, device=self.device)[piece_of]

        top = row * STRIDE + of([piece.top - at.top for piece, at in content])
        left = column * STRIDE + of([piece.left - at.left for piece, at in content])
        start = torch.stack([left, top], 1).float() + 1
        scale = torch.tensor([piece.scale for piece, _ in content], device=self.device)[piece_of, None]
        boxes = torch.cat([start / scale, (start + CELL - 1) / scale], 1).floor_()
        return (
            of([piece.picture for piece, _ in content]),
            of([piece.level for piece, _ in content]),
            boxes,
            logits[0, row, column].float().sigmoid(),
            self._pnet.box(features[0, row, column]).float(),
        )

    def _refine(self, tables: SumTables, given: _Candidates) -> _Candidates:
        """The candidates of P-Net that R-Net accepts, with new boxes."""
        kept, (logits, offsets) = self._ask(self._rnet, tables, given, 24, self._limits.rnet, (2, 4))
        scores = (logits[:, 1] - logits[:, 0]).sigmoid()
        sure = torch.where(scores > self.thresholds[1])[0]
        picture, boxes, scores = given.picture[kept][sure], given.boxes[kept][sure], scores[sure]
        best = suppress(boxes, scores, picture, self.overlaps[2])
        return _Candidates(picture[best], square(regress(boxes[best], offsets[sure][best], 1)), scores[best])

    def _output(self, tables: SumTables, given: _Candidates) -> tuple[_Candidates, Tensor]:
        """The candidates of R-Net that O-Net accepts, and their landmarks [n, 5, 2]."""
        kept, (logits, offsets, points) = self._ask(self._onet, tables, given, 48, self._limits.onet, (2, 4, 10))
        scores = (logits[:, 1] - logits[:, 0]).sigmoid()
        sure = torch.where(scores > self.thresholds[2])[0]
        picture, boxes, scores = given.picture[kept][sure], given.boxes[kept][sure], scores[sure]
        size = boxes[:, 2:] - boxes[:, :2] + 1
        landmarks = points[sure].view(-1, 5, 2) * size[:, None] + boxes[:, None, :2] - 1
        boxes = regress(boxes, offsets[sure], 1)
        best = suppress_nested(boxes, scores, picture, self.overlaps[3])
        return _Candidates(picture[best], boxes[best], scores[best]), landmarks[best]

    def _ask(
        self, network: nn.Module, tables: SumTables, given: _Candidates, size: int, chunk: int, widths: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs of `network` for candidates.

        Args:
            network: R-Net or O-Net.
            tables: summed-area tables of the pictures.
            given: the candidates.
            size: side of the network's input in pixels.
            chunk: candidates in a call.
            widths: width of each of the network's outputs.

        Returns:
            Numbers [n] of the candidates that have a pixel in their picture, and their outputs, each [n, width].
        """
        heights, widths_px = torch.tensor(tables.shapes, device=self.device)[given.picture].unbind(1)
        inside = pixels(given.boxes, heights, widths_px)
        kept = torch.where((inside[:, 2:] > inside[:, :2]).all(1))[0]
        answers = [[torch.empty(0, width, device=self.device)] for width in widths]
        for part in kept.split(chunk):
            crops = tables.crops(given.picture[part], inside[part], size)
            for collected, answer in zip(answers, network(crops.to(self.precision)), strict=True):
                collected.append(answer.float().flatten(1))
        return kept, [torch.cat(collected) for collected in answers]


def _check(images: Sequence[Picture]) -> None:
    """Refuse what is no picture."""
    for number, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise UserError(
                f"images[{number}]: {image.dtype} {list(image.shape)}, expected uint8 [height, width, 3], RGB"
            )


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in LIMITS or (device.type == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"device {str(name)!r} is not available, expected cpu, or cuda on a machine with a GPU")
    return device


def _groups(images: Sequence[Picture], batch_px: int) -> Iterator[list[Picture]]:
    """Images in their order, in groups of at most `batch_px` pixels or of one."""
    group: list[Picture] = []
    total = 0
    for image in images:
        count = image.shape[0] * image.shape[1]
        if group and total + count > batch_px:
            yield group
            group, total = [], 0
        group.append(image)
        total += count
    if group:
        yield group


@lru_cache(maxsize=16)  # sets have many pictures of one size, and nothing changes the canvases
def _packed(sizes: tuple[tuple[int, int], ...], height: int, width: int) -> tuple[list[Place], list[Canvas]]:
    return pack(sizes, height, width)


def _nothing(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The empty result of `Detector._propose_on`."""
    numbers = torch.empty(0, dtype=torch.long, device=device)
    boxes = torch.empty(0, 4, device=device)
    return numbers, numbers, boxes, boxes[:, 0], boxes


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
