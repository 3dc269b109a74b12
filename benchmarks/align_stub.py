"""The transform of `headcount prep align` with a detector that costs nothing, beside decode, warp and encode alone."""

import argparse
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from line import print_line

from data_prep import align_transform
from data_prep.align import crop_landmarks, encode_crop
from data_prep.align_transform import Align
from data_prep.decode import Photo, decode
from data_prep.mtcnn.faces import Faces, Picture

LFW = Path(__file__).parents[2] / "shared" / "real" / "lfw-deepfunneled.tar"
PHOTOS, ROUNDS = 512, 7
POINTS = np.float32([[[103, 113], [147, 113], [125, 138], [107, 162], [143, 162]]])
FACES = Faces(np.float32([[80, 65, 170, 190]]), np.float32([0.99]), POINTS)


class Stub:
    """A detector that finds the same face in every picture."""

    name, digest, has_points, sure = "stub", "0" * 64, True, 0.5

    def detect(self, images: Sequence[Picture]) -> list[Faces]:
        """One face of each picture."""
        return [FACES] * len(images)


def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=["stub"], default="stub")
    parser.add_argument("--photos", type=int, default=PHOTOS)
    photos = read_photos(parser.parse_args().photos)
    align_transform.open_detector = lambda *_, **__: Stub()
    process = Align().open()
    whole, alone = [], []
    for _ in range(ROUNDS):  # in turn, so that both meet the same noise
        whole.append(seconds(lambda: [process(photos[start : start + 32]) for start in range(0, len(photos), 32)]))
        alone.append(seconds(lambda: [by_hand(photo) for photo in photos]))
    ours, baseline = (len(photos) / min(times) for times in (whole, alone))
    print_line(
        {
            "benchmark": "align_stub",
            "case": "stub",
            "ours": round(ours, 1),
            "baseline": round(baseline, 1),
            "ratio": round(ours / baseline, 3),
            "ratio_median": round(statistics.median(b / a for a, b in zip(whole, alone, strict=True)), 3),
            "unit": "photos/s of processor time",
            "wanted": {"ratio": 0.9},
            "photos": len(photos),
            "source": "LFW, deep-funneled" if LFW.exists() else "noise",
        }
    )


def read_photos(count: int) -> list[bytes]:
    """Encoded photos of 250 x 250 pixels."""
    if not LFW.exists():
        noise = np.random.default_rng(0).integers(0, 256, (25, 25, 3), np.uint8)
        return [cv2.imencode(".jpg", cv2.resize(noise, (250, 250)))[1].tobytes()] * count
    found: list[bytes] = []
    with tarfile.open(LFW) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".jpg") else None
            if file is not None:
                found.append(file.read())
            if len(found) == count:
                break
    return found


def by_hand(data: bytes) -> bytes:
    """What has to be done with a photo whose face is known."""
    photo = decode(data)
    if not isinstance(photo, Photo):
        raise ValueError("the photos of this benchmark can be decoded")
    return encode_crop(crop_landmarks(photo.pixels, POINTS[0], 112), 95)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call, which is on one thread: other programs on the machine hardly change it."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
