"""What is embedded: pictures cut for the network, and the sources that give them.

This package does not know photos, archives or faces: a source does, and is handed in (`launch/embed/` has one for all
that `data_prep` reads).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_train.data.reject import Reject


class Place(NamedTuple):
    """Where a picture lies in its source: enough to read it again.

    Attributes:
        path: relative to the source, as messages and tables name it.
        offset: of the encoded picture in its archive; 0 for a file.
        size: of it in bytes; 0 for a file.
    """

    path: str
    offset: int = 0
    size: int = 0


class Picture(NamedTuple):
    """One input, ready for the network.

    Attributes:
        pixels: uint8 [S, S, 3], red first.
        identity: name of whom it shows, where known.
        label: class number in its set, where known.
        score: certainty of the face detector, 0 to 1, where a face was looked for.
        faces: number of faces in the photo, where they were looked for.
        landmarks: float32 [5, 2], pixels of the photo, where the face was aligned.
    """

    pixels: NDArray[np.uint8]
    identity: str | None = None
    label: int | None = None
    score: float | None = None
    faces: int | None = None
    landmarks: NDArray[np.float32] | None = None


class PictureSource(Protocol):
    """Gives the pictures of a job."""

    def described(self) -> dict[str, Any]:
        """All that decides which pictures it gives, as JSON values."""
        ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The list of inputs, always in the same order; the columns are the source's own.

        Raises:
            UserError: the source is not what it was taken for.
        """
        ...

    def read(self, rows: pa.RecordBatch) -> list[tuple[Place, Picture | Reject]]:
        """The inputs that were listed as `rows`, in order. Called by one thread, not always the same.

        Raises:
            WorkError: the storage failed, rather than single inputs.
        """
        ...

    def close(self) -> None:
        """Let go of open files."""
        ...
