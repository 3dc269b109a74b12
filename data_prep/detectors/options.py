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


class FaceChoice(StrEnum):
    """Rules that choose among the faces of a photo; see `data_prep.align.choose`."""

    MAIN = "main"
    LARGEST = "largest"
    SUREST = "surest"
    CENTRAL = "central"
    ALL = "all"


def refuse_beside(option: str, others: dict[str, object]) -> None:
    """Refuse options that mean nothing beside another one.

    Raises:
        UserError: one of them was given.
    """
    if given := [name for name, value in others.items() if value]:
        raise UserError(f"{given[0]} goes with looking for faces, and with {option} none is looked for; leave it out")
