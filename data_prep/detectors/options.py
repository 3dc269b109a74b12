"""The options by which commands choose a detector."""

from pathlib import Path
from typing import Annotated

import typer

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
