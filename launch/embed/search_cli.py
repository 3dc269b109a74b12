"""The commands `headcount search build`, `append`, `remove` and `query`."""

import os
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
from launch.embed.cli import (
    AnyAlignerOption,
    DeviceOption,
    Face,
    FaceOption,
    LongerSideOption,
    MinFaceOption,
    MinQualityOption,
    check_device,
    cropper,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from data_prep.mtcnn.faces import Faces
    from dist_train.embed.gallery import Gallery, Match
    from dist_train.embed.sheet import Tile
    from launch.embed.crops import Cropper, Cut
    from launch.embed.decision import Decision
    from launch.embed.views import View


class RowKind(StrEnum):
    """Numbers of a gallery's rows by name."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


app = typer.Typer(help="Build a gallery of embeddings, and search it with a photo.", no_args_is_help=True)

_TILE_PX = 160
_PHOTO_PX = 480  # longer side of the query's photo in the drawn result
_UNKNOWN = "?"


@app.callback()
def search() -> None:
    """Build a gallery of embeddings, and find in it who a photo shows."""


@app.command()
def build(
    files: Annotated[
        list[Path], typer.Argument(metavar="EMBEDDINGS...", help="files of `headcount embed`, all of one model")
    ],
    gallery: Annotated[Path, typer.Argument(help="directory to make for the gallery")],
    min_quality: MinQualityOption = None,
    fusion: Annotated[
        Path | None,
        typer.Option(
            metavar="FUSION.json",
            help="figures by `headcount eval --fuse A --fuse B --json`: EMBEDDINGS are of the same pictures, by one "
            "model each, and cosines are the sums that were learned there",
        ),
    ] = None,
    rows: Annotated[
        RowKind,
        typer.Option(
            help="what a search reads: copies of the rows in float16 or int8, a half or a quarter of the memory; the "
            "exact rows decide among the best of them, and matches stay the same"
        ),
    ] = RowKind.float32,
    faiss: Annotated[
        bool,
        typer.Option(
            "--faiss",
            help="divide the rows into cells, of which a search reads the nearest: for pictures that lie in groups; a "
            "match in another cell is missed",
        ),
    ] = False,
) -> None:
    """Make a gallery of embeddings, all of one model, or of several models' embeddings of the same pictures.

    Examples:

      headcount search build faces.parquet gallery

      headcount search build staff.parquet guests.npy gallery

      headcount search build faces.parquet gallery --rows int8

      headcount search build faces.parquet gallery --faiss

      headcount search build faces.parquet gait.parquet gallery --fusion fusion.json
    """
    from dist_train.embed.compact import Rows
    from dist_train.embed.gallery import build_gallery
    from dist_train.embed.min_quality import parse_min_quality
    from dist_train.errors import UserError

    if faiss and (rows is not RowKind.float32 or fusion is not None):
        other = "--fusion" if fusion is not None else f"--rows {rows.value}"
        raise UserError(f"--faiss with {other}: a gallery in cells has int8 rows of one model; give one of the two")
    if fusion is not None:
        if rows is not RowKind.float32:
            raise UserError(f"--rows {rows.value}: a fused gallery is searched in float32; leave --rows out")
        _build_fused(files, gallery, fusion, min_quality)
        return
    kind = Rows.cells if faiss else Rows(rows.value)
    made = build_gallery(files, gallery, min_quality=parse_min_quality(min_quality), rows=kind)
    left_out = f"; {made.left_out:,} rows of low quality left out" if made.left_out else ""
    echo(
        f"{gallery}: {len(made):,} rows of {made.embedding_dim} numbers, by model {made.made_by['model']['name']}"
        f"{left_out}"
    )


@app.command()
def append(
    gallery: Annotated[Path, typer.Argument(help="directory of the gallery")],
    files: Annotated[
        list[Path], typer.Argument(metavar="EMBEDDINGS...", help="files of `headcount embed`, by the gallery's model")
    ],
) -> None:
    """Append embeddings to a gallery, without building it again. A kill leaves it as it was before, or after.

    Examples:

      headcount search append gallery new.parquet
    """
    from dist_train.embed.changes import append_rows

    made, count = append_rows(gallery, files)
    echo(f"{gallery}: {count:,} rows appended, {len(made):,} now")


@app.command()
def remove(
    gallery: Annotated[Path, typer.Argument(help="directory of the gallery")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="identities, all of whose pictures are removed")
    ] = None,
    picture: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="one picture, as `search query` prints it; repeatable")
    ] = None,
) -> None:
    """Remove people or pictures from a gallery, without building it again. A kill leaves it as before, or after.

    No search finds them any more; their bytes leave the disk when the gallery is built again.

    Examples:

      headcount search remove gallery "Ann Lee" "Bob Ray"

      headcount search remove gallery --picture photos/ann/3.jpg
    """
    from dist_train.embed.changes import remove_rows

    made, count = remove_rows(gallery, names or (), picture or ())
    echo(f"{gallery}: {count:,} rows removed, {len(made):,} left")


def _build_fused(files: list[Path], gallery: Path, fusion: Path, min_quality: str | None) -> None:
    from dist_train.embed.fused_gallery import build_fused_gallery
    from dist_train.errors import UserError
    from dist_train.evaluate.fusion_file import read_fusion

    if min_quality is not None:
        raise UserError("--min-quality leaves rows of one model out; embed with it, `headcount embed --min-quality`")
    learned = read_fusion(fusion)
    made, notes = build_fused_gallery(files, gallery, learned)
    weights = ", ".join(f"{part.name} {part.weight:.3f}" for part in learned.parts)
    echo("\n".join([f"{gallery}: {len(made):,} rows of {made.embedding_dim} numbers, fused: {weights}", *notes]))


@app.command()
def query(
    gallery: Annotated[Path, typer.Argument(help="directory of the gallery")],
    photos: Annotated[
        list[Path],
        typer.Argument(
            metavar="PHOTO...",
            help="photo to search the gallery with; in a fused gallery one for all models, or one for each --model",
        ),
    ],
    model: Annotated[
        list[Path],
        typer.Option(
            help="model that the gallery was embedded with, or one compatible with it; repeat it for a fused gallery"
        ),
    ],
    align: Annotated[
        bool | None,
        typer.Option("--align/--no-align", help="whether the face is found and aligned; by default as for the gallery"),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="number of matches to show")] = 5,
    face: FaceOption = Face.MAIN,
    min_face: MinFaceOption = 20,
    longer_side: LongerSideOption = None,
    detector: DetectorOption = None,
    any_aligner: AnyAlignerOption = False,
    out: Annotated[Path, typer.Option(help="PNG file for a picture of the matches")] = Path("matches.png"),
    device: DeviceOption = "auto",
    input_range: RangeOption = None,
    input_mean: MeanOption = None,
    input_std: StdOption = None,
    input_color: ColorOption = None,
    input_size: SizeOption = None,
    output: OutputOption = None,
    fmr: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="share of pairs of two people that may match: says of each picture whether it is a match"
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="EVAL.json",
            help="figures by `headcount eval --json`, with the model's thresholds; by default those that its file "
            "states",
        ),
    ] = None,
) -> None:
    """Find the pictures of a gallery that are most like a photo, by exact search.

    Prints rank, cosine, name and picture of each match, and draws them beside the photo. With --fmr a picture is called
    a match where its cosine is at least the threshold that was measured for this rate.

    Examples:

      headcount search query gallery who.jpg --model runs/faces

      headcount search query gallery who.jpg --model runs/faces/model.onnx --align -k 10 --out found.png

      headcount search query gallery who.jpg --model runs/faces --fmr 1e-4 --calibration figures.json

      headcount search query fused who.jpg --model runs/faces --model runs/small --fmr 1e-3
    """
    from dist_train.runtime.extras import require

    require("report", "headcount search query, which draws what it found")
    with quick_imports():
        from dist_train.embed.gallery import Gallery
        from dist_train.embed.sheet import write_sheet
        from dist_train.evaluate.models import load_models
        from dist_train.runtime.ranks import join_ranks
    from launch.embed.aligner import check_aligner, open_detector_file, source_aligner
    from launch.embed.decision import check_options, decide
    from launch.embed.photos import matched_pictures
    from launch.embed.views import FusedModels, joined_features, views_for

    check_device(device)
    check_options(fmr, calibration)
    said = stated(input_range, input_mean, input_std, input_color, input_size, output)
    opened = Gallery(gallery)
    where = join_ranks(device, None).device
    networks = load_models(model, where, said)
    views = views_for(opened, networks, photos)
    measured = FusedModels(opened) if opened.parts else networks[0]
    decision = None if fmr is None else decide(opened, measured, fmr, calibration)
    wanted = [view.aligned if align is None else align for view in views]
    chosen = open_detector_file(detector, any(wanted))
    features: list[Tensor] = []
    shown: dict[Path, list[Tile]] = {}
    for view, faces in zip(views, wanted, strict=True):
        crop = cropper(view.model.image_size, faces, face, min_face, longer_side, where.type, chosen if faces else None)
        known = f"the pictures that model {view.model.name} was trained on"
        check_aligner(crop.aligner(), view.model.aligner(), known, any_aligner)
        for source in opened.sources:
            check_aligner(crop.aligner(), source_aligner(source), f"the pictures of gallery {gallery}", any_aligner)
        data, cut = _cut(view.photo, crop)
        if cut.found is not None and view.photo not in shown:
            echo(_told(view.photo, cut.found, cut.taken, face))
        features.append(_embedded(view, cut.pixels))
        shown.setdefault(view.photo, _query_tiles(data, cut))
    (matches,) = opened.search(joined_features(opened, features), k)
    for rank, match in enumerate(matches, start=1):
        verdict = "" if decision is None else f"{decision.verdict(match.score):8}  "
        echo(f"{rank:3}  {match.score:.4f}  {verdict}{_name(match)}  {_full_path(opened, match)}")
    if decision is not None:
        echo("\n".join(decision.told()))
    pictures = matched_pictures(matches, opened.sources, _TILE_PX)
    tiles = [
        _tile(pixels, match, rank, decision)
        for rank, (match, pixels) in enumerate(zip(matches, pictures, strict=True), start=1)
    ]
    asked = ", ".join(each.name for each in shown)
    title = f"{asked} in {gallery.name}: {len(matches)} of {len(opened):,} pictures, by {measured.name}; cosine"
    queries = [tile for each in shown.values() for tile in each]
    write_sheet(out, queries, tiles, title + ("" if decision is None else f"; {decision.title}"))
    echo(f"look at {out}")


def _embedded(view: "View", pixels: "NDArray[np.uint8]") -> "Tensor":
    from dist_train.evaluate.embeddings import embed_pictures

    return embed_pictures(view.model.embed, lambda _: pixels, 1, 1, flip=view.flip, name=str(view.photo)).features


def _cut(photo: Path, crop: "Cropper") -> tuple[bytes, "Cut"]:
    """The photo's bytes, and its crop."""
    from data_prep.sources.base import MAX_FILE_BYTES
    from dist_train.data.reject import Reject
    from dist_train.errors import UserError
    from dist_train.runtime.files import first_fault, read_bounded

    try:
        data = read_bounded(photo, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"photo {photo}: {first_fault(error)}") from error
    (cut,) = crop([data])
    if isinstance(cut, Reject):
        hint = "; a smaller --min-face finds smaller ones, --no-align takes the whole picture"
        raise UserError(f"photo {photo}: {cut.reason}: {cut.detail}{hint if cut.reason == 'no face' else ''}")
    return data, cut


def _told(photo: Path, found: "Faces", taken: int, face: Face) -> str:
    """Text that names the face that is searched for."""
    left, top, right, bottom = (round(float(side)) for side in found.boxes[taken])
    where = f"{right - left}x{bottom - top} pixels at {left},{top}, score {found.scores[taken]:.3f}"
    count = len(found.scores)
    if count == 1:
        return f"{photo}: one face, {where}"
    others = ", ".join(other.value for other in Face if other is not face)
    return f"{photo}: {count} faces; the {face.value} one is taken, {where} (or --face {others}, or a cut-out photo)"


def _name(match: "Match") -> str:
    if match.identity is not None:
        return match.identity
    return _UNKNOWN if match.label is None else f"label {match.label}"


def _full_path(gallery: "Gallery", match: "Match") -> str:
    """Where a picture is, spelt as its source spells it, so that `remove` knows it: a `Path` drops `./` and `/`."""
    from dist_train.embed.gallery import source_folder

    path = match.place.path
    return path if "://" in path else os.path.join(source_folder(gallery.sources[match.source]), path)


def _tile(pixels: "NDArray[np.uint8] | None", match: "Match", rank: int, decision: "Decision | None") -> "Tile":
    from dist_train.embed.sheet import Tile

    names = [] if (name := _name(match)) == _UNKNOWN else [name]
    verdict = "" if decision is None else f", {decision.verdict(match.score)}"
    return Tile(pixels, [f"{rank}:  {match.score:.3f}{verdict}", *names, match.place.path])


def _query_tiles(data: bytes, cut: "Cut") -> list["Tile"]:
    """Tiles of the query: its crop, and its photo with the faces marked."""
    import cv2
    import numpy as np

    from data_prep.decode import Photo, decode
    from data_prep.detect_cli import draw
    from dist_train.embed.sheet import Tile

    tiles = [Tile(cut.pixels, ["looked for"])]
    photo = decode(data)
    if cut.found is not None and isinstance(photo, Photo):
        share = min(1.0, _PHOTO_PX / max(photo.pixels.shape[:2]))
        small = cv2.resize(photo.pixels, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        scaled = cut.found._replace(
            boxes=cut.found.boxes * np.float32(share), landmarks=cut.found.landmarks * np.float32(share)
        )
        count = len(cut.found.scores)
        tiles.append(Tile(draw(np.asarray(small, np.uint8), scaled), [f"{count} face{'s' if count > 1 else ''} in it"]))
    return tiles
