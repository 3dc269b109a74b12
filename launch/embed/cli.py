"""The command `headcount embed`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.detectors.options import DetectorOption
from dist_train.evaluate.options import (
    ColorOption,
    MeanOption,
    OutputOption,
    RangeOption,
    SizeOption,
    StdOption,
    stated,
)
from dist_train.runtime.imports import quick_imports
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.detectors.file import DetectorFile
    from launch.embed.crops import Cropper


class Face(StrEnum):
    """Rules that choose one face of several: those of `headcount prep align --faces` but `all`."""

    MAIN = "main"
    LARGEST = "largest"
    SUREST = "surest"
    CENTRAL = "central"


FaceOption = Annotated[
    Face, typer.Option(help="which face of a photo is taken; main is one that is large and near the centre")
]
MinFaceOption = Annotated[
    float, typer.Option(min=12, help="side of the smallest face to find, in pixels of the photo after --longer-side")
]
LongerSideOption = Annotated[
    int | None,
    typer.Option(min=12, help="larger photos are shrunk to this side in pixels for the search; by default none is"),
]
MinQualityOption = Annotated[
    str | None,
    typer.Option(
        metavar="norm:X|score:X",
        help="leaves pictures out whose embedding is shorter, or whose face the detector is less sure of, than X",
    ),
]
AnyAlignerOption = Annotated[
    bool,
    typer.Option(
        "--any-aligner", help="accept another detector than the one by which the model's pictures are aligned"
    ),
]
DeviceOption = Annotated[str, typer.Option(help="where the model runs: auto, cpu or cuda")]


def embed(
    model: Annotated[Path, typer.Argument(help="model: a run directory, a checkpoint or an .onnx file")],
    source: Annotated[
        Path,
        typer.Argument(help="pictures: a photo, a folder (folders in it name identities), shards, a .rec, or a table"),
    ],
    out: Annotated[
        Path, typer.Argument(help="file to write: NAME.parquet, or NAME.npy with NAME.names.parquet beside it")
    ],
    align: Annotated[
        bool, typer.Option("--align", help="find and align the faces; without it pictures count as aligned")
    ] = False,
    face: FaceOption = Face.MAIN,
    min_face: MinFaceOption = 20,
    longer_side: LongerSideOption = None,
    detector: DetectorOption = None,
    any_aligner: AnyAlignerOption = False,
    flip: Annotated[bool, typer.Option(help="whether the mirrored picture's embedding is added")] = True,
    batch_size: Annotated[int, typer.Option(min=1, max=8192, help="pictures in one forward pass of a rank")] = 64,
    label_key: Annotated[
        str, typer.Option(help="key of the label in the .json of samples that have no .cls")
    ] = "label",
    device: DeviceOption = "auto",
    input_range: RangeOption = None,
    input_mean: MeanOption = None,
    input_std: StdOption = None,
    input_color: ColorOption = None,
    input_size: SizeOption = None,
    output: OutputOption = None,
    min_quality: MinQualityOption = None,
) -> None:
    """Embed photos, folders or shards into a parquet table or a NumPy array.

    The command can be stopped at any moment; the same command continues where it was. Every picture without an
    embedding is in OUT.rejects.csv with the reason. The command is one process; under torchrun ranks share the work.

    Examples:

      headcount embed runs/faces photos/ faces.parquet --align

      headcount embed runs/faces/model.onnx sets/aligned faces.npy

      torchrun --nproc-per-node 8 -m launch embed runs/faces photos/ faces.parquet --align
    """
    with quick_imports():
        from dist_train.embed.job import embed_source
        from dist_train.embed.min_quality import parse_min_quality
        from dist_train.evaluate.models import load_model
        from dist_train.runtime.ranks import join_ranks, leave_ranks
        from launch.embed.aligner import check_aligner, open_detector_file, warn_of_set
        from launch.embed.open import open_origin
        from launch.embed.photos import Photos

    check_device(device)
    least = parse_min_quality(min_quality)
    said = stated(input_range, input_mean, input_std, input_color, input_size, output)
    ranks = join_ranks(device, None)
    try:
        opened = ranks.agree(lambda: load_model(model, ranks.device, said))
        chosen = ranks.agree(lambda: open_detector_file(detector, align))
        crop = cropper(opened.image_size, align, face, min_face, longer_side, ranks.device.type, chosen)
        known = f"the pictures that model {opened.name} was trained on"
        ranks.agree(lambda: check_aligner(crop.aligner(), opened.aligner(), known, any_aligner))
        if not align and ranks.rank == 0:
            warn_of_set(opened.aligner(), source)
        photos = ranks.agree(lambda: Photos(open_origin(source, label_key), crop))
        made = embed_source(opened, photos, out, batch_size=batch_size, flip=flip, ranks=ranks, min_quality=least)
        photos.close()
        if made is not None:
            echo("\n".join([str(made), *made.examples()]))
    finally:
        leave_ranks(ranks)


def check_device(device: str) -> None:
    """Raise a UserError for a name that is no device."""
    from dist_train.errors import UserError

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device!r}: expected auto, cpu or cuda")


def cropper(
    image_size: int,
    align: bool,
    face: Face,
    min_face_px: float,
    longer_side_px: int | None,
    device: str,
    detector: "DetectorFile | None" = None,
) -> "Cropper":
    """The cropper that the options ask for."""
    from launch.embed.crops import AlignedFace, Centre

    if not align:
        return Centre(image_size)
    return AlignedFace(image_size, face.value, min_face_px, longer_side_px, device, detector)
