"""Aligned pictures as files -> what the network takes: a model of Triton's python backend, which needs no headcount.

`headcount export --triton` copies this file to `decode/1/model.py`, and `picture_header.py` beside it. The server's
Python needs numpy and cv2. What the network takes is read from the parameters of `decode/config.pbtxt`.
"""

import json
from typing import Any

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils
from picture_header import cut_off, described, read_header, too_many_scans


class PictureError(Exception):
    """A picture cannot be used; the message is the reason."""


class TritonPythonModel:
    """`picture` [n, 1] of encoded JPEG, PNG or WebP -> `images` [n, 3, S, S] or [n, S, S, 3]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters; the server calls this once."""
        said = {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}
        self._side_px = int(said["image_size"])
        self._max_bytes = int(said["max_picture_bytes"])
        self._layout, self._color, self._type = said["input_layout"], said["input_color"], said["input_type"]
        self._mean, self._std = np.float32(said["input_mean"]), np.float32(said["input_std"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request, in order; a picture that cannot be used fails its own request, and no other."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:  # noqa: ANN401 - the server's types are known inside of it only
        pictures = pb_utils.get_input_tensor_by_name(request, "picture").as_numpy().reshape(-1)
        if not len(pictures):  # what is raised here would fail the requests beside this one
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError("no picture was sent"))
        taken = []
        for number, data in enumerate(pictures):
            try:
                taken.append(self._taken(bytes(data)))
            except PictureError as error:
                why = f"picture {number + 1} of {len(pictures)}: {error}"
                return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(why))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("images", np.stack(taken))])

    def _taken(self, data: bytes) -> "np.ndarray[Any, Any]":
        """One picture as the network takes it.

        The header is asked before anything is decoded, so that a file of a few bytes takes no more memory than a face.

        Raises:
            PictureError: too long, not a picture, cut off, or of another size.
        """
        side = self._side_px
        if len(data) > self._max_bytes:
            raise PictureError(f"{len(data)} bytes, at most {self._max_bytes} are taken")
        header = read_header(data)
        if header is None:
            raise PictureError(f"{described(data)}, expected JPEG, PNG or WebP")
        if (header.width, header.height) != (side, side):
            raise PictureError(f"{header.width}x{header.height} pixels, expected an aligned face of {side}x{side}")
        if reason := cut_off(data, header) or too_many_scans(data, header):
            raise PictureError(reason)
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # blue first
        except cv2.error as error:
            raise PictureError(f"cannot be decoded: {error.err}") from error
        if pixels is None or pixels.shape != (side, side, 3):
            raise PictureError(f"cannot be decoded: {described(data)}")
        if self._color == "RGB":
            pixels = pixels[:, :, ::-1]
        if self._layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)  # [S, S, 3] -> [3, S, S]
        return pixels if self._type == "uint8" else (pixels.astype(np.float32) - self._mean) / self._std
