"""The interface of a detector of faces."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Protocol

from data_prep.mtcnn.faces import Faces, Picture

THRESHOLDS = (0.6, 0.7, 0.7)
"""Of the three networks' scores, in the cascade that comes with this package."""
SHIPPED = "mtcnn"
"""Name of that cascade, and of others of its kind."""


@cache
def shipped_digest() -> str:
    """SHA-256 of that cascade's weights; read without torch, which takes seconds to import."""
    return hashlib.sha256((resources.files("data_prep.mtcnn") / "weights.npz").read_bytes()).hexdigest()


class FaceDetector(Protocol):
    """A detector of faces in batches of pictures of mixed sizes, for one thread at a time.

    Attributes:
        name: of its kind, e.g. `mtcnn`.
        digest: SHA-256 of its weights.
        has_points: whether it finds the five landmarks; without they are NaN.
        sure: score from which on a face is hardly ever one of a photo on its side or head.
    """

    name: str
    digest: str
    has_points: bool
    sure: float

    def detect(self, images: Sequence[Picture]) -> list[Faces]:
        """The faces of each picture, uint8 [height, width, 3], RGB."""
        ...
