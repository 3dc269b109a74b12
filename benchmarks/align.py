"""Finding and aligning faces beside facenet-pytorch 2.6.0: photos a second, the same photos and settings, all cores.

    python benchmarks/align.py                            # all cases
    python benchmarks/align.py --case job                 # the command at min face 20 and 40
    python benchmarks/align.py --case lfw250 --photos DIR

`job20`, `job40`: the command `headcount prep align`, as a user types it, on 4,096 photos of 250 x 250 pixels: LFW's
where ../shared/real has them. `ours` counts from the first photo on; `whole` with start-up, sealing and report.
`detectors`: our detector alone, a process with one thread on each core, on decoded photos. `baseline`: the peer's
detection alone, one process with all threads, in batches or photo by photo, whichever is faster.

`side640`, `lfw250`: the detectors alone, the floor of what a job can take. Photos are decoded and resized beforehand.
Without DIR they are those of ../shared/faces, or else made of the portrait that matplotlib ships. Either detector runs
in both ways, one process with all threads and a process a core with one thread each. Ours is the rate in the way of our
jobs, a process a core. `baseline` is the peer as it comes, in one process, in batches where it takes them and that is
faster; `strict_ratio` is the best of ours by the best of the peer's, which then has a process a core too.

The peer is installed into build/peers without its pins, which forbid this torch.
"""

import argparse
import importlib.metadata
import multiprocessing as mp
import os
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
import torch
from align_job import Source, figures, run_job, write_source
from line import print_line

from data_prep.align_transform import Align
from data_prep.decode import Photo, decode
from data_prep.mtcnn.cascade import Detector
from data_prep.mtcnn.faces import Picture
from dist_train.runtime.processes import spawning, threads

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "build" / "peers"
PEER = "facenet-pytorch==2.6.0"
CORES = len(os.sched_getaffinity(0))
SECONDS = 6.0  # of each measurement, at least
SAME = 0.85  # intersection over union of boxes that are of one face

Boxes = list[list[list[float]]]  # of the faces of each photo


class Case(NamedTuple):
    """Settings of a case; `square` photos are cut and resized, others keep their shape."""

    min_face_px: int
    side_px: int
    square: bool


CASES = {"side640": Case(20, 640, False), "lfw250": Case(40, 250, True)}
JOBS = {"job20": Case(20, 250, True), "job40": Case(40, 250, True)}


class Rate(NamedTuple):
    """What a worker found out."""

    images_per_s: float
    peak_rss_mb: float
    boxes: Boxes


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[*CASES, *JOBS, "job"])
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    install_peer()
    wanted = {None: [*CASES, *JOBS], "job": list(JOBS)}.get(arguments.case, [arguments.case])
    for name in wanted:
        if name in CASES:
            print_line(measure(name, arguments.photos))
    if jobs := [name for name in wanted if name in JOBS]:
        with tempfile.TemporaryDirectory() as folder:
            source = write_source(Path(folder), lambda: [at_size(photo, JOBS["job20"]) for photo in made()])
            for name in jobs:
                print_line(measure_job(name, source))


def install_peer() -> None:
    """Install the peer unless it is there."""
    if not (PEERS / "facenet_pytorch").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), PEER]
        subprocess.run(pip, check=True, stdout=sys.stderr)


def measure_job(name: str, source: Source) -> dict[str, Any]:
    """The line of a job's case: the command between two measurements of what it is compared with."""
    case = JOBS[name]
    detectors = [run(ours, case, source.sample, processes=CORES)]
    timing = run_job(source, case.min_face_px)
    detectors.append(run(ours, case, source.sample, processes=CORES))
    peers = [run(work, case, source.sample, processes=1) for work in (peer_single, peer_batched)]
    return {
        "benchmark": "align",
        "case": name,
        **figures(timing, max(rate.images_per_s for rate in detectors), max(rate.images_per_s for rate in peers)),
        "peer": {way: round(rate.images_per_s, 1) for way, rate in zip(("single", "batched"), peers, strict=True)},
        "source": source.name,
        "min_face_px": case.min_face_px,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6),
        "versions": versions(),
    }


def measure(name: str, folder: Path | None) -> dict[str, Any]:
    """The line of a case."""
    kinds = {"ours": ours, "single": peer_single, **({"batched": peer_batched} if CASES[name].square else {})}
    rates: dict[str, dict[str, Rate]] = {
        kind: {
            "one process": run(work, CASES[name], folder, processes=1),
            "a process a core": run(work, CASES[name], folder, processes=CORES),
        }
        for kind, work in kinds.items()
    }
    mine = rates["ours"]["a process a core"]
    peers = [both for kind, both in rates.items() if kind != "ours"]
    theirs = max(both["one process"] for both in peers)
    strict = max(rates["ours"].values()).images_per_s / max(max(both.values()) for both in peers).images_per_s
    faces, matched, extra = compare(rates["single"]["one process"].boxes, mine.boxes)
    return {
        "benchmark": "align",
        "case": name,
        "ours": round(mine.images_per_s, 1),
        "baseline": round(theirs.images_per_s, 1),
        "ratio": round(mine.images_per_s / theirs.images_per_s, 2),
        "strict_ratio": round(strict, 2),
        "unit": "images/s",
        "peak_rss_mb": round(mine.peak_rss_mb),
        "all": {kind: {way: round(rate.images_per_s, 1) for way, rate in both.items()} for kind, both in rates.items()},
        "faces": faces,
        "matched": matched,
        "extra": extra,
        "photos": len(mine.boxes),
        **CASES[name]._asdict(),
        "cores": CORES,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what was compared and what it stands on."""
    ours = {package: importlib.metadata.version(package) for package in ("torch", "opencv-python-headless")}
    return {"facenet-pytorch": PEER.split("==")[1], **ours}


def run(work: Any, case: Case, folder: Path | None, processes: int) -> Rate:
    """The rate of `processes` that share the cores and start together."""
    count = CORES // processes
    context = mp.get_context("spawn")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    workers = [context.Process(target=worker, args=(work, case, folder, barrier, results)) for _ in range(processes)]
    with spawning(threads(count)):
        for process in workers:
            process.start()
    rates = [Rate(*results.get()) for _ in workers]
    for process in workers:
        process.join()
    return Rate(sum(rate.images_per_s for rate in rates), max(rate.peak_rss_mb for rate in rates), rates[0].boxes)


def worker(work: Any, case: Case, folder: Path | None, barrier: Barrier, results: Any) -> None:
    """Go through all photos again and again, for `SECONDS` at least, and report."""
    detect = work(case)
    photos = load(case, folder)
    boxes = detect(photos)
    barrier.wait()
    rounds, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < SECONDS:
        detect(photos)
        rounds += 1
    peak_mb = peak_rss_mb()
    results.put((rounds * len(photos) / took, peak_mb, boxes))


def peak_rss_mb() -> float:
    """This process's highest resident memory so far, in MB of 10**6 bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 / 1e6


def ours(case: Case) -> Any:
    """The cascade, in batches as a job takes them."""
    detector = Detector(min_face_px=case.min_face_px)
    size = Align().batch
    return lambda photos: [
        faces.boxes.tolist()
        for start in range(0, len(photos), size)
        for faces in detector.detect(photos[start : start + size])
    ]


def peer_single(case: Case) -> Any:
    """facenet-pytorch, a photo at a time."""
    detector = peer(case)
    return lambda photos: [as_lists(detector.detect(photo, landmarks=True)[0]) for photo in photos]


def peer_batched(case: Case) -> Any:
    """facenet-pytorch, all photos in one batch."""
    detector = peer(case)
    return lambda photos: [as_lists(boxes) for boxes in detector.detect(photos, landmarks=True)[0]]


def peer(case: Case) -> Any:
    """Its detector with the case's settings."""
    sys.path.append(str(PEERS))
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, min_face_size=case.min_face_px, device=torch.device("cpu"))


def as_lists(boxes: Any) -> list[list[float]]:
    """What the peer gives for a photo: None without faces."""
    return [] if boxes is None else [[float(side) for side in box] for box in boxes]


def load(case: Case, folder: Path | None) -> list[Picture]:
    """The photos at the case's size."""
    shared = ROOT.parent / "shared" / "faces"
    if folder is None and not shared.exists():
        photos = made()
    else:
        paths = sorted(
            path for path in (folder or shared).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
        )
        decoded = [decode(path.read_bytes()) for path in paths]
        photos = [photo.pixels for photo in decoded if isinstance(photo, Photo)]
    return [at_size(photo, case) for photo in photos]


def made() -> list[Picture]:
    """36 photos out of one portrait: shifted, mirrored, enlarged."""
    portrait = decode((Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").read_bytes())
    if not isinstance(portrait, Photo):
        raise TypeError(f"matplotlib's portrait cannot be decoded: {portrait}")
    photos = []
    for number in range(36):
        grown = cv2.resize(portrait.pixels, None, fx=1 + number / 20, fy=1 + number / 20)
        photos.append(np.ascontiguousarray(grown[: 600 + 5 * number, : 512 + 9 * number, :][:, :: (-1) ** number]))
    return photos


def at_size(photo: Picture, case: Case) -> Picture:
    """A photo as the case wants it."""
    height, width = photo.shape[:2]
    if case.square:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        photo = photo[top : top + side, left : left + side]
        height = width = side
    share = case.side_px / max(height, width)
    size = round(width * share), round(height * share)
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA if share < 1 else cv2.INTER_CUBIC), np.uint8)


def compare(expected: Boxes, found: Boxes) -> tuple[int, int, int]:
    """Faces that the peer found, how many of them we found, how many faces only we found."""
    matched = 0
    for theirs, mine in zip(expected, found, strict=True):
        left = list(mine)
        for box in theirs:
            best = max(left, key=lambda other, box=box: overlap(box, other), default=None)
            if best is not None and overlap(box, best) >= SAME:
                left.remove(best)
                matched += 1
    faces = sum(map(len, expected))
    return faces, matched, sum(map(len, found)) - matched


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


if __name__ == "__main__":
    main()
