"""The samples in a job's report: photos with their faces marked, beside their crops.

The photos where another face was nearly chosen come first: a wrong person is most likely in them.
"""

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.decode import Photo, decode
from data_prep.detect_cli import draw
from data_prep.job.plan import JobPlan
from data_prep.job.work import LEFT_OUT
from data_prep.mtcnn.faces import Faces
from data_prep.sources.base import Raw, Reader, Row
from dist_train.data.manifest import Manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.reject import Reject
from dist_train.data.shards import RawSample
from dist_train.errors import UserError

CLOSE_CALLS = 5  # most samples that are shown because another face was nearly chosen
CLOSE_LEAD = 0.5  # lead below which another face was nearly chosen: half the chosen face's area, by the usual rules
PHOTO_PX = 200  # longer side of a photo, about its size on the sheet
UNITS_READ = 1000  # most units whose statistics are read, spread over the job
_NAME_CHARACTERS = 32
_ORANGE = (255, 140, 0)

Pixels = NDArray[np.uint8]


class Pair(NamedTuple):
    """A sample of the report.

    Attributes:
        photo: the photo with its face marked, RGB; None where the photo is gone.
        crop: the picture in the set, RGB.
        title: source of the photo, and how its face was chosen.
        close_call: whether it is shown because another face was nearly chosen.
    """

    photo: Pixels | None
    crop: Pixels
    title: str
    close_call: bool


class _Sample(NamedTuple):
    """A sample's place in the set: numbers of its shard in the manifest, and of the sample in it."""

    shard: int
    sample: int


def shown_pairs(plan: JobPlan, manifest: Manifest, count: int) -> list[Pair]:
    """Samples with their photos: close calls first, then samples spread evenly over the set."""
    reader = SampleReader([ImageSet(str(plan.layout.out), manifest)], "label", open_shards=1)
    photos = _reader(plan)
    close = close_calls(plan, manifest)
    spread = (sample for sample in _spread(manifest, count) if sample not in close)
    pairs = []
    for place in [*close, *spread][:count]:
        raw = reader.read(*place, with_record=True)
        crop = decode(bytes(raw.image))
        if isinstance(crop, Reject):
            continue
        unit = _unit_of(manifest.shards[place.shard].name)
        found = photos.read([_row_at(plan, unit, int(raw.key.partition("-")[0]))])[0] if photos else None
        photo = decode(found.data) if isinstance(found, Raw) else None
        seen = marked(photo, raw.record or {}) if isinstance(photo, Photo) else None
        pairs.append(Pair(seen, crop.pixels, _title(raw), place in close))
    if photos:
        photos.close()
    reader.close()
    return pairs


def close_calls(plan: JobPlan, manifest: Manifest) -> list[_Sample]:
    """The samples whose face was chosen by the least lead over another, below `CLOSE_LEAD`, the closest first."""
    shard_of = {_unit_of(shard.name): number for number, shard in enumerate(manifest.shards)}
    labels = pa.ipc.open_file(pa.memory_map(str(plan.layout.labels)))
    closest: list[tuple[float, int, int]] = []
    for unit in units_read(plan):
        file = pq.ParquetFile(plan.layout.statistics(unit))
        if unit not in shard_of or "lead" not in file.schema_arrow.names:  # statistics of older units hold no leads
            continue
        lead = file.read(columns=["lead"])["lead"].combine_chunks()
        kept = labels.get_batch(unit).column("label").to_numpy() != LEFT_OUT
        flat = lead.filter(pa.array(kept)).flatten()
        known = np.flatnonzero(flat.is_valid().to_numpy(zero_copy_only=False))
        leads = pc.take(flat, pa.array(known)).to_numpy()
        best = np.argsort(leads, kind="stable")[:CLOSE_CALLS]
        close = best[leads[best] < CLOSE_LEAD].tolist()
        closest += [(float(leads[at]), shard_of[unit], int(known[at])) for at in close]
        closest = heapq.nsmallest(CLOSE_CALLS, closest)
    return [_Sample(shard, sample) for _, shard, sample in closest]


def _spread(manifest: Manifest, count: int) -> Iterator[_Sample]:
    """About `count` samples, evenly over the set."""
    ends = np.cumsum([shard.samples for shard in manifest.shards])
    for number in np.unique(np.linspace(0, manifest.samples - 1, min(count, manifest.samples)).astype(int)).tolist():
        shard = int(np.searchsorted(ends, number, side="right"))
        yield _Sample(shard, int(number - (ends[shard] - manifest.shards[shard].samples)))


def _unit_of(shard_name: str) -> int:
    return int(shard_name.removesuffix(".tar").rpartition("-")[2])


def _row_at(plan: JobPlan, unit: int, position: int) -> Row:
    batch = plan.batch(unit)
    (at,) = np.flatnonzero(batch.column("position").to_numpy() == position)
    return Row(*(column[int(at)].as_py() for column in batch.columns))


def _title(raw: RawSample) -> str:
    """Source of a sample, and how its face was chosen."""
    record = raw.record or {}
    name = drawable(str(record.get("source", raw.key)).rpartition("/")[2])
    if len(name) > _NAME_CHARACTERS:
        name = f"...{name[3 - _NAME_CHARACTERS :]}"
    if "lead" in record:
        return f"{name}\nlead {record['lead']:.2f}, {record['faces']} faces"
    faces = record.get("faces")
    return name if faces is None else f"{name}\n{faces} face{'' if faces == 1 else 's'}"


def drawable(name: str) -> str:
    """The drawable part of a name: without characters that no font draws."""
    return "".join(character if character.isprintable() else "?" for character in name)


def units_read(plan: JobPlan) -> Iterator[int]:
    """Units whose statistics are read: all that were made, or of very many some that are spread over the job."""
    for unit in np.unique(np.linspace(0, plan.units - 1, min(plan.units, UNITS_READ)).astype(int)).tolist():
        if plan.layout.done(unit).exists():
            yield unit


def _reader(plan: JobPlan) -> Reader | None:
    """A reader of the source; None where the source is gone."""
    try:
        return plan.options.source.reader()
    except UserError:
        return None


def marked(photo: Photo, record: dict[str, Any]) -> Pixels:
    """The shrunken photo with the box and landmarks of a sample's record, and the runner-up's box if there is one."""
    height, width = photo.pixels.shape[:2]
    share = PHOTO_PX / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    pixels = np.asarray(cv2.resize(photo.pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    if "box" not in record and "landmarks" not in record:
        return pixels
    scale, score = np.float32(share / photo.shrink), np.array([record.get("score", np.nan)], np.float32)
    landmarks = np.asarray(record.get("landmarks", np.full((5, 2), np.nan)), np.float32)
    box = np.asarray(record.get("box", [*landmarks.min(0), *landmarks.max(0)]), np.float32)
    drawn = draw(pixels, Faces(box[None] * scale, score, landmarks[None] * scale))
    if "runner_up" in record:
        left, top, right, bottom = (round(float(side) * float(scale)) for side in record["runner_up"])
        cv2.rectangle(drawn, (left, top), (right, bottom), _ORANGE, 1, cv2.LINE_AA)
    return drawn
