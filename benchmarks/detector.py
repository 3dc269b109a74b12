"""Detectors: trained on drawn faces and on LFW, others' networks beside ours, and the command beside facenet-pytorch.

    python benchmarks/detector.py                     # all cases
    python benchmarks/detector.py --case drawn

`drawn`: three networks learn from drawn faces, with hard mining and without; `ours` is the recall at one false alarm
per photo on drawings of another seed. `faces`: they learn from photos of LFW's View 1, whose boxes and points are those
that the shipped detector finds; `ours` is the share of its main faces that the new one finds at an overlap of 0.6 on
1,000 photos of other people, beside it LFW's View 2 aligned by the new one. `scrfd`: LFW aligned by somebody else's
SCRFD, beside the shipped detector; `rate`: how many photos a second the command takes through either. `command`:
`headcount prep align` beside facenet-pytorch, as in `align.py`.

All but `drawn` need ../shared/real.
"""

import argparse
import json
import resource
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import align
import numpy as np
from align_job import Source, run_job, write_source
from command import headcount
from line import print_line

from data_prep.align import choose
from data_prep.decode import Photo, decode
from data_prep.faces.overlap import overlaps
from data_prep.mtcnn.cascade import Detector
from data_prep.mtcnn.faces import Faces, Picture

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "real"
LFW = REAL / "lfw-deepfunneled.tar"
SCRFD = "scrfd_2.5g_bnkps.onnx"
WORK = ROOT / "build" / "detector"
HELDOUT = 500  # drawn photos
OTHERS = 1000  # photos of people who are not trained on
SAME = 0.6  # overlap of the teacher's box and the pupil's
NEAR = 0.05  # of the width of a box
BATCH = 32
COMMANDED = 1536  # photos that the whole command is timed on: six units


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--photos", type=int, default=2000, help="drawn photos to train on")
    parser.add_argument("overrides", nargs="*", help="key=value, for the recipe of `drawn` and `faces`")
    arguments = parser.parse_args()
    for name, case in CASES.items():
        if arguments.case in (None, name):
            line = case(arguments)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
            print_line({"benchmark": "detector", "case": name, **line, "peak_rss_mb": round(peak)})


def drawn(arguments: argparse.Namespace) -> dict[str, Any]:
    """Recall on held-out drawings, with hard mining and without."""
    train, heldout = WORK / f"drawn-{arguments.photos}", WORK / "drawn-heldout"
    if not train.exists():
        headcount("prep", "drawn-faces", train, "--photos", arguments.photos)
    if not heldout.exists():
        headcount("prep", "drawn-faces", heldout, "--photos", HELDOUT, "--seed", 1)
    recipe = ROOT / "configs" / "detector_drawn.yaml"
    results = {}
    for name, share in (("mining", 0.7), ("all", 1.0)):
        out = WORK / f"run-drawn-{name}"
        seconds = _train(recipe, out, train, f"hard_mining={share}", *arguments.overrides)
        results[name] = {"seconds": round(seconds), **_recall(out / "detector.safetensors", heldout)}
    ours, plain = results["mining"]["recall"], results["all"]["recall"]
    return {
        "ours": ours,
        "baseline": plain,
        "ratio": round(ours / plain, 4),
        "unit": "% of held-out drawn faces found at one false alarm per photo; baseline is without hard mining",
        **results,
        "shipped": _recall(None, heldout),
        "wanted": {"recall": 95, "seconds": 900},
        "run": {"photos": arguments.photos, "heldout": HELDOUT, "overrides": arguments.overrides},
    }


def _train(recipe: Path, out: Path, faces: Path, *overrides: str) -> float:
    """Train from nothing; seconds of the whole command."""
    shutil.rmtree(out, ignore_errors=True)
    return headcount("prep", "train-detector", recipe, f"sets=[{faces}]", f"out={out}", *overrides).seconds


def _recall(detector: Path | None, faces: Path) -> dict[str, float]:
    """What `prep eval-detector` says, in percent."""
    chosen = [] if detector is None else ["--detector", detector]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        headcount("prep", "eval-detector", faces, *chosen, "--json", path)
        (figures,) = json.loads(path.read_text(encoding="utf-8"))
    return {
        "recall": round(100 * figures["recall_at_false_alarms_per_photo"]["1"], 2),
        "recall_at_0.1": round(100 * figures["recall_at_false_alarms_per_photo"]["0.1"], 2),
        "average_precision": round(100 * figures["average_precision"], 2),
        "point_error": round(100 * figures["points"]["mean"], 2) if figures["points"] else float("nan"),
    }


def faces(arguments: argparse.Namespace) -> dict[str, Any]:
    """A pupil of the shipped detector on LFW's View 1, judged on other people and by LFW's View 2."""
    developed = set(_people("peopleDevTrain.txt"))
    taught = WORK / "lfw-view1"
    if not taught.exists():
        _write_taught(taught, developed)
    out = WORK / "run-faces"
    seconds = _train(ROOT / "configs" / "detector_lfw.yaml", out, taught, *arguments.overrides)
    pupil = out / "detector.safetensors"
    found, near, count = _compare(pupil, developed)
    return {
        "ours": found,
        "baseline": 97.0,
        "ratio": round(found / 97, 4),
        "unit": f"% of the teacher's main faces found at an overlap of {SAME}; baseline is the demand",
        "points_near": near,
        "photos": count,
        "seconds": round(seconds),
        "lfw": _lfw_accuracy("pupil", pupil),
        "wanted": {"points_near": 97, "seconds": 2400, "lfw": 98.5},
        "run": {"overrides": arguments.overrides},
    }


def _people(name: str) -> list[str]:
    """The names in one of LFW's lists of people."""
    lines = (REAL / "lfw-meta" / name).read_text(encoding="utf-8").split("\n")[1:]
    return [line.split("\t")[0] for line in lines if line.strip()]


def _lfw_photos(wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of LFW's photos of the people that are wanted, in the order of the tar."""
    with tarfile.open(LFW) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(".jpg") and wanted(member.name.split("/")[-2]):
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read()


def _pixels(data: bytes) -> Picture:
    photo = decode(data)
    if not isinstance(photo, Photo):
        raise TypeError(f"a photo of LFW cannot be decoded: {photo}")
    return photo.pixels


def _write_taught(folder: Path, people: set[str]) -> None:
    """A set of the photos of `people`, with all faces that the shipped detector finds."""
    begun = folder.with_suffix(".begun")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    for name, data in _lfw_photos(people.__contains__):
        (begun / name.split("/")[-1]).write_bytes(data)
    headcount("prep", "detect", begun, "--table", begun / "faces.csv")
    begun.rename(folder)


def _compare(pupil: Path, developed: set[str]) -> tuple[float, float, int]:
    """Shares in percent of the teacher's main faces that the pupil finds, and of these with all points near."""
    from data_prep.detectors.open import open_detector

    teacher, other = Detector(), open_detector(pupil)
    photos = [_pixels(data) for _, data in _lfw_photos(lambda name: name not in developed)]
    photos = photos[:: max(1, len(photos) // OTHERS)][:OTHERS]
    known = found = near = 0
    for start in range(0, len(photos), BATCH):
        part = photos[start : start + BATCH]
        for photo, theirs, mine in zip(part, teacher.detect(part), other.detect(part), strict=True):
            if not len(theirs.boxes):
                continue
            known += 1
            (main,) = choose(theirs, "main", *photo.shape[:2])
            at = _nearest(theirs.boxes[main], mine)
            if at is None:
                continue
            found += 1
            distance = np.linalg.norm(mine.landmarks[at] - theirs.landmarks[main], axis=1).mean()
            near += int(distance < NEAR * (theirs.boxes[main, 2] - theirs.boxes[main, 0]))
    return round(100 * found / known, 2), round(100 * near / max(1, found), 2), known


def _nearest(box: np.ndarray, found: Faces) -> int | None:
    """Number of the found face that overlaps a box most, if by `SAME`."""
    if not len(found.boxes):
        return None
    shared = overlaps(found.boxes.astype(np.float64), box[None].astype(np.float64))[:, 0]
    best = int(shared.argmax())
    return best if shared[best] >= SAME else None


def _lfw_accuracy(name: str, detector: Path | None) -> float:
    """Accuracy in percent on LFW's View 2 by the network of others, aligned through a detector."""
    chosen = [] if detector is None else ["--detector", detector]
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        made = Path(folder) / name
        headcount("prep", "align", LFW, made, *chosen)
        pairs, figures = Path(folder) / "view2.bin", Path(folder) / "figures.json"
        headcount("prep", "pairs", REAL / "lfw-meta" / "pairs.txt", made, pairs)
        model = REAL / "mobilefacenet_y1.onnx"
        headcount("eval", model, "-s", pairs, "--no-flip", "--input-range", "0..255", "--json", figures)
        (result,) = json.loads(figures.read_text(encoding="utf-8"))
    return round(100 * result["verification"][0]["accuracy"], 2)


def scrfd(_: argparse.Namespace) -> dict[str, Any]:
    """LFW through SCRFD, beside the shipped detector."""
    WORK.mkdir(parents=True, exist_ok=True)
    other, shipped = _lfw_accuracy("scrfd", REAL / SCRFD), _lfw_accuracy("mtcnn", None)
    return {
        "ours": other,
        "baseline": shipped,
        "ratio": round(other / shipped, 4),
        "unit": "% accuracy on LFW's View 2; baseline is the shipped detector",
        "wanted": {"accuracy": 99.2},
    }


def rate(_: argparse.Namespace) -> dict[str, Any]:
    """The command through SCRFD, beside the shipped detector, on photos from all over LFW."""
    with tempfile.TemporaryDirectory() as folder:
        source = _source(Path(folder))
        other, shipped = run_job(source, detector=REAL / SCRFD), run_job(source)
    ours, baseline = (each.photos / each.aligning_s for each in (other, shipped))
    return {
        "ours": round(ours, 1),
        "baseline": round(baseline, 1),
        "ratio": round(ours / baseline, 2),
        "unit": "photos/s of `headcount prep align`; baseline is the shipped detector",
        "photos": source.photos,
    }


def command(_: argparse.Namespace) -> dict[str, Any]:
    """The whole command beside the peer's detection alone, on photos from all over LFW."""
    with tempfile.TemporaryDirectory() as folder:
        align.install_peer()
        line = align.measure_job("job20", _source(Path(folder)))
    return {**line, "case": "command", "benchmark": "detector", "wanted": {"ratio": 5}}


def _source(folder: Path) -> Source:
    """What the command is timed on."""
    return write_source(folder, lambda: [align.at_size(each, align.JOBS["job20"]) for each in align.made()], COMMANDED)


CASES = {"drawn": drawn, "faces": faces, "scrfd": scrfd, "rate": rate, "command": command}

if __name__ == "__main__":
    main()
