"""The job of `headcount prep import`: the pictures of a known layout become sets of shards, its pairs `.bin` files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple, TypeVar

import cv2
import numpy as np

from data_prep.decode import decode
from data_prep.layouts.layout import TEST, Contents, Entry, Layout, check_there
from data_prep.new_directory import new_directory
from data_prep.pairs import make_pairs
from data_prep.shards import ShardWriter, write_set
from data_prep.sources.folder import read_file
from data_prep.transforms import Crop, Made, NamedProcess, Transform
from dist_train.data.aligner import Aligner
from dist_train.data.manifest import Shard
from dist_train.data.pictures import EXTENSIONS, PictureError, check
from dist_train.data.reject import Reject
from dist_train.errors import WorkError
from dist_train.runtime.progress import progress_bar

DEFAULT_PX = 112  # side of aligned faces
_BATCH, _BATCH_BYTES = 64, 64 << 20  # pictures handed to a transform at once, and their bytes
_JPEG_QUALITY = 95

Shape = Literal["copy", "resize"] | Transform
Whole = TypeVar("Whole", bytes, list[Crop])


@dataclass(frozen=True, slots=True)
class Imported:
    """What was made.

    Attributes:
        parts: pictures and identities of each set, by its directory's name.
        pairs: number of pairs of each `.bin`, by its name without the ending.
        left_out: what was not taken, and how much of it.
        oblong: copied pictures that are not square.
    """

    parts: dict[str, tuple[int, int]]
    pairs: dict[str, int]
    left_out: dict[str, int]
    oblong: int = 0


@dataclass(slots=True)
class _Sides:
    """Sizes of the pictures of a set, for its manifest."""

    longer: Counter[int] = field(default_factory=Counter)
    oblong: int = 0


class _Way(NamedTuple):
    """The way from encoded pictures to those of the set, and what places the faces in them; None: nothing does."""

    process: NamedProcess
    aligner: Aligner | None = None


def import_set(
    folder: Path, out: Path, layout: Layout, shape: Shape = "copy", image_size: int | None = None, shard: int = 10_000
) -> Imported:
    """Make the sets and pairs of a folder in a new directory.

    Args:
        folder: of a set in the layout.
        out: directory to make: a set for each part, and a `.bin` for each list of pairs.
        layout: of the folder.
        shape: pictures are copied byte for byte, scaled to a square, or made by a transform, as one that aligns the
            face in them.
        image_size: side of the pictures in pixels, where they are scaled.
        shard: pictures in a shard.

    Raises:
        UserError: a list is missing or malformed, names a picture that is not there, or the output is not empty.
        WorkError: a damaged picture, or the output cannot be written.
    """
    contents = layout.read(folder)
    check_there(folder, contents)
    oblong = 0
    with new_directory(out) as writing, TemporaryDirectory() as home:
        way = _open(shape, image_size or DEFAULT_PX, Path(home), contents)
        parts = {}
        for part in dict.fromkeys(entry.part for entry in contents.entries):
            entries = [entry for entry in contents.entries if entry.part == part]
            sides = _write_part(folder, writing / part, entries, way, shard)
            oblong += sides.oblong
            parts[part] = len(entries), len({entry.identity for entry in entries})
        made = _write_pairs(writing, contents)
    return Imported(parts, made, contents.left_out, oblong)


def _write_part(folder: Path, directory: Path, entries: list[Entry], way: _Way, shard: int) -> _Sides:
    """Write one set, in an order that mixes its identities."""
    names = sorted({entry.identity for entry in entries}, key=lambda name: (not name.isdecimal(), len(name), name))
    labels = {name: label for label, name in enumerate(names)}
    counts = Counter(labels[entry.identity] for entry in entries)
    random = np.random.Generator(np.random.Philox(key=np.array([0, len(entries)], np.uint64)))
    mixed = iter([(int(number), entries[number]) for number in random.permutation(len(entries))])
    shards: list[Shard] = []
    sides = _Sides()
    with progress_bar(total=len(entries), desc=f"write {directory.name}", unit="picture") as bar:
        while unit := list(islice(mixed, shard)):
            with ShardWriter(directory / f"{directory.name}-{len(shards):06d}.tar") as writer:
                for (number, entry), crop in zip(unit, _crops(folder, unit, way.process), strict=True):
                    role = {} if entry.role is None else {"role": entry.role}
                    record = {"source": entry.path, **role, **entry.fields, **(crop.record or {})}
                    _count(sides, crop.data)
                    writer.write(f"{number:08d}", crop.data, labels[entry.identity], record, crop.extension)
                    bar.update()
            shards.append(writer.shard)
    size = min(sides.longer.items(), key=lambda each: (-each[1], each[0]))[0]
    write_set(directory, size, names, [counts[label] for label in range(len(names))], shards, way.aligner)
    return sides


def _crops(folder: Path, unit: Sequence[tuple[int, Entry]], process: NamedProcess) -> Iterator[Crop]:
    for part in _batches(folder, unit):
        names = [name for name, _ in part]
        for name, crops in zip(names, process([data for _, data in part], names), strict=True):
            yield _sound(folder / name, crops)[0]


def _batches(folder: Path, unit: Sequence[tuple[int, Entry]]) -> Iterator[list[tuple[str, bytes]]]:
    """Pictures with their paths below the folder, as many at once as memory should hold."""
    part: list[tuple[str, bytes]] = []
    held = 0
    for _, entry in unit:
        path = folder / entry.path
        data = _sound(path, read_file(bytes(path)))
        part.append((entry.path, data))
        held += len(data)
        if len(part) == _BATCH or held >= _BATCH_BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part


def _sound(path: Path, made: Whole | Reject) -> Whole:
    """What is not a reject.

    Raises:
        WorkError: it is one.
    """
    if isinstance(made, Reject):
        raise WorkError(
            f"{path}: {made.reason}: {made.detail}; replace the picture: figures without it would not be those of the "
            "set (--image-size takes larger pictures and other kinds)"
        )
    return made


def _open(shape: Shape, image_size: int, home: Path, contents: Contents) -> _Way:
    if isinstance(shape, Transform):
        shape.plan(home, (entry.path for entry in contents.entries))
        return _Way(shape.open_in(home), shape.aligner())
    one = _copied if shape == "copy" else lambda data: _scaled(data, image_size)
    return _Way(lambda pictures, _: [one(data) for data in pictures])


def _copied(data: bytes) -> Made:
    try:
        kind = check(data).kind
    except PictureError as error:
        return Reject("not a picture", str(error))
    if kind not in EXTENSIONS:
        return Reject("not copied", f"a {kind}; sets hold JPEG, PNG and WebP: say --image-size")
    return [Crop(data, EXTENSIONS[kind])]


def _scaled(data: bytes, image_size: int) -> Made:
    photo = decode(data, image_size)
    if isinstance(photo, Reject):
        return photo
    shrinks = max(photo.pixels.shape) > image_size
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    pixels = cv2.cvtColor(cv2.resize(photo.pixels, (image_size, image_size), interpolation=way), cv2.COLOR_RGB2BGR)
    return [Crop(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes(), "jpg")]


def _count(sides: _Sides, data: bytes) -> None:
    header = check(data)
    sides.longer[max(header.width, header.height)] += 1
    sides.oblong += header.width != header.height


def _write_pairs(directory: Path, contents: Contents) -> dict[str, int]:
    return {
        name: len(make_pairs(pairs, directory / TEST, directory / f"{name}.bin").pairs)
        for name, pairs in contents.pairs.items()
    }
