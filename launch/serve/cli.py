"""The command `headcount serve`."""

import os
from pathlib import Path
from typing import Annotated

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
from launch.embed.cli import AnyAlignerOption, DeviceOption, MinFaceOption, check_device

TOKEN_VARIABLE = "HEADCOUNT_TOKEN"
_LEAST_TOKEN, _MOST_TOKEN = 16, 1024  # characters


def serve(
    model: Annotated[Path, typer.Argument(help="model: a run directory, a checkpoint or an .onnx file")],
    gallery: Annotated[
        Path | None,
        typer.Option(help="gallery to search, by `headcount search build`; with --allow-enroll a new one too"),
    ] = None,
    allow_enroll: Annotated[
        bool, typer.Option("--allow-enroll", help="let clients add people to the gallery and take them out again")
    ] = False,
    host: Annotated[
        str, typer.Option(help="address to listen at; others than this machine's need a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen at; 0 for any that is free")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"file with the token that clients send; by default the variable {TOKEN_VARIABLE}"),
    ] = None,
    align: Annotated[
        bool | None,
        typer.Option(
            "--align/--no-align",
            help="whether faces are found and aligned; by default as for the gallery, and without one they are",
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="whether the mirrored face's embedding is added; by default as above"),
    ] = None,
    detector: DetectorOption = None,
    any_aligner: AnyAlignerOption = False,
    min_face: MinFaceOption = 20,
    longer_side: Annotated[
        int, typer.Option(min=12, help="larger photos are shrunk to this side in pixels for the search")
    ] = 1024,
    fmr: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="share of pairs of two people that may match; by default the lowest that was measured"
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="EVAL.json", help="figures by `headcount eval --json`; by default what the model states"),
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1024, max=1 << 30, help="bytes of a request")] = 10 << 20,
    max_pixels: Annotated[int, typer.Option(min=1024, max=150_000_000, help="pixels of a photo")] = 25_000_000,
    max_faces: Annotated[int, typer.Option(min=1, max=1000, help="faces of a photo; of more the surest")] = 50,
    max_waiting: Annotated[
        int, typer.Option(min=2, max=10_000, help="photos that wait, /verify has two; one more is answered 429")
    ] = 64,
    max_connections: Annotated[int, typer.Option(min=1, max=10_000, help="connections open at a time")] = 256,
    timeout: Annotated[float, typer.Option(min=1, max=600, help="seconds for a request, half of them to send it")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="photos in one pass")] = 16,
    batch_wait: Annotated[
        float, typer.Option(min=0, max=1000, help="milliseconds that an idle service waits for a second photo")
    ] = 2,
    device: DeviceOption = "auto",
    input_range: RangeOption = None,
    input_mean: MeanOption = None,
    input_std: StdOption = None,
    input_color: ColorOption = None,
    input_size: SizeOption = None,
    output: OutputOption = None,
) -> None:
    """Answer requests over HTTP: faces, embeddings, same person or not, who it is.

    The page at / tries it with a photo; /docs says what can be asked. Nothing that is sent is stored, but what
    --allow-enroll lets clients enrol. SIGTERM or Ctrl-C ends the service once it has answered what it took.

    Examples:

      headcount serve runs/faces

      headcount serve runs/faces/model.onnx --gallery gallery --allow-enroll

      headcount serve runs/faces --gallery gallery --host 0.0.0.0 --token-file token.txt
    """
    from dist_train.runtime.extras import require

    require("serve", "headcount serve")
    with quick_imports():
        from dist_train.runtime.ranks import join_ranks
        from launch.serve.app import make_app
        from launch.serve.limits import Limits
        from launch.serve.opening import Wanted, open_wanted
        from launch.serve.server import serve as answer

    check_device(device)
    token = read_token(token_file)
    check_place(host, token is not None, gallery is not None, allow_enroll)
    said = stated(input_range, input_mean, input_std, input_color, input_size, output)
    limits = Limits(
        request_bytes=max_bytes,
        photo_pixels=max_pixels,
        faces=max_faces,
        waiting=max_waiting,
        request_s=timeout,
        connections=max_connections,
        batch=batch_size,
        batch_wait_s=batch_wait / 1000,
    )
    wanted = Wanted(
        model=model,
        gallery=gallery,
        allow_enroll=allow_enroll,
        align=align,
        flip=flip,
        detector=detector,
        any_aligner=any_aligner,
        min_face=min_face,
        longer_side=longer_side,
        fmr=fmr,
        calibration=calibration,
        said=said,
        limits=limits,
    )
    service = open_wanted(wanted, join_ranks(device, None).device)
    try:
        answer(make_app(service, token), host, port, limits)
    finally:
        service.close()


def read_token(path: Path | None) -> str | None:
    """The token of a file, or of the environment; None where there is none.

    Raises:
        UserError: it cannot be read, or is no token.
    """
    from dist_train.errors import UserError
    from dist_train.runtime.files import first_fault, read_bounded

    if path is None:
        where, text = f"variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE)
        if not text:
            return None
    else:
        where = f"--token-file {path}"
        try:
            text = read_bounded(path, 4 * _MOST_TOKEN).decode("ascii").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{where}: {first_fault(error)}") from error
    if not (_LEAST_TOKEN <= len(text) <= _MOST_TOKEN and text.isascii() and text.isprintable() and " " not in text):
        raise UserError(
            f"{where}: expected {_LEAST_TOKEN} to {_MOST_TOKEN} printable characters without spaces; "
            "make one: openssl rand -hex 32"
        )
    return text


def check_place(host: str, has_token: bool, has_gallery: bool, allow_enroll: bool) -> None:
    """Refuse a service that everybody could use, and enrolment without a gallery.

    Raises:
        UserError: the options do not go together.
    """
    from dist_train.errors import UserError
    from launch.serve.server import is_local

    if not has_token and not is_local(host):
        raise UserError(
            f"--host {host}: other machines could use the service; give --token-file, or the variable {TOKEN_VARIABLE}"
        )
    if allow_enroll and not has_gallery:
        raise UserError("--allow-enroll: where to? Give --gallery; a new directory will do")
