"""Look at a set: figures, how many pictures the identities have, and a sheet of samples."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dist_train.data.augment import identity
from dist_train.data.counters import Ints, permute
from dist_train.data.identities import read_identities
from dist_train.data.manifest import IDENTITIES_NAME, Manifest
from dist_train.data.opencv import Augmenter, check_square, decode
from dist_train.data.pictures import Pixels
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError
from dist_train.data.verify import left_out_of
from dist_train.errors import UserError

_BAR = 40  # characters of the longest bar
_LABEL_SHARDS = 64  # shards whose labels are read where no table of identities is there


def describe(path: Path, manifest: Manifest, label_key: str = "label") -> str:
    """Figures of a set and the histogram of its labels, as text."""
    size = sum(shard.bytes for shard in manifest.shards)
    per_shard = [shard.samples for shard in manifest.shards]
    counts, source, unusable = label_counts(path, manifest, label_key)
    present = counts[counts > 0]
    lines = [
        f"set        {path}",
        f"images     {manifest.samples:,} of {manifest.image_size}x{manifest.image_size} pixels",
        f"identities {manifest.num_classes:,}, of which {len(present):,} have pictures ({source})",
        f"shards     {len(per_shard):,}, with {min(per_shard):,} to {max(per_shard):,} images",
        f"bytes      {size:,} ({size / manifest.samples:,.0f} per image)",
        f"digest     {manifest.digest}",
        *unusable,
        "",
        "images per identity",
        *histogram(present),
    ]
    return "\n".join(lines)


def label_counts(path: Path, manifest: Manifest, label_key: str) -> tuple[Ints, str, list[str]]:
    """Pictures per label [num_classes], where the figures are from, and lines about what cannot be used."""
    table = path / IDENTITIES_NAME
    counts = np.zeros(manifest.num_classes, dtype=np.int64)
    if table.exists():
        columns = read_identities(table, "count", manifest.num_classes)
        counts[columns["label"].to_numpy()] = columns["count"].to_numpy()
        return counts, IDENTITIES_NAME, []
    reader = SampleReader([ImageSet(str(path), manifest)], label_key, open_shards=1)
    shards = np.unique(np.linspace(0, len(manifest.shards) - 1, _LABEL_SHARDS).astype(int)).tolist()
    bad: list[str] = []
    scaled: list[str] = []
    for shard in shards:
        for sample in range(manifest.shards[shard].samples):
            place = f"{reader.key(shard, sample)} in {manifest.shards[shard].name}"
            try:
                raw = reader.read(shard, sample)
                side = check_square(raw.image, raw.set_px).width
            except BadSampleError as error:
                bad.append(f"{place}: {error}")
                continue
            counts[raw.label] += 1
            if side != manifest.image_size:
                scaled.append(f"{place}: {side}x{side}")
    reader.close()
    left_out = [problem for shard in shards for problem in left_out_of(path / manifest.shards[shard].name)]
    lines = [
        *_counted("unusable", "samples, listed by `headcount data verify`", bad),
        *_counted(
            "left out", "things in the tars", [f"{each.key} in {each.shard}: {each.reason}" for each in left_out]
        ),
        *_counted("scaled", "pictures of another size", scaled),
    ]
    return counts, f"read from {len(shards)} of {len(manifest.shards)} shards", lines


def _counted(what: str, which: str, found: list[str]) -> list[str]:
    return [f"{what:<10} {len(found):,} {which}, e.g. {found[0]}"] if found else []


def histogram(counts: Sequence[int] | Ints) -> list[str]:
    """Lines of a bar chart over powers of two."""
    if not len(counts):
        return ["none"]
    octaves = np.bincount(np.log2(np.asarray(counts, dtype=np.float64)).astype(np.int64))
    first = int(np.flatnonzero(octaves)[0])
    return [
        f"{2**i:>8} .. {2 ** (i + 1) - 1:<8} {n:>12,} {'#' * int(np.ceil(_BAR * n / octaves.max()))}"
        for i, n in enumerate(octaves.tolist())
        if i >= first
    ]


def contact_sheet(
    path: Path, manifest: Manifest, rows: int, columns: int, seed: int, label_key: str = "label"
) -> Pixels:
    """Random samples side by side: [rows · size, columns · size, 3], blue first; bad ones are red."""
    size = manifest.image_size
    count = min(rows * columns, manifest.samples)
    numbers = permute(np.arange(count, dtype=np.int64), manifest.samples, seed)
    starts = np.cumsum([0] + [shard.samples for shard in manifest.shards])
    reader = SampleReader([ImageSet(str(path), manifest)], label_key, open_shards=8)
    augmenter = Augmenter(size)
    augmenter.load(identity(1, size))
    rows = min(rows, -(-count // columns))
    picture = np.zeros((rows * size, columns * size, 3), dtype=np.uint8)
    planes = np.empty((3, size, size), dtype=np.uint8)
    for place, number in enumerate(numbers.tolist()):
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        try:
            raw = reader.read(shard, number - int(starts[shard]))
            augmenter.apply(decode(raw.image, raw.set_px), 0, planes)
        except BadSampleError:
            planes[0], planes[1:] = 255, 0
        top, left = place // columns * size, place % columns * size
        picture[top : top + size, left : left + size] = planes[::-1].transpose(1, 2, 0)  # [3, H, W] -> [H, W, 3]
    reader.close()
    return picture


def save_sheet(picture: Pixels, file: Path) -> None:
    """Write a sheet as PNG or JPEG.

    Raises:
        UserError: another kind of file, or it cannot be written.
    """
    try:
        written = cv2.imwrite(str(file), picture)
    except cv2.error as error:
        raise UserError(f"--sheet {file}: {error.err}; use a name that ends in .png or .jpg") from error
    if not written:
        raise UserError(f"--sheet {file}: cannot be written; does its directory exist?")
