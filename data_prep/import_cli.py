"""`headcount prep import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.layouts.job import Imported, Shape


def import_folder(
    folder: Annotated[Path, typer.Argument(help="folder of an unpacked set")],
    out: Annotated[Path, typer.Argument(help="directory to make, with a set for each part in it")],
    layout: Annotated[
        str | None,
        typer.Option(
            help="sop, inshop, market, tinyface, cfp, agedb, xqlfw, rfw, or folders: a folder of pictures for each "
            "identity; by default it is found by its lists and directories"
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=1024,
            help="pictures are scaled to squares of this side in pixels; by default they are copied byte for byte",
        ),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="faces are found and aligned, at 112 pixels or --image-size; else the centre is kept",
        ),
    ] = False,
) -> None:
    """Make sets of shards from a known set as it is downloaded: roles, cameras and pairs are taken from its lists.

    OUT/train and OUT/test have the parts that the set's makers chose, with "role" and further fields in the samples'
    .json; lists of pairs become OUT/NAME.bin. A list that is missing, or names a picture that is not there, is refused.

    Examples:

      headcount prep import Stanford_Online_Products sets/sop --image-size 224

      headcount prep import Market-1501-v15.09.15 sets/market --image-size 128

      headcount prep import cfp-dataset sets/cfp --align

      headcount prep import photos/ sets/mine --layout folders --image-size 112
    """
    from data_prep.layouts.job import import_set
    from data_prep.layouts.table import find_layout

    found = find_layout(folder, layout)
    shape: Shape = "align" if align else "copy" if image_size is None else "resize"
    echo(_told(out, found.name, import_set(folder, out, found, shape, image_size)))


def _told(out: Path, layout: str, made: "Imported") -> str:
    lines = [f"{out}: layout {layout}"]
    for part, (count, identities) in made.parts.items():
        lines.append(f"  {out / part}: {count:,} pictures of {identities:,} identities")
    lines += [f"  {out / name}.bin: {count:,} pairs" for name, count in made.pairs.items()]
    lines += [f"  left out: {count:,} {what}" for what, count in made.left_out.items()]
    if made.oblong:
        lines.append(
            f"  {made.oblong:,} pictures are not square: they can be evaluated on, and training refuses them; "
            "--image-size scales them"
        )
    return "\n".join(lines)
