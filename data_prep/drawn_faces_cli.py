"""The command `headcount prep drawn-faces`."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from dist_train.errors import UserError
from dist_train.runtime.terminal import echo

_SIZE = re.compile(r"([0-9]{2,4})x([0-9]{2,4})")
_SIDES = range(48, 4097)


def drawn_faces(
    output: Annotated[Path, typer.Argument(help="folder to make, with photos/, faces.csv and sheet.png in it")],
    photos: Annotated[int, typer.Option(min=1, max=10_000_000, help="number of photos")] = 2000,
    size: Annotated[str, typer.Option(help="width and height of a photo in pixels")] = "320x240",
    faces: Annotated[int, typer.Option(min=1, max=50, help="largest number of faces in a photo")] = 4,
    min_face: Annotated[int, typer.Option(min=8, help="height of the smallest face in pixels")] = 20,
    max_face: Annotated[
        int, typer.Option(min=8, help="height of the largest face in pixels; none is above 0.9 of the photo")
    ] = 300,
    seed: Annotated[
        int, typer.Option(min=0, help="seed of every random choice; the same seed gives the same bytes")
    ] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of processes; by default one for each core")
    ] = None,
) -> None:
    """Draw photos of faces with known boxes and five points, without any download.

    Heads of many shapes and colours on textures, with turn, light and shadow, hair, glasses, covers and blur, among
    things that are no faces. About one photo in eight has no face. The folder is a set for `headcount prep
    eval-detector` and for the training of a detector.

    Examples:

      headcount prep drawn-faces data/drawn

      headcount prep drawn-faces data/heldout --photos 500 --seed 1

      headcount prep drawn-faces data/crowds --size 640x480 --faces 20 --max-face 120
    """
    found = _SIZE.fullmatch(size)
    if not found or not all(int(side) in _SIDES for side in found.groups()):
        raise UserError(f"--size {size!r}: expected WIDTHxHEIGHT of {_SIDES[0]} to {_SIDES[-1]} pixels, as 320x240")
    from data_prep.drawn.job import SHEET, draw_faces
    from data_prep.drawn.photo import PhotoSpec

    spec = PhotoSpec(int(found[1]), int(found[2]), min_face, max_face, faces, seed)
    made = draw_faces(output, spec, photos, workers or len(os.sched_getaffinity(0)))
    echo(
        f"{output}: {made.photos:,} photos with {made.faces:,} faces, {made.empty:,} of them without one; look at "
        f"{output / SHEET}"
    )
