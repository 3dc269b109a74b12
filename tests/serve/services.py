"""Services for tests: one in the test's process, and a client that asks it without a network."""

import asyncio
import functools
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import numpy as np
import torch

from data_prep.detectors.open import open_detector
from dist_train.embed.gallery import Gallery
from dist_train.evaluate.calibration import Calibration, Point
from dist_train.evaluate.models import Model
from launch.embed.decision import Decision
from launch.serve.app import make_app
from launch.serve.finder import AlignedFaces, WholePictures
from launch.serve.known import open_known
from launch.serve.limits import Limits
from launch.serve.service import open_service
from tests.data.sets import encode, picture

PORTRAIT = (Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").read_bytes()  # one face
SIZE, CELLS = 32, 4
DIM = 3 * CELLS * CELLS
THRESHOLD = 0.9


def embed(images: torch.Tensor) -> torch.Tensor:
    """The mean colours of 4 x 4 cells: [B, 3, S, S] -> [B, 48]."""
    return torch.nn.functional.adaptive_avg_pool2d(images, CELLS).flatten(1)


def model() -> Model:
    return Model("cells", embed, SIZE, DIM, lambda: "a" * 64)


def expected(pixels: np.ndarray) -> np.ndarray:
    """The unit embedding [48] of a crop with its mirrored one, by the plain formula."""

    def cells(square: np.ndarray) -> np.ndarray:
        side = SIZE // CELLS
        scaled = (square.astype(np.float64) - 127.5) / 127.5
        return scaled.reshape(CELLS, side, CELLS, side, 3).mean((1, 3)).transpose(2, 0, 1).reshape(-1)

    both = cells(pixels) + cells(pixels[:, ::-1])
    return both / np.linalg.norm(both)


def photo(number: int, extension: str = ".png") -> bytes:
    """An aligned picture; each number shows somebody else."""
    return encode(picture(number, SIZE), extension)


def decision() -> Decision:
    point = Point(1e-3, THRESHOLD, 0.02, (0.01, 0.03), True)
    return Decision(THRESHOLD, point, Calibration("a" * 64, "visitors", 60, 1710, (point,)), 0)


@functools.cache
def detector() -> Any:
    return open_detector(min_face_px=20)


class Client:
    """While entered, a service and what asks it.

    Args:
        gallery: directory of the gallery; None for none.
        aligned: look for faces.
        token: that is needed.
        told: the threshold.
        enroll: whether people may be added.
        base: the gallery's own files.
        limits: fields of `Limits`.
    """

    def __init__(
        self,
        gallery: Path | None = None,
        aligned: bool = False,
        token: str | None = None,
        told: Decision | None = None,
        enroll: bool = False,
        base: Gallery | None = None,
        **limits: Any,
    ) -> None:
        bounds = Limits(**limits)
        network = model()
        known = None if gallery is None else open_known(gallery, base, network, True, None, enroll)
        whole = WholePictures(SIZE, bounds.photo_pixels)
        finder = AlignedFaces(detector(), SIZE, 20, 1024, bounds.photo_pixels, bounds.faces) if aligned else whole
        self.service = open_service(network, finder, aligned, True, known, told, bounds)
        self.app = make_app(self.service, token)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.service.close()

    def ask(self, path: str, method: str = "POST", **request: Any) -> httpx.Response:
        """The answer to one request."""
        (answer,) = self.ask_all([(path, {"method": method, **request})])
        return answer

    def ask_all(self, requests: list[tuple[str, dict[str, Any]]]) -> list[httpx.Response]:
        """The answers to requests that come at once."""

        async def all_of_them() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                asked = [client.request(kw.get("method", "POST"), p, **_rest(kw)) for p, kw in requests]
                return await asyncio.gather(*asked)

        return asyncio.run(all_of_them())


def _rest(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name != "method"}


def files(**photos: bytes) -> dict[str, Any]:
    return {"files": {name: (f"{name}.jpg", data, "image/jpeg") for name, data in photos.items()}}
