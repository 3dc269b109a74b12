"""The command `headcount prep detect`."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.detectors.options import (
    DetectorOption,
    FaceChoice,
    MinScoreOption,
    OnnxSideOption,
    ThresholdsOption,
    refuse_idle_side,
)
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.align import Choice
    from data_prep.decode import Photo
    from data_prep.detectors.detector import FaceDetector
    from data_prep.mtcnn.faces import Faces, Picture
    from dist_train.data.reject import Reject

BATCH = 16  # photos in memory at one time, or fewer where they are large


def detect(
    photos: Annotated[
        list[Path], typer.Argument(exists=True, help="photos to find faces in, or folders with photos anywhere in them")
    ],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="directory for the photos with their faces drawn in")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            dir_okay=False,
            help="table to write: a .csv, .tsv or .parquet with path, box, score and five points, a row a face; its "
            "folder holds the photos",
        ),
    ] = None,
    faces: Annotated[FaceChoice, typer.Option(help="which faces of a photo are taken, as by `prep align`")] = (
        FaceChoice.ALL
    ),
    min_face: Annotated[float, typer.Option(min=12, help="side of the smallest face to find, in pixels")] = 20,
    detector: DetectorOption = None,
    thresholds: ThresholdsOption = None,
    min_score: MinScoreOption = None,
    longer_side: OnnxSideOption = None,
    device: Annotated[str, typer.Option(help="where the detector runs: cpu or cuda")] = "cpu",
) -> None:
    """Find the faces in photos: draw boxes, scores and landmarks, or write them as a table.

    With --out the command prints for each photo the number of faces and the file with the drawn picture. The table is
    one that `prep train-detector` and `prep eval-detector` take as a set of known faces, and, with one face a photo,
    `prep align --landmarks`.

    Examples:

      headcount prep detect party.jpg --out seen

      headcount prep detect photos/*.jpg --out seen --min-face 40 --thresholds 0.6 0.7 0.9

      headcount prep detect party.jpg --out seen --detector scrfd_2.5g_bnkps.onnx --min-score 0.4

      headcount prep detect photos --table photos/faces.parquet --detector scrfd_2.5g_bnkps.onnx

      headcount prep detect photos --table photos/main.csv --faces main
    """
    from contextlib import ExitStack

    from data_prep.detectors.open import open_detector
    from data_prep.faces.table_file import check_name, named, table_file
    from dist_train.errors import UserError, WorkError
    from dist_train.runtime.written import write_failures

    if out is None and table is None:
        raise UserError("nothing is asked for; add --out DIRECTORY for drawn photos, --table FILE for a table, or both")
    paths = [path for each in photos for path in _photos_in(each)]
    if table is not None:
        check_name(table)
        paths = list({named(path, table.parent): path for path in paths}.values())  # each once: rows are of one photo
    refuse_idle_side(longer_side, detector)
    finder = open_detector(detector, device, min_face, thresholds, min_score=min_score, side_px=longer_side)
    drawings = _Drawings(out) if out is not None else None
    failed = 0
    with ExitStack() as stack:
        rows = None
        if table is not None:
            stack.enter_context(write_failures(f"--table {table}", "nothing is left of it"))
            rows = stack.enter_context(table_file(table))
        for path, found in _found(finder, paths, faces.value):
            if isinstance(found, str):
                echo(f"{path}: {found}", err=True)
                failed += 1
                continue
            picture, kept = found
            if rows is not None:
                rows.add(path, kept)
            if drawings is not None:
                drawings.add(path, picture, kept)
    if table is not None:
        echo(f"{table}: faces of {len(paths) - failed:,} photos")
    if failed:
        raise WorkError(f"{failed} of {len(paths)} photos could not be read, see above")


def _photos_in(path: Path) -> list[Path]:
    """A photo, or all photos anywhere in a folder, in the order of their names."""
    from data_prep.layouts.layout import SUFFIXES
    from dist_train.errors import UserError

    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    if not found:
        raise UserError(f"{path}: no photo in it; expected files named {', '.join(SUFFIXES)}")
    return found


def _found(
    finder: "FaceDetector", paths: list[Path], choice: "Choice"
) -> "Iterator[tuple[Path, tuple[Picture, Faces] | str]]":
    """Each photo's pixels and the chosen of its faces, or why it cannot be read."""
    from data_prep.align import choose
    from data_prep.decode import decode
    from data_prep.mtcnn.faces import Faces
    from data_prep.searched import in_groups
    from data_prep.sources.folder import read_file
    from dist_train.data.reject import Reject

    def opened() -> "Iterator[tuple[Path, Photo | Reject]]":
        for path in paths:
            data = read_file(bytes(path))
            yield path, (data if isinstance(data, Reject) else decode(data))

    def pixels(photo: "tuple[Path, Photo | Reject]") -> int:
        return 0 if isinstance(photo[1], Reject) else photo[1].pixels.size // 3

    for batch in in_groups(opened(), pixels, BATCH):
        found = iter(finder.detect([photo.pixels for _, photo in batch if not isinstance(photo, Reject)]))
        for path, photo in batch:
            if isinstance(photo, Reject):
                yield path, f"{photo.reason}: {photo.detail}"
                continue
            every = next(found)
            mine = choose(every, choice, *photo.pixels.shape[:2])
            yield path, (photo.pixels, Faces(*(values[mine] for values in every)))


class _Drawings:
    """The directory of photos with their faces drawn in; photos of equal names get numbers."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._taken: set[Path] = set()

    def add(self, photo: Path, picture: "Picture", faces: "Faces") -> None:
        """Write the drawn picture of a photo, and say where."""
        import cv2

        names = (f"{photo.stem}{f'-{number}' if number else ''}.jpg" for number in count())
        target = next(self._out / name for name in names if self._out / name not in self._taken)
        self._taken.add(target)
        drawn = cv2.cvtColor(draw(picture, faces), cv2.COLOR_RGB2BGR)
        target.write_bytes(cv2.imencode(".jpg", drawn)[1].tobytes())
        echo(f"{photo}: {len(faces.scores)} face{'' if len(faces.scores) == 1 else 's'}: {target}")


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
