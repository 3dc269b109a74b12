"""Running an ONNX embedding model, ours or another's, behind the interface of a backbone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import UserError, WorkError

INPUT_NAME, OUTPUT_NAME = "images", "embeddings"


@dataclass(frozen=True)
class Convention:
    """What an embedding model takes and gives.

    Attributes:
        image_size: side of the pictures in pixels.
        embedding_dim: length of an embedding.
        input_type: `float32`: [B, 3, S, S], red first, (v - 127.5) / 127.5; `uint8`: [B, S, S, 3], red first, as
            decoded.
    """

    image_size: int
    embedding_dim: int
    input_type: Literal["float32", "uint8"] = "float32"

    def to_metadata(self) -> dict[str, str]:
        """Entries of an ONNX file's metadata, for programs and for readers."""
        whole = self.input_type == "uint8"
        side = self.image_size
        return {
            "image_size": str(side),
            "embedding_dim": str(self.embedding_dim),
            "input_type": self.input_type,
            "input_shape": f"batch,{side},{side},3" if whole else f"batch,3,{side},{side}",
            "input_layout": "NHWC" if whole else "NCHW",
            "input_color": "RGB",
            "input_range": "0..255, as decoded" if whole else "-1..1, (value - 127.5) / 127.5",
            # What the caller does: (value - mean) / std of every channel.
            "input_mean": "0" if whole else "127.5",
            "input_std": "1" if whole else "127.5",
            "output": "raw embeddings; normalize to unit length and compare by cosine",
        }

    def as_taken(self, images: Tensor) -> Tensor:
        """Images float32 [B, 3, S, S] in [-1, 1] as the model takes them."""
        if self.input_type == "float32":
            return images
        levels = images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1)  # [B, 3, S, S] -> [B, S, S, 3]

    @classmethod
    def from_session(cls, path: Path, shape: list[int | str | None], kind: str, output: int) -> Self:
        """The convention of an opened model, from the shape and type of its input."""
        uint8 = kind == "tensor(uint8)"
        side, channels = (shape[1], shape[3]) if uint8 and len(shape) == 4 else (shape[-1], shape[1:2][0])
        if len(shape) != 4 or channels != 3 or kind not in ("tensor(uint8)", "tensor(float)"):
            raise UserError(
                f"model {path}: takes {kind} {shape}, expected float32 [batch, 3, S, S] or uint8 [batch, S, S, 3]"
            )
        if not isinstance(side, int) or shape[2] != side:
            raise UserError(f"model {path}: takes pictures of {shape}, expected a fixed square size")
        return cls(side, output, "uint8" if uint8 else "float32")


class OnnxModel:
    """An ONNX file as an embedding function: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].

    Models of others work too, where they take float32 [B, 3, S, S], red first, in [-1, 1] (InsightFace's do).

    Args:
        path: of the file.
        threads: CPU threads; default: onnxruntime's own choice.

    Raises:
        UserError: missing, not ONNX, or not an embedding model.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        if not path.is_file():
            raise UserError(f"model {path}: no such file")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            here = onnxruntime.get_available_providers()
            providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in here]
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise UserError(f"model {path}: onnxruntime cannot load it: {str(error).splitlines()[0]}") from error
        entries, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(entries) != 1 or len(outputs[0].shape) != 2 or not isinstance(outputs[0].shape[1], int):
            raise UserError(
                f"model {path}: {len(entries)} inputs, output of shape {outputs[0].shape}; "
                "expected one input of pictures and embeddings [batch, D]"
            )
        self.path = path
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.convention = Convention.from_session(path, entries[0].shape, entries[0].type, outputs[0].shape[1])
        self._input, self._output = entries[0].name, outputs[0].name

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings float32 [B, D] of images float32 [B, 3, S, S] in [-1, 1].

        Raises:
            UserError: pictures of another size.
            WorkError: onnxruntime failed.
        """
        side = self.convention.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise UserError(f"model {self.path}: takes {side} px pictures [B, 3, S, S], got {list(images.shape)}")
        batch = self.convention.as_taken(images.detach().cpu())
        try:
            (result,) = self._session.run([self._output], {self._input: np.ascontiguousarray(batch.numpy())})
        except Exception as error:  # as above
            raise WorkError(f"model {self.path}: onnxruntime: {str(error).splitlines()[0]}") from error
        return torch.from_numpy(np.asarray(result, dtype=np.float32))
