"""The options by which commands choose a detector."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dist_train.errors import UserError

DetectorOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="another detector: a .safetensors of a trained cascade, or an .onnx with SCRFD, RetinaFace or YuNet",
    ),
]
ThresholdsOption = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        help="lowest scores that a cascade's three networks accept, between 0 and 1; by default 0.6 0.7 0.7, or those "
        "of --detector"
    ),
]
MinScoreOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="lowest score of a face, by any detector; by default a cascade's last threshold, and 0.5 of an .onnx",
    ),
]

OnnxSideOption = Annotated[
    int | None,
    typer.Option(
        "--longer-side",
        min=12,
        help="photos are shrunk to this side in pixels for an .onnx that takes any size; by default to 640",
    ),
]


class FaceChoice(StrEnum):
    """Rules that choose among the faces of a photo; see `data_prep.align.choose`."""

    MAIN = "main"
    LARGEST = "largest"
    SUREST = "surest"
    CENTRAL = "central"
    ALL = "all"


def refuse_idle_side(longer_side_px: int | None, detector: Path | None) -> None:
    """Refuse a side for the search by a detector that has none: a cascade searches photos as they are.

    Raises:
        UserError: one was given.
    """
    if longer_side_px is not None and (detector is None or detector.suffix != ".onnx"):
        raise UserError(
            f"--longer-side {longer_side_px} goes with --detector FILE.onnx here: a cascade takes photos as they are; "
            "leave it out"
        )


def refuse_beside(option: str, others: dict[str, object]) -> None:
    """Refuse options that mean nothing beside another one.

    Raises:
        UserError: one of them was given.
    """
    if given := [name for name, value in others.items() if value]:
        raise UserError(f"{given[0]} goes with looking for faces, and with {option} none is looked for; leave it out")
