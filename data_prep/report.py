"""A look at what a job made: photos with what was found in them, their crops, and what the figures are."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.decode import Photo, decode
from data_prep.detect_cli import draw
from data_prep.mtcnn.faces import Faces
from data_prep.plan import Layout, Plan
from data_prep.sources import Raw, Reader, Reject
from dist_train.data.manifest import IDENTITIES_NAME, load_manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT_NAME = "report.png"
SHOWN = 12  # samples on the sheet
PHOTO_PX = 150  # longer side of a photo on the sheet; about as many pixels as it gets there
_UNITS_READ = 1000  # whose statistics are drawn, spread over the job
_COLOR = "#2457a6"

Pixels = NDArray[np.uint8]


class Pair(NamedTuple):
    """A photo with its face marked, and the crop; RGB. The photo is None where it cannot be read any more."""

    photo: Pixels | None
    crop: Pixels


def write_report(out: Path) -> Path:
    """Draw `report.png` into the directory of a complete set: the file."""
    from matplotlib.figure import Figure

    plan = Plan(Layout(out))
    pairs = _pairs(plan)
    sizes, scores, reasons = figures(plan)
    counts = pq.read_table(out / IDENTITIES_NAME, columns=["count"])["count"].to_numpy()
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=[1.25, 0.9, 1.6])
    for row, kind in enumerate(("photo", "crop")):
        cells = grid[row].subgridspec(1, SHOWN, wspace=0.03)
        for column in range(SHOWN):
            axes = figure.add_subplot(cells[column])
            axes.axis("off")
            picture = getattr(pairs[column], kind) if column < len(pairs) else None
            if picture is not None:
                axes.imshow(picture)
    cells = grid[2].subgridspec(1, 4)
    _histogram(figure.add_subplot(cells[0]), sizes, "Longer side of faces", "pixels of the photo")
    _histogram(figure.add_subplot(cells[1]), scores, "Score of faces", "certainty")
    _histogram(figure.add_subplot(cells[2]), counts.astype(np.float64), "Pictures of an identity", "pictures")
    axes = figure.add_subplot(cells[3])
    names = [name for name, _ in reasons.most_common()][::-1]
    axes.barh([f"{name}  {reasons[name]:,}" for name in names], [reasons[name] for name in names], color=_COLOR)
    axes.set_title("Inputs left out, by reason", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    manifest = load_manifest(out)
    figure.suptitle(
        f"{out.name}: {manifest.samples:,} pictures of {manifest.num_classes:,} identities out of "
        f"{plan.rows_total:,} inputs, {_speed(plan):.3g} inputs a second and process",
        fontsize=12,
    )
    path = out / REPORT_NAME
    temporary = out / f".{REPORT_NAME}.tmp"
    figure.savefig(temporary, dpi=150, format="png")
    temporary.replace(path)
    return path


def _histogram(axes: "Axes", values: NDArray[np.float64], title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(unit)
    if len(values):
        axes.hist(values, bins=40, color=_COLOR)
    else:
        axes.text(0.5, 0.5, "not looked for", ha="center", transform=axes.transAxes)


def figures(plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.float64], Counter[str]]:
    """Sides and scores of the faces that were cut out, and the reasons of all rejects."""
    sides, scores = [np.empty(0)], [np.empty(0)]
    for unit in np.unique(np.linspace(0, plan.units - 1, min(plan.units, _UNITS_READ)).astype(int)).tolist():
        if plan.layout.done(unit).exists():
            table = pq.read_table(plan.layout.statistics(unit), columns=["face_px", "score"])
            for name, found in (("face_px", sides), ("score", scores)):
                flat = table[name].combine_chunks().flatten().drop_null()
                found.append(flat.to_numpy(zero_copy_only=False).astype(np.float64))
    rejects = pq.read_table(plan.layout.out / "rejects.parquet", columns=["reason"])["reason"]
    return np.concatenate(sides), np.concatenate(scores), Counter(rejects.to_pylist())


def _speed(plan: Plan) -> float:
    marks = [plan.layout.done(unit) for unit in range(plan.units)]
    done = [json.loads(mark.read_text(encoding="utf-8")) for mark in marks if mark.exists()]
    return sum(unit["given"] for unit in done) / max(1e-9, sum(unit["seconds"] for unit in done))


def _pairs(plan: Plan) -> list[Pair]:
    """Samples spread evenly over the set, each with the photo that it is from."""
    manifest = load_manifest(plan.layout.out)
    reader = SampleReader([ImageSet(str(plan.layout.out), manifest)], "label", open_shards=1)
    ends = np.cumsum([shard.samples for shard in manifest.shards])
    photos = _reader(plan)
    pairs = []
    for number in np.unique(np.linspace(0, manifest.samples - 1, min(SHOWN, manifest.samples)).astype(int)).tolist():
        shard = int(np.searchsorted(ends, number, side="right"))
        sample = int(number - (ends[shard] - manifest.shards[shard].samples))
        raw = reader.read(shard, sample, with_record=True)
        crop = decode(bytes(raw.image))
        if isinstance(crop, Reject):
            continue
        unit = int(manifest.shards[shard].name.removesuffix(".tar").rpartition("-")[2])
        position = int(raw.key.partition("-")[0])
        row = next(row for row in plan.rows(unit) if row.position == position)
        found = photos.read([row])[0] if photos else None
        photo = decode(found.data) if isinstance(found, Raw) else None
        seen = None if not isinstance(photo, Photo) else marked(photo, raw.record or {})
        pairs.append(Pair(seen, crop.pixels))
    if photos:
        photos.close()
    reader.close()
    return pairs


def _reader(plan: Plan) -> Reader | None:
    """A reader of the source; None where the source was taken away after the work."""
    try:
        return plan.options.source.reader()
    except UserError:
        return None


def marked(photo: Photo, record: dict[str, Any]) -> Pixels:
    """The photo, small, with box and landmarks of a sample's record where it has some."""
    height, width = photo.pixels.shape[:2]
    share = PHOTO_PX / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    pixels = np.asarray(cv2.resize(photo.pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    if "box" not in record:
        return pixels
    scale, score = np.float32(share / photo.shrink), np.array([record["score"]], np.float32)
    box, landmarks = (np.asarray(record[name], np.float32)[None] * scale for name in ("box", "landmarks"))
    return draw(pixels, Faces(box, score, landmarks))
