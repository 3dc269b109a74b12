"""Cheap stand-ins for the detector, importable by workers; some fail as asked."""

import errno
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.transforms import Crop, Made, Process, Transform
from dist_train.data.reject import Reject


class Upper(Transform):
    """ "Aligns" a text by writing it in capitals; texts with `bad` in them are rejected, `two` gives two pictures."""

    image_size: int = 8
    batch: int = 3
    pause_s: float = 0.0

    def open(self) -> Process:
        return self._process

    def _process(self, photos: Sequence[bytes]) -> list[Made]:
        time.sleep(self.pause_s * len(photos))
        return [self._one(photo) for photo in photos]

    def _one(self, photo: bytes) -> Made:
        if b"bad" in photo:
            return Reject("no face", "it says bad")
        crop = Crop(photo.upper(), "jpg", {"length": len(photo)}, float(len(photo)), 0.5)
        return [crop, crop._replace(data=photo.upper() + b"2")] if b"two" in photo else [crop]


class Leading(Transform):
    """Takes a picture as it is; JSON after its end says by how much its face led over another, or null."""

    def open(self) -> Process:
        return lambda photos: [self._one(photo) for photo in photos]

    def _one(self, photo: bytes) -> Made:
        lead = json.loads(photo[photo.rindex(b"{") :])["lead"]
        record = {"box": [2, 2, 20, 20], "score": 0.9, "landmarks": [[9, 9]] * 5, "faces": 1}
        if lead is not None:
            record |= {"faces": 2, "lead": lead, "runner_up": [10, 2, 28, 20]}
        return [Crop(photo[: photo.rindex(b"{")], "png", record, 18.0, 0.9, lead)]


class Noting(Upper):
    """Leaves a file in `notes`, named by the variable `who` of the worker's environment, for who did the work."""

    notes: Path
    who: str

    def open(self) -> Process:
        (self.notes / os.environ[self.who]).touch()
        return super().open()


class Importing(Upper):
    """Fails where `module`, which is not installed, can be imported all the same."""

    module: str

    def open(self) -> Process:
        if importlib.util.find_spec(self.module) is not None:
            raise RuntimeError(f"{self.module} is found")
        return super().open()


class Failing(Upper):
    """Fails in the way and as often as the files in `orders` say: `NAME` holds how often a photo with NAME fails."""

    orders: Path

    def _one(self, photo: bytes) -> Made:
        for order in sorted(self.orders.iterdir()):
            if order.name.encode() in photo and self._left(order):
                if order.name.startswith("kill"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if order.name.startswith("full"):
                    raise OSError(errno.ENOSPC, "No space left on device")
                raise RuntimeError(f"ordered by {order.name}")
        return super()._one(photo)

    def _left(self, order: Path) -> bool:
        left = int(order.read_text())
        order.write_text(str(left - 1))
        return left > 0


class Counting(Upper):
    """Leaves a file in `notes`, named by the threads that torch and OpenCV would use in this worker, and its path."""

    notes: Path

    def open(self) -> Process:
        import cv2
        import torch

        counts = f"torch {torch.get_num_threads()}, cv2 {cv2.getNumThreads()}"
        (self.notes / f"{counts}, here {os.getcwd() in sys.path}").touch()
        return super().open()
