"""The crops that a network learns from, as sets of shards: one set for each kind of sample, one shard for each part.

    CROPS/negatives/part-00000.tar, .idx, .npy    a part of the photos: pictures, and what they should be answered with
    CROPS/part-00000.json                         all four shards of the part are there
    CROPS/negatives/manifest.json                 all parts are there

A crop's label is the number of its part times the most samples of a part, plus its row in the part's table; so the
reader of sets needs to know nothing of detectors. A part is the unit of work, of resuming and of sharing among ranks.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from data_prep.faces.annotated import AnnotatedPhoto
from data_prep.mtcnn.boxes import pixels
from data_prep.mtcnn.faces import Picture
from data_prep.mtcnn.training.choice import Chosen, Known, choose, wanted
from data_prep.mtcnn.training.frames import (
    Floats,
    boxes_of,
    mirrored,
    mirrored_points,
    mirrored_regions,
    offsets,
    positions,
)
from data_prep.mtcnn.training.losses import KINDS
from data_prep.mtcnn.training.photos import GROUP, Photos
from data_prep.mtcnn.training.trainee import SIDES
from data_prep.mtcnn.windows import CHANNELS, SumTables, cells
from data_prep.searched import DECODED_PX
from data_prep.shards import ShardWriter
from dist_train.data.manifest import Manifest, Shard
from dist_train.data.reject import Reject
from dist_train.errors import WorkError
from dist_train.runtime.files import read_bounded
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.written import MAKE_ROOM, write_failures, write_json, written

PHOTOS = 64
"""Photos of a part."""
WIDTH = 28
"""Numbers of a row of a table: four offsets, five points as x, y, each followed by those of the mirror image."""
_AT_ONCE = 256  # crops that are resampled together
_MOST_JSON = 1 << 16
_FASTEST = [cv2.IMWRITE_PNG_COMPRESSION, 1]

Propose = Callable[[Sequence[Picture]], list[Floats]]
"""Regions [n, 4] that the networks before find in each picture."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is known of a part that is there.

    Attributes:
        shards: one of each kind.
        unread: photos that could not be read.
    """

    shards: list[Shard]
    unread: int


_PART = TypeAdapter(Part)


class Crops:
    """The making of one network's crops.

    Args:
        directory: of its sets.
        network: `pnet`, `rnet` or `onet`.
        photos: to learn from.
        seed: of every choice.
        crops: most of a photo.
        min_face_px: smallest face that is learnt.
        propose: the networks before; None for P-Net.
    """

    def __init__(
        self,
        directory: Path,
        network: str,
        photos: Photos,
        *,
        seed: int,
        crops: int,
        min_face_px: float,
        propose: Propose | None,
    ) -> None:
        self.directory, self._network, self._photos = directory, network, photos
        self._seed, self._crops, self._min_face_px, self._propose = seed, crops, min_face_px, propose
        self._most = wanted(crops)
        self.parts = -(-len(photos.training) // PHOTOS)

    def make(self, ranks: Ranks, stopped: Callable[[], bool], threads: int) -> bool:
        """Make all parts that are not there yet, each on one rank, and the sets' manifests. A collective.

        Returns:
            Whether all is there; False where a rank was asked to stop.

        Raises:
            WorkError: the disk refuses, or most photos cannot be read.
        """
        mine = [number for number in range(self.parts) if number % ranks.world_size == ranks.rank]

        def work() -> None:
            with ThreadPoolExecutor(threads) as pool:
                bar = progress_bar(mine, desc=f"crops of {self._network}", unit="part", disable=ranks.rank != 0)
                with bar, write_failures(f"crops in {self.directory}", MAKE_ROOM):
                    for kind in KINDS:
                        (self.directory / kind).mkdir(parents=True, exist_ok=True)
                    for number in bar:
                        if stopped():
                            return
                        if not self._path(number).exists():
                            self._make_part(number, pool)

        ranks.agree(work)
        if ranks.any(stopped())[0]:
            return False
        ranks.agree(lambda: self._finish() if ranks.rank == 0 else None)
        return True

    def _path(self, number: int) -> Path:
        return self.directory / f"part-{number:05d}.json"

    def _make_part(self, number: int, pool: ThreadPoolExecutor) -> None:
        numbers = self._photos.training[number * PHOTOS : (number + 1) * PHOTOS]
        unread = 0
        rows: list[list[NDArray[np.float32]]] = [[] for _ in KINDS]
        with ExitStack() as opened:
            writers = [
                opened.enter_context(ShardWriter(self.directory / kind / f"part-{number:05d}.tar")) for kind in KINDS
            ]
            group: list[tuple[int, Picture, AnnotatedPhoto]] = []
            held = 0  # pixels
            for place, (photo, found) in enumerate(self._photos.opened(numbers, pool), start=1):
                if isinstance(found, Reject):
                    unread += 1
                else:
                    group.append((photo, *found))
                    held += found[0].size // 3
                if held >= DECODED_PX or place % GROUP == 0 or place == len(numbers):
                    self._add(number, group, writers, rows)
                    group, held = [], 0
        for kind, table in zip(KINDS, rows, strict=True):
            with written(self.directory / kind / f"part-{number:05d}.npy") as file:
                np.save(file, np.concatenate([np.empty((0, WIDTH), np.float32), *table]), allow_pickle=False)
        write_json(self._path(number), asdict(Part([writer.shard for writer in writers], unread)))

    def _add(
        self,
        part: int,
        group: Sequence[tuple[int, Picture, AnnotatedPhoto]],
        writers: Sequence[ShardWriter],
        rows: list[list[NDArray[np.float32]]],
    ) -> None:
        """Add the crops of some photos to the shards and tables of their part."""
        if not group:
            return
        pictures = [picture for _, picture, _ in group]
        proposed = [None] * len(group) if self._propose is None else self._propose(pictures)
        knowns: list[Known] = []
        chosen: list[Chosen] = []
        for (photo, picture, faces), found in zip(group, proposed, strict=True):
            known = Known.of(faces, self._min_face_px)
            rng = np.random.default_rng([self._seed, SIDES[self._network], photo])
            knowns.append(known)
            most = wanted(self._crops, self._photos.marks_all(photo))
            chosen.append(choose(known, picture.shape[:2], most, rng, found, self._min_face_px))
        number = np.repeat(np.arange(len(group)), [len(each.kind) for each in chosen])
        kinds = np.concatenate([each.kind for each in chosen])
        begun = [sum(map(len, tables)) for tables in rows]
        for mine, (_, picture, _), known in zip(chosen, group, knowns, strict=True):
            table = _table(self._network, mine, known, picture.shape[1])
            for kind, tables in enumerate(rows):
                tables.append(table[mine.kind == kind])
        regions = np.concatenate([each.regions for each in chosen])
        encoded = encoded_crops(pictures, number, regions, SIDES[self._network])
        for kind, data in zip(kinds.tolist(), encoded, strict=True):
            row = begun[kind]
            begun[kind] += 1
            label = part * PHOTOS * self._most[kind] + row
            writers[kind].write(f"{part:05d}-{row:05d}", data, label, extension="png")

    def _finish(self) -> None:
        """Write the sets' manifests, which make them sets."""
        parts = [read_part(self._path(number)) for number in range(self.parts)]
        unread = sum(part.unread for part in parts)
        if 2 * unread > len(self._photos.training):
            raise WorkError(f"{unread} of {len(self._photos.training)} photos cannot be read; look at the sets' files")
        for kind, name in enumerate(KINDS):
            shards = tuple(part.shards[kind] for part in parts if part.shards[kind].samples)
            if not shards:
                raise WorkError(
                    f"{self.directory}: no {name} among the crops of {len(self._photos.training)} photos; the lists "
                    f"have no face of {self._min_face_px:g} px or more for them, or the photos no background"
                )
            Manifest(SIDES[self._network], self.parts * PHOTOS * self._most[kind], shards).save(self.directory / name)


def read_part(path: Path) -> Part:
    """What a part's file says.

    Raises:
        WorkError: it cannot be read.
    """
    try:
        return _PART.validate_json(read_bounded(path, _MOST_JSON))
    except (OSError, ValueError) as error:
        raise WorkError(f"{path}: cannot be read ({type(error).__name__}); remove it, and it is made again") from error


def encoded_crops(pictures: Sequence[Picture], number: NDArray[np.int64], regions: Floats, side_px: int) -> list[bytes]:
    """Crops as PNG, resampled as the detector does it.

    Args:
        pictures: that they are cut out of.
        number: [n], of the picture of each.
        regions: [n, 4], of which that part is seen which lies in the picture.
        side_px: of the crops.
    """
    buffer = np.empty((sum(map(cells, pictures)), CHANNELS), np.int32)
    tables = SumTables(pictures, buffer, torch.device("cpu"))
    sizes = torch.tensor([picture.shape[:2] for picture in pictures])
    of = torch.from_numpy(number)
    inside = pixels(torch.from_numpy(boxes_of(regions)), *sizes[of].unbind(1))
    encoded: list[bytes] = []
    for part, boxes in zip(of.split(_AT_ONCE), inside.split(_AT_ONCE), strict=True):
        crops = tables.crops(part, boxes, side_px)[:, :3].flip(1)  # blue first, as the encoder takes it
        levels = crops.mul_(128).add_(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        encoded += [cv2.imencode(".png", crop, _FASTEST)[1].tobytes() for crop in levels.numpy()]
    return encoded


def _table(network: str, chosen: Chosen, known: Known, width: int) -> NDArray[np.float32]:
    """What the regions of a photo of this width should be answered with, [n, WIDTH]; zeros for negatives."""
    table = np.zeros((len(chosen.kind), WIDTH), np.float32)
    rows = chosen.face >= 0
    regions, faces = chosen.regions[rows], known.faces[chosen.face[rows]]
    there = mirrored_regions(regions, width)
    table[rows, :4] = offsets(network, regions, faces)
    table[rows, 4:8] = offsets(network, there, mirrored(faces, width))
    points = known.points[chosen.face[rows]]
    seen = positions(regions, points), positions(there, mirrored_points(points, width))
    table[rows, 8:] = np.nan_to_num(np.concatenate(seen, 1).reshape(-1, 20), nan=0.0)
    return table
