"""Options of the command line that say what an ONNX file of others takes; shared by `eval`, `embed` and `search`."""

import math
from enum import StrEnum
from typing import Annotated

import typer

from dist_train.errors import UserError
from dist_train.export.convention import RANGES, Channels, Color, Stated


class InputRange(StrEnum):
    """Ranges of values by name."""

    LEVELS = "0..255"
    UNIT = "0..1"
    SIGNED = "-1..1"


class InputColor(StrEnum):
    """Orders of the channels."""

    RGB = "rgb"
    BGR = "bgr"


_PANEL = "ONNX files of others"

RangeOption = Annotated[
    InputRange | None,
    typer.Option("--input-range", help="range of the pixel values that the model takes", rich_help_panel=_PANEL),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        "--input-mean",
        metavar="M[,M,M]",
        help="mean that is subtracted from the values 0..255, one for all channels or one for each",
        rich_help_panel=_PANEL,
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        "--input-std",
        metavar="S[,S,S]",
        help="number that the difference is divided by, one for all channels or one for each",
        rich_help_panel=_PANEL,
    ),
]
ColorOption = Annotated[
    InputColor | None,
    typer.Option("--input-color", help="order of the channels that the model takes", rich_help_panel=_PANEL),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--input-size",
        min=8,
        max=4096,
        help="side of the pictures in pixels, if the file leaves it open",
        rich_help_panel=_PANEL,
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output", help="name of the output with the embeddings, if there are several outputs", rich_help_panel=_PANEL
    ),
]


def stated(
    input_range: InputRange | None,
    input_mean: str | None,
    input_std: str | None,
    input_color: InputColor | None,
    input_size: int | None,
    output: str | None,
) -> Stated:
    """What the options say together.

    Raises:
        UserError: a range beside a mean or a deviation, one of these two alone, or values that are no such numbers.
    """
    if input_range is not None and (input_mean is not None or input_std is not None):
        raise UserError("--input-range says mean and deviation already; leave --input-mean and --input-std out")
    if (input_mean is None) != (input_std is None):
        raise UserError("--input-mean and --input-std go together: a value is given as (value - mean) / std")
    mean, std = _channels("--input-mean", input_mean), _channels("--input-std", input_std)
    if std is not None and not all(std):
        raise UserError(f"--input-std {input_std}: division by zero")
    if input_range is not None:
        both = RANGES[input_range.value]
        mean, std = (both[0],) * 3, (both[1],) * 3
    color: Color | None = None if input_color is None else input_color.value
    return Stated(mean, std, color, input_size, output)


def _channels(name: str, text: str | None) -> Channels | None:
    """One number for all channels, or three."""
    if text is None:
        return None
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise UserError(f"{name} {text!r}: expected a number, or three with commas between")
    first, *rest = values
    return (first, rest[0], rest[1]) if rest else (first,) * 3
