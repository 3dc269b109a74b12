"""The command `headcount prep detect`."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.detectors.options import DetectorOption, MinScoreOption, ThresholdsOption
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.mtcnn.faces import Faces, Picture

BATCH = 16  # photos in memory at one time


def detect(
    photos: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="photos to find faces in")],
    out: Annotated[Path, typer.Option(file_okay=False, help="directory for the photos with their faces drawn in")],
    min_face: Annotated[float, typer.Option(min=12, help="side of the smallest face to find, in pixels")] = 20,
    detector: DetectorOption = None,
    thresholds: ThresholdsOption = None,
    min_score: MinScoreOption = None,
    device: Annotated[str, typer.Option(help="where the detector runs: cpu or cuda")] = "cpu",
) -> None:
    """Draw boxes, scores and landmarks of the faces in photos.

    For each photo the command prints the number of faces and the file with the drawn picture.

    Examples:

      headcount prep detect party.jpg --out seen

      headcount prep detect photos/*.jpg --out seen --min-face 40 --thresholds 0.6 0.7 0.9

      headcount prep detect party.jpg --out seen --detector scrfd_2.5g_bnkps.onnx --min-score 0.4
    """
    import cv2

    from data_prep.decode import decode
    from data_prep.detectors.open import open_detector
    from dist_train.data.reject import Reject
    from dist_train.errors import WorkError

    finder = open_detector(detector, device, min_face_px=min_face, thresholds=thresholds, min_score=min_score)
    out.mkdir(parents=True, exist_ok=True)
    targets = _targets(photos, out)
    failed = 0
    for start in range(0, len(photos), BATCH):
        batch = photos[start : start + BATCH]
        decoded = [decode(path.read_bytes()) for path in batch]
        found = iter(finder.detect([photo.pixels for photo in decoded if not isinstance(photo, Reject)]))
        for path, photo in zip(batch, decoded, strict=True):
            target = next(targets)
            if isinstance(photo, Reject):
                echo(f"{path}: {photo.reason}: {photo.detail}", err=True)
                failed += 1
                continue
            faces = next(found)
            drawn = cv2.cvtColor(draw(photo.pixels, faces), cv2.COLOR_RGB2BGR)
            target.write_bytes(cv2.imencode(".jpg", drawn)[1].tobytes())
            echo(f"{path}: {len(faces.scores)} face{'' if len(faces.scores) == 1 else 's'}: {target}")
    if failed:
        raise WorkError(f"{failed} of {len(photos)} photos could not be read, see above")


def draw(picture: "Picture", faces: "Faces") -> "Picture":
    """A copy of a picture [H, W, 3], RGB, with its faces marked; lines are as wide as suits its size."""
    import cv2
    import numpy as np

    from data_prep.faces.marked import GREEN, line_width, mark_faces

    marked, width = mark_faces(picture, faces.boxes, faces.landmarks), line_width(picture)
    for box, score in zip(faces.boxes, faces.scores, strict=True):
        left, top, _, bottom = (round(float(side)) for side in box)
        text = left, top - 2 * width if top > 15 * width else bottom + 12 * width
        told = "" if np.isnan(score) else f"{score:.3f}"
        cv2.putText(marked, told, text, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * width, GREEN, width, cv2.LINE_AA)
    return marked


def _targets(photos: list[Path], out: Path) -> Iterator[Path]:
    """Output paths, one for each photo; photos of equal names get numbers."""
    taken: set[Path] = set()
    for photo in photos:
        names = (f"{photo.stem}{f'-{number}' if number else ''}.jpg" for number in count())
        target = next(out / name for name in names if out / name not in taken)
        taken.add(target)
        yield target
