"""The command `headcount prep align` on thousands of photos, timed from outside by the marks that it leaves.

The photos are those of LFW where ../shared/real has them, else made of the portrait that matplotlib ships.
"""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from command import headcount

ROOT = Path(__file__).parents[1]
LFW = ROOT.parent / "shared" / "real" / "lfw-deepfunneled.tar"
PHOTOS = 4096  # from all over LFW; 16 units of 256
SAMPLE = 192  # of these, for the detectors alone
JPEG_QUALITY = 95


class Source(NamedTuple):
    """What a job is given, and some of its photos as files."""

    name: str
    path: Path
    sample: Path
    photos: int


class Timing(NamedTuple):
    """How long the stages of a job took.

    Attributes:
        photos: how many went in.
        startup_s: from the command to the moment at which a worker takes its first photo.
        aligning_s: from there until the last photo was aligned.
        sealing_s: from there until the last shard was written, deciding the labels and new workers included.
        whole_s: of the command, its report included.
    """

    photos: int
    startup_s: float
    aligning_s: float
    sealing_s: float
    whole_s: float


def write_source(folder: Path, made: Callable[[], list[np.ndarray]], count: int = PHOTOS) -> Source:
    """Photos of 250 x 250 pixels in `folder`: a tar as LFW comes, and a sample as files.

    Args:
        folder: an empty one.
        made: pictures [250, 250, 3], red first, where LFW is not there.
        count: photos in the tar.
    """
    sample, tar = folder / "sample", folder / "photos.tar"
    sample.mkdir()
    photos = list(_lfw(count) if LFW.exists() else _drawn(made(), count))
    with tarfile.open(tar, "w") as target:
        for name, data in photos:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    for number, (_, data) in enumerate(photos[:: len(photos) // SAMPLE][:SAMPLE]):
        (sample / f"{number:06d}.jpg").write_bytes(data)
    return Source("LFW, deep-funneled" if LFW.exists() else "made of one portrait", tar, sample, len(photos))


def _lfw(count: int) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(LFW) as tar:
        files = [member for member in tar if member.isfile() and member.name.endswith(".jpg")]
        for member in files[:: len(files) // count][:count]:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def _drawn(pictures: list[np.ndarray], count: int) -> Iterator[tuple[str, bytes]]:
    """Each picture again and again, each time shifted by another number of pixels."""
    for number in range(count):
        again, which = divmod(number, len(pictures))
        shifted = np.roll(pictures[which], (again % 16, again // 16), (0, 1))
        data = cv2.imencode(".jpg", shifted[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        yield f"person {which}/{number:06d}.jpg", data.tobytes()


def run_job(source: Source, min_face_px: int = 20, detector: Path | None = None) -> Timing:
    """The command with its defaults, and `--min-face` and `--detector` where they are not the defaults."""
    options = [] if min_face_px == 20 else ["--min-face", str(min_face_px)]
    options += [] if detector is None else ["--detector", str(detector)]
    with tempfile.TemporaryDirectory(dir=source.path.parent) as name:
        out = Path(name) / "set"
        told = headcount("prep", "align", source.path, out, *options)
        made, sealed = (sorted((out / ".prep" / stage).glob("*.json")) for stage in ("units", "shards"))
        begun = min(_written(mark) - _seconds(mark) for mark in made)
        aligned, written = (max(map(_written, marks)) for marks in (made, sealed))
    return Timing(source.photos, begun - told.began, aligned - begun, written - aligned, told.seconds)


def _written(mark: Path) -> float:
    return mark.stat().st_mtime


def _seconds(mark: Path) -> float:
    """How long a unit took, by its summary."""
    return float(json.loads(mark.read_text(encoding="utf-8"))["seconds"])


def figures(timing: Timing, detectors: float, peer: float) -> dict[str, Any]:
    """What a job's line says.

    Args:
        timing: of the job.
        detectors: photos a second of our detectors alone, one thread each on all cores at once, on decoded photos.
        peer: likewise of the peer, in one process with all threads.
    """
    aligning = timing.photos / timing.aligning_s
    whole = timing.photos / timing.whole_s
    return {
        "ours": round(aligning, 1),
        "baseline": round(peer, 1),
        "ratio": round(aligning / peer, 2),
        "unit": "photos/s",
        "detectors": round(detectors, 1),
        "of_detectors": round(aligning / detectors, 3),
        "whole": round(whole, 1),
        "whole_ratio": round(whole / peer, 2),
        "startup_s": round(timing.startup_s, 2),
        "aligning_s": round(timing.aligning_s, 2),
        "sealing_s": round(timing.sealing_s, 2),
        "whole_s": round(timing.whole_s, 2),
        "sealing_by_aligning": round(timing.aligning_s / timing.sealing_s, 1),
        "wanted": {"ratio": 3, "of_detectors": 0.85, "startup_s": 5, "sealing_by_aligning": 5},
        "photos": timing.photos,
        "workers": len(os.sched_getaffinity(0)),
    }
