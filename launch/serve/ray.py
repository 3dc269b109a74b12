"""A Ray Serve application: the service of `headcount serve`, in as many replicas as are wanted, over a cluster.

    serve run launch.serve.ray:application model=/shared/runs/faces token_file=/shared/token.txt replicas=4

Each replica opens the model, the detector and the gallery itself, so their paths must lead to the same files on every
node. Nobody can be enrolled: one process writes a gallery, and that is `headcount serve`.
"""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from ray import serve

from dist_train.evaluate.options import InputColor, InputRange, stated

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.types import ASGIApp

NAME = "headcount"

Shared = Annotated[Path, AfterValidator(Path.absolute)]  # replicas have working directories of their own


class Options(BaseModel):
    """Arguments of the application, as in a Serve config file's `args` or behind `serve run`.

    Attributes:
        model: a run directory, a checkpoint or an .onnx file.
        token_file: of the token that clients send, read by each replica. It is needed: where Ray's proxy listens is
            Ray's affair, and it may be everywhere.
        gallery: to search.
        align, flip, detector, any_aligner, min_face, longer_side, fmr, calibration: as `headcount serve` has them.
        input_range, input_mean, input_std, input_color, input_size, output: likewise, of an .onnx file of others.
        max_bytes, max_pixels, max_faces, max_waiting, timeout, batch_size: likewise, for each replica.
        replicas: how many.
        cpus: of each, which are its threads too.
        gpus: of each, or a part of one; 0: it computes on the CPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Shared
    token_file: Shared
    gallery: Shared | None = None
    align: bool | None = None
    flip: bool | None = None
    detector: Shared | None = None
    any_aligner: bool = False
    min_face: Annotated[float, Field(ge=12)] = 20
    longer_side: Annotated[int, Field(ge=12)] = 1024
    fmr: Annotated[float | None, Field(ge=0, le=1)] = None
    calibration: Shared | None = None
    input_range: InputRange | None = None
    input_mean: str | None = None
    input_std: str | None = None
    input_color: InputColor | None = None
    input_size: Annotated[int | None, Field(ge=8)] = None
    output: str | None = None
    max_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 10 << 20
    max_pixels: Annotated[int, Field(ge=1024, le=150_000_000)] = 25_000_000
    max_faces: Annotated[int, Field(ge=1, le=1000)] = 50
    max_waiting: Annotated[int, Field(ge=2, le=10_000)] = 64
    timeout: Annotated[float, Field(ge=1, le=600)] = 30
    batch_size: Annotated[int, Field(ge=1, le=256)] = 16
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    cpus: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus: Annotated[float, Field(ge=0, le=16)] = 0


def application(options: Options) -> "Application":
    """The application; Ray calls this with the arguments of `serve run` or of a config file."""

    def build() -> "ASGIApp":
        return _open(options)

    deployed = serve.deployment(
        name=NAME,
        num_replicas=options.replicas,
        # The guard refuses what is too much at once; Ray's own queue would only make clients wait longer for that.
        max_ongoing_requests=2 * options.max_waiting,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )
    return deployed(serve.ingress(build)()).bind()


def _open(options: Options) -> "ASGIApp":
    """The HTTP interface of one replica, in its process."""
    from dist_train.runtime.ranks import join_ranks
    from launch.serve.app import make_app
    from launch.serve.cli import read_token
    from launch.serve.limits import Limits
    from launch.serve.opening import Wanted, open_wanted

    token = read_token(options.token_file)
    limits = Limits(
        request_bytes=options.max_bytes,
        photo_pixels=options.max_pixels,
        faces=options.max_faces,
        waiting=options.max_waiting,
        request_s=options.timeout,
        batch=options.batch_size,
    )
    said = stated(
        options.input_range,
        options.input_mean,
        options.input_std,
        options.input_color,
        options.input_size,
        options.output,
    )
    same = {each.name for each in fields(Wanted)} & Options.model_fields.keys()
    wanted = Wanted(**{name: getattr(options, name) for name in same}, said=said, limits=limits)
    service = open_wanted(wanted, join_ranks("cuda" if options.gpus else "cpu", options.cpus).device)
    return make_app(service, token)
