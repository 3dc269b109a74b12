"""`headcount prep import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.detectors.options import DetectorOption, MinScoreOption, ThresholdsOption, refuse_beside
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.layouts.job import Imported, Shape
    from data_prep.transforms import Transform


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
            help="faces are found and aligned, at 112 pixels or --image-size; without a face the centre is kept",
        ),
    ] = False,
    detector: DetectorOption = None,
    thresholds: ThresholdsOption = None,
    min_score: MinScoreOption = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            exists=True,
            dir_okay=False,
            help="with --align: faces are at the points of this table, as for `prep align`, and no detector runs; "
            "paths start from the folder",
        ),
    ] = None,
) -> None:
    """Make sets of shards from a known set as it is downloaded: roles, cameras and pairs are taken from its lists.

    OUT/train and OUT/test have the parts that the set's makers chose, with "role" and further fields in the samples'
    .json; lists of pairs become OUT/NAME.bin. A list that is missing, or names a picture that is not there, is refused.

    Examples:

      headcount prep import Stanford_Online_Products sets/sop --image-size 224

      headcount prep import Market-1501-v15.09.15 sets/market --image-size 128

      headcount prep import cfp-dataset sets/cfp --align

      headcount prep import cfp-dataset sets/cfp --align --detector scrfd_2.5g_bnkps.onnx

      headcount prep import photos/ sets/mine --layout folders --image-size 112
    """
    from data_prep.layouts.job import DEFAULT_PX, import_set
    from data_prep.layouts.table import find_layout
    from dist_train.errors import UserError

    search: dict[str, object] = {"--detector": detector, "--thresholds": thresholds, "--min-score": min_score}
    if not align and (given := [name for name, value in {**search, "--landmarks": landmarks}.items() if value]):
        raise UserError(f"{given[0]} goes with --align; add it, or leave {given[0]} out")
    if landmarks is not None:
        refuse_beside("--landmarks", search)
    found = find_layout(folder, layout)
    shape: Shape = "copy" if image_size is None else "resize"
    if align:
        shape = _aligned(image_size or DEFAULT_PX, detector, thresholds, min_score, landmarks)
    echo(_told(out, found.name, import_set(folder, out, found, shape, image_size)))


def _aligned(
    image_size: int,
    detector: Path | None,
    thresholds: tuple[float, float, float] | None,
    min_score: float | None,
    landmarks: Path | None,
) -> "Transform":
    """The transform that cuts faces out; figures of a set need all its pictures, so none is dropped."""
    from data_prep.align_transform import Align
    from data_prep.detectors.file import read_detector_file
    from data_prep.detectors.open import check_scores
    from data_prep.landmarks.table import open_table
    from data_prep.landmarks.transform import Placed

    if landmarks is not None:
        return Placed(image_size=image_size, table=open_table(landmarks), no_face="centre")
    check_scores(detector, thresholds, min_score)
    return Align(
        image_size=image_size,
        detector=detector and read_detector_file(detector, points=True),
        thresholds=thresholds,
        min_score=min_score,
        no_face="centre",
    )


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
