"""Pictures for `dist_train.embed`: crops of an origin's encoded pictures."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.align import crop_centre, crop_landmarks
from data_prep.decode import decode
from dist_train.data.reject import Reject
from dist_train.embed.gallery import Match
from dist_train.embed.pictures import Picture, Place
from dist_train.errors import UserError, WorkError
from launch.embed.crops import Cropper, Cut
from launch.embed.open import open_origin
from launch.embed.origins import Found, Origin


class Photos:
    """A `PictureSource` of encoded pictures.

    Args:
        origin: gives the encoded pictures.
        crop: the cropper.
    """

    def __init__(self, origin: Origin, crop: Cropper) -> None:
        self._origin, self._crop = origin, crop

    def described(self) -> dict[str, Any]:
        """Description of origin and cropper, as JSON values."""
        return {**self._origin.described(), **self._crop.described()}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The listing of the origin."""
        return self._origin.batches()

    def read(self, rows: pa.RecordBatch) -> list[tuple[Place, Picture | Reject]]:
        """The crops or rejects of listed rows."""
        read = self._origin.read(rows)
        cuts = iter(self._crop([found.data for _, found in read if isinstance(found, Found)]))
        return [(place, _picture(found, next(cuts)) if isinstance(found, Found) else found) for place, found in read]

    def close(self) -> None:
        """Close the origin."""
        self._origin.close()


def _picture(found: Found, cut: Cut | Reject) -> Picture | Reject:
    if isinstance(cut, Reject):
        return cut
    if cut.found is None:
        return Picture(cut.pixels, found.identity, found.label, found.score)
    score, landmarks = float(cut.found.scores[cut.taken]), cut.found.landmarks[cut.taken]
    return Picture(cut.pixels, found.identity, found.label, score, len(cut.found.scores), landmarks)


def matched_pictures(
    matches: Sequence[Match], sources: Sequence[dict[str, Any]], side_px: int, limit_s: float = math.inf
) -> list[NDArray[np.uint8] | None]:
    """The pictures of matches as they were embedded, each uint8 [side_px, side_px, 3]; None where one is gone.

    Args:
        matches: of a search.
        sources: descriptions of their sources, `Gallery.sources`; each is opened once.
        side_px: side of the results in pixels.
        limit_s: after so many seconds no further picture is read: the rest is None.
    """
    until = time.monotonic() + limit_s
    opened: dict[int, Origin | None] = {}
    found: list[NDArray[np.uint8] | None] = []
    with ExitStack() as closing:
        for match in matches:
            if time.monotonic() >= until:
                found.append(None)
                continue
            if match.source not in opened:
                origin = opened[match.source] = _opened(sources[match.source])
                if origin is not None:
                    closing.callback(origin.close)
            found.append(_matched(match, opened[match.source], side_px))
    return found


def _opened(source: dict[str, Any]) -> Origin | None:
    """The origin of a gallery's source; None where it is gone."""
    try:
        return open_origin(Path(source["path"]), source.get("label_key", "label"))
    except (UserError, WorkError, OSError):
        return None


def _matched(match: Match, origin: Origin | None, side_px: int) -> NDArray[np.uint8] | None:
    """The picture of a match as it was embedded; None where it is gone."""
    if origin is None:
        return None
    try:
        data = origin.fetch(match.place)
    except (UserError, WorkError, OSError):
        return None
    photo = decode(data) if isinstance(data, bytes) else data
    if isinstance(photo, Reject):
        return None
    if match.landmarks is None:
        return crop_centre(photo.pixels, side_px)
    return crop_landmarks(photo.pixels, match.landmarks, side_px)
