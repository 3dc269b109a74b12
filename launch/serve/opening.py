"""What a service is asked to be, and the service that comes of it: by `headcount serve`, and by each replica on Ray."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from data_prep.detectors.file import require_points
from data_prep.detectors.open import open_detector
from data_prep.searched import DECODED_PX
from dist_train.data.aligner import Aligner
from dist_train.embed.gallery import Gallery
from dist_train.errors import UserError
from dist_train.evaluate.models import Model, load_model
from dist_train.export.convention import Stated
from launch.embed.aligner import check_aligner, refuse_idle_detector, source_aligner
from launch.embed.views import check_model
from launch.serve.finder import AlignedFaces, Finder, WholePictures
from launch.serve.known import open_known
from launch.serve.limits import Limits
from launch.serve.service import Service, open_service
from launch.serve.threshold import served_threshold


@dataclass(frozen=True)
class Wanted:
    """What is to be served.

    Attributes:
        model: a run directory, a checkpoint or an .onnx file.
        gallery: to search; None: nobody is known.
        allow_enroll: people may be added to it.
        align: faces are found and aligned; None: as for the gallery, and without one they are.
        flip: the mirrored face's embedding is added; None: as above.
        detector: another file of one; None: the one that comes along.
        any_aligner: faces may be placed by another detector than those that the model and the gallery know.
        min_face: side of the smallest face in pixels.
        longer_side: larger photos are shrunk to this side in pixels for the search.
        fmr: share of pairs of two people that may match; None: the lowest that was measured.
        calibration: figures of `headcount eval --json`; None: what the model states.
        said: what an .onnx file of others takes.
        limits: of requests.
    """

    model: Path
    gallery: Path | None = None
    allow_enroll: bool = False
    align: bool | None = None
    flip: bool | None = None
    detector: Path | None = None
    any_aligner: bool = False
    min_face: float = 20
    longer_side: int = 1024
    fmr: float | None = None
    calibration: Path | None = None
    said: Stated = field(default_factory=Stated)
    limits: Limits = field(default_factory=Limits)


def open_wanted(wanted: Wanted, device: torch.device) -> Service:
    """Open the model, the detector and the gallery, and start the service.

    Raises:
        UserError: they do not go together, or one of them cannot be used.
    """
    gallery = wanted.gallery
    base = Gallery(gallery) if gallery is not None and (gallery / "gallery.json").exists() else None
    network = load_model(wanted.model, device, wanted.said)
    flip, align = wanted.flip, wanted.align
    if base is not None:
        if base.parts:
            raise UserError(
                f"gallery {gallery} is of {len(base.parts)} models, and a service has one; serve one of theirs"
            )
        check_model(base, base.made_by, network)
        if flip is None:
            flip = bool(base.made_by["flip"])
        if align is None:
            align = any(base.aligned)
    flip, align = flip is not False, align is not False
    decision = served_threshold(network, flip, wanted.fmr, wanted.calibration, _other(base, network))
    finder: Finder = WholePictures(network.image_size, wanted.limits.photo_pixels)
    own = None
    refuse_idle_detector(wanted.detector, align)
    if align:
        finder, own = _aligning(wanted, base, network, device)
    known = None if gallery is None else open_known(gallery, base, network, flip, own, wanted.allow_enroll)
    return open_service(network, finder, align, flip, known, decision, wanted.limits)


def _aligning(
    wanted: Wanted, base: Gallery | None, network: Model, device: torch.device
) -> tuple[AlignedFaces, Aligner]:
    """The finder of faces, and the name of what places them; the model and the gallery know the same."""
    searcher = open_detector(
        wanted.detector, device.type, wanted.min_face, batch_px=DECODED_PX // 4, side_px=wanted.longer_side
    )
    require_points(searcher, wanted.detector)
    own = Aligner(searcher.name, searcher.digest)
    trained_on = f"the pictures that model {network.name} was trained on"
    check_aligner(own, network.aligner(), trained_on, wanted.any_aligner)
    for source in base.sources if base is not None else ():
        check_aligner(own, source_aligner(source), f"the pictures of gallery {wanted.gallery}", wanted.any_aligner)
    limits = wanted.limits
    found = AlignedFaces(
        searcher, network.image_size, wanted.min_face, wanted.longer_side, limits.photo_pixels, limits.faces
    )
    return found, own


def _other(base: Gallery | None, network: Model) -> str:
    """Name of the gallery's model, where it is not the one that is served."""
    if base is None or base.made_by["model"]["sha256"] == network.digest():
        return ""
    return str(base.made_by["model"]["name"])
