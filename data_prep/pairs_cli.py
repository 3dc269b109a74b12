"""`headcount prep pairs`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.pairs import PairsMade

_NAMED = 10  # missing photos in the message; all are in OUT.rejects.csv


def pairs(
    listed: Annotated[
        Path,
        typer.Argument(
            metavar="LIST", help="list of pairs: LFW's pairs.txt or one like it, or a .csv, .tsv or .parquet"
        ),
    ],
    directory: Annotated[Path, typer.Argument(metavar="SET", help="a set that `headcount prep align` made")],
    out: Annotated[Path, typer.Argument(metavar="OUT.bin", help="verification set to write")],
    left_column: Annotated[str, typer.Option(help="column of a table with the paths of the first photos")] = "left",
    right_column: Annotated[str, typer.Option(help="column of a table with the paths of the second photos")] = "right",
    same_column: Annotated[
        str, typer.Option(help="column of a table with 1 or true for the same person, 0 or false for two people")
    ] = "same",
) -> None:
    """Make a verification set in InsightFace's .bin form from a list of pairs and the aligned faces of their photos.

    A photo is found by the source that `headcount prep align` noted beside each picture; its path may begin in another
    folder. Pairs keep their order, since the folds of the protocol follow it. A pair with a photo that has no picture
    in SET is left out; such photos are counted, and named in OUT.bin.rejects.csv. If a photo is neither in SET nor
    among its rejects, the status is 1: LIST and SET do not belong together.

    Examples:

      headcount prep pairs lfw-meta/pairs.txt sets/lfw lfw.bin

      headcount prep pairs pairs.csv sets/mine mine.bin --left-column a --right-column b --same-column match
    """
    from data_prep.pairs import make_pairs
    from dist_train.data.pair_list import Columns, read_pairs
    from dist_train.data.photos import UNKNOWN
    from dist_train.errors import UserError, WorkError

    if out.suffix != ".bin":
        raise UserError(f"{out}: expected a name that ends with .bin")
    made = make_pairs(read_pairs(listed, Columns(left_column, right_column, same_column)), directory, out)
    told = _told(out, made)
    if unknown := made.reasons()[UNKNOWN]:
        raise WorkError(
            f"{told}\nphotos of {listed} that are neither in {directory} nor among its rejects: {unknown:,}"
        )
    echo(told)


def _told(out: Path, made: "PairsMade") -> str:
    from dist_train.data.reject import counted
    from dist_train.embed.table import rejects_path

    same = sum(pair.same for pair in made.pairs)
    kinds = f"{same:,} of the same person, {len(made.pairs) - same:,} of two"
    if not made.missing:
        return f"{out}: all {made.asked:,} pairs, {kinds}"
    lines = [
        f"{out}: {len(made.pairs):,} of {made.asked:,} pairs, {kinds}; {made.asked - len(made.pairs):,} left out, "
        "so that the folds after them shift",
        f"photos without a picture: {counted(made.reasons())}; named in {rejects_path(out)}",
    ]
    lines += [f"  {photo!r}: {place.reason}" for photo, place in list(made.missing.items())[:_NAMED]]
    if len(made.missing) > _NAMED:
        lines.append("  ...")
    return "\n".join(lines)
