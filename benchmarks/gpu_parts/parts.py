"""The parts by name, in the order of their worth; without torch, which they import when they run."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """A part.

    Attributes:
        module: in this package; its `run` takes a `Bench`.
        weight: of its share of the minutes, about the seconds that it takes on an H100.
        needs: modules without which it is skipped.
        cuda: it says nothing on a CPU.
    """

    module: str
    weight: float
    needs: tuple[str, ...] = ()
    cuda: bool = False


HEAD = ("numpy", "pydantic")
PROGRAM = (*HEAD, "cv2", "yaml", "pyarrow", "psutil", "safetensors", "fsspec")

PARTS = {
    "device": Part("device", 10),
    "head-correct": Part("head_correct", 60, HEAD),
    "step": Part("step", 40, PROGRAM),
    "head": Part("head_speed", 75, HEAD),
    "backbone": Part("backbone", 50, PROGRAM),
    "waits": Part("waits", 15, PROGRAM, cuda=True),
    "detector": Part("detector", 25, (*HEAD, "cv2", "torchvision", "safetensors")),
    "profile": Part("profile", 20, PROGRAM),
    "storage": Part("storage", 25, HEAD),
    "input": Part("inputs", 25, ("numpy", "cv2")),
    "onnx": Part("onnx", 25, (*HEAD, "onnx", "onnxscript", "onnxruntime")),
    "compile": Part("compiled", 60, PROGRAM, cuda=True),
}


def share_s(parts: list[str], until: float) -> float:
    """Seconds that the first of `parts` may take: its share of what is left until the time `until`."""
    weights = [PARTS[name].weight for name in parts]
    left = max(0.0, until - time.time())
    return min(left, 1.5 * left * weights[0] / sum(weights))


PHOTOS = (".jpg", ".jpeg", ".png")


def photos_in(folder: Path) -> Iterator[Path]:
    """The files of a folder, and of those within it, that are named as photos are."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in PHOTOS)
