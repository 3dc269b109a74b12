"""The cascade of face detection on the device beside the CPU: the same faces, and photos a second."""

import itertools
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.parts import photos_in
from data_prep.drawn.photo import PhotoSpec, draw_photo
from data_prep.mtcnn.cascade import Detector
from data_prep.mtcnn.faces import Faces, Picture

MOST_OFF_PX = 1.0
SURE = 0.95  # a face that is less certain may be found by one of the two alone


def run(bench: Bench) -> None:
    """Compare the faces, then time both."""
    photos = pictures(bench)
    plain = Detector("cpu", min_face_px=24)
    expected: list[Faces] = []
    plain.detect(photos[:2])
    cpu_ms = bench.once_ms(lambda: expected.extend(plain.detect(photos)))
    types = {"float16": torch.float16, "float32": torch.float32} if bench.cuda else {"float32": torch.float32}
    for name, dtype in types.items():
        with bench.case(name):
            near = Detector(bench.device, min_face_px=24, precision=dtype)
            found = near.detect(photos)
            figures = compare(found, expected)
            ms = bench.ms(lambda near=near: near.detect(photos), seconds=0.1 if bench.small else 2.0)
            rates = {"photos_s": 1e3 * len(photos) / ms, "cpu_photos_s": 1e3 * len(photos) / cpu_ms}
            ok = figures["alone"] == 0 and figures["furthest_px"] <= MOST_OFF_PX
            if name == "float32":  # float16 is no choice of any command, and is measured to say why
                figures["ok"] = ok
            bench.line(name, **figures, **rates, photos=len(photos), cpu_threads=torch.get_num_threads())


def pictures(bench: Bench) -> list[Picture]:
    """The photos of the folder that was named, or drawn ones."""
    if bench.photos is not None:
        read = (cv2.imread(str(path)) for path in sorted(photos_in(bench.photos)))
        found = (cv2.cvtColor(each, cv2.COLOR_BGR2RGB) for each in read if each is not None)
        if photos := list(itertools.islice(found, 256)):
            return photos
        raise ValueError(f"--photos {bench.photos}: none of its files can be read as a photo")
    spec = PhotoSpec() if bench.small else PhotoSpec(640, 480, 24, 300, 6)
    return [draw_photo(spec, number).pixels for number in range(3 if bench.small else 64)]


def compare(found: list[Faces], expected: list[Faces]) -> dict[str, Any]:
    """How many faces there are, how many of the certain ones one side alone has, and how far the others lie apart."""
    furthest, alone, faces = 0.0, 0, 0
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in ((one, other), (other, one)):
            for box, score in zip(mine.boxes, mine.scores, strict=True):
                off = np.abs(theirs.boxes - box).max(axis=1).min() if len(theirs.boxes) else np.inf
                faces += 1
                if off <= 10 * MOST_OFF_PX:
                    furthest = max(furthest, float(off))
                elif score > SURE:
                    alone += 1
    return {"faces": faces // 2, "alone": alone, "furthest_px": furthest}
