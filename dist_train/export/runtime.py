"""Running an ONNX embedding model, ours or another's, behind the interface of a backbone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import UserError, WorkError
from dist_train.export.convention import Convention, Entry, Shape, Stated
from dist_train.runtime.extras import require

INPUT_NAME, OUTPUT_NAME = "images", "embeddings"


class _Output(Protocol):
    name: str
    shape: Shape


class OnnxModel:
    """An ONNX file as an embedding function: images [B, 3, S, S] in [-1, 1], red first -> embeddings [B, D].

    Files of ours state in their metadata what they take. Others are given what `stated` says of them and, where it says
    nothing, float32 red first in [-1, 1] (as InsightFace's trainer exports them) or uint8 as decoded; the order of
    the axes and a fixed number of pictures a batch are found in the graph.

    Args:
        path: of the file.
        threads: CPU threads; default: onnxruntime's own choice.
        stated: what the user says of a file of others.
        as_written: compute by the graph of the file, rather than by a quicker one that is equal up to rounding.

    Attributes:
        convention: what the model is given.
        foreign: whether the file does not state that itself.
        output: name of the output that is taken.
        told: what the user said that makes it another model than the file alone, for descriptions of its embeddings.
        metadata: of the file.

    Raises:
        UserError: missing, not ONNX, not an embedding model, or not of the kind that was stated.
    """

    def __init__(
        self, path: Path, threads: int | None = None, stated: Stated | None = None, *, as_written: bool = False
    ) -> None:
        if not path.is_file():
            raise UserError(f"model {path}: no such file")
        require("export", f"model {path}")
        import onnxruntime

        from dist_train.export.prelu import with_quick_prelu

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # an error is raised too, and said once
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            here = onnxruntime.get_available_providers()
            providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in here]
            changed = None if as_written or len(providers) > 1 else with_quick_prelu(path)
            self._session = onnxruntime.InferenceSession(changed or str(path), options, providers=providers)
        except Exception as error:  # kinds of onnxruntime and protobuf have no common base
            raise UserError(f"model {path}: onnxruntime cannot load it: {_one_line(error)}") from error
        stated = stated or Stated()
        entries = self._session.get_inputs()
        if len(entries) != 1:
            raise UserError(f"model {path}: {len(entries)} inputs ({_listed(entries)}), expected one of pictures")
        entry = Entry.of(path, entries[0].shape, entries[0].type)
        self.path = path
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self._input, self._batch = entries[0].name, entry.batch
        own = Convention.of_metadata(path, entry, self.metadata, 0)
        self.foreign = own is None
        self.convention = own or Convention.of_entry(path, entry, stated, 0)
        outputs = self._session.get_outputs()
        output = _chosen(path, outputs, entry.batch, stated.output if self.foreign else None)
        self.output: str = output.name
        width = _width(output.shape, entry.batch)
        self.convention = replace(self.convention, embedding_dim=width or self._measured_width())
        self.told: dict[str, str] = {}
        if self.foreign:
            usual = Convention.of_entry(path, entry, Stated(image_size=stated.image_size), 0)
            if self.convention != replace(usual, embedding_dim=self.convention.embedding_dim):
                self.told["input"] = f"{self.convention.range_text()}, {self.convention.color}"
            if len(_embedding_outputs(outputs, entry.batch)) > 1:
                self.told["output"] = self.output

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings float32 [B, D] of images float32 [B, 3, S, S] in [-1, 1].

        Raises:
            UserError: pictures of another size.
            WorkError: onnxruntime failed.
        """
        side, width = self.convention.image_size, self.convention.embedding_dim
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise UserError(f"model {self.path}: takes {side} px pictures [B, 3, S, S], got {list(images.shape)}")
        if not len(images):
            return torch.empty(0, width)
        batch = self.convention.as_taken(images.detach().cpu())
        rows = np.concatenate([self._run(part) for part in batch.split(self._batch or len(batch))])
        if rows.shape[1] != width:
            raise WorkError(f"model {self.path}: an embedding has {rows.shape[1]} numbers, expected {width}")
        return torch.from_numpy(rows)

    def _run(self, batch: Tensor) -> np.ndarray:
        """Embeddings [n, D] of at most as many pictures as the graph takes; the last is repeated to fill the batch."""
        count = len(batch)
        if self._batch:
            batch = batch[torch.arange(self._batch).clamp(max=count - 1)]
        try:
            (result,) = self._session.run([self.output], {self._input: np.ascontiguousarray(batch.numpy())})
        except Exception as error:  # as above
            hint = "" if self._batch or count == 1 else "; where a graph is made for one picture, --batch-size 1 helps"
            raise WorkError(f"model {self.path}: onnxruntime: {_one_line(error)}{hint}") from error
        rows = np.asarray(result, dtype=np.float32)
        if not rows.size or rows.size % len(batch) or (rows.ndim > 1 and len(rows) != len(batch)):
            raise WorkError(
                f"model {self.path}: output {self.output} is {list(rows.shape)} for {len(batch)} pictures, expected a "
                "row for each; --output names another"
            )
        return rows.reshape(len(batch), -1)[:count]

    def _measured_width(self) -> int:
        """D, where the graph leaves it open."""
        side = self.convention.image_size
        return int(self._run(self.convention.as_taken(torch.zeros(1, 3, side, side))).shape[1])


def _embedding_outputs(outputs: Sequence[_Output], batch: int | None) -> list[_Output]:
    return [each for each in outputs if _width(each.shape, batch) != 0]


def _chosen(path: Path, outputs: Sequence[_Output], batch: int | None, name: str | None) -> _Output:
    """The output with the embeddings: the named one, or the only one that can be."""
    listed = _listed(outputs)
    if name is not None:
        named = [each for each in outputs if each.name == name]
        if not named:
            raise UserError(f"model {path}: has no output {name!r}; its outputs are {listed}")
        if _width(named[0].shape, batch) == 0:
            raise UserError(f"model {path}: output {_listed(named)} is not embeddings [batch, D]")
        return named[0]
    possible = _embedding_outputs(outputs, batch)
    if len(possible) > 1:
        raise UserError(f"model {path}: has several outputs; say which is the embedding, --output NAME: {listed}")
    if not possible:
        raise UserError(f"model {path}: no output is embeddings [batch, D]; its outputs are {listed}")
    return possible[0]


def _width(shape: Shape, batch: int | None) -> int | None:
    """D of embeddings [B, D], [B, D, 1, 1] or, for one picture, [D]; None where it is open, 0 of anything else."""
    if not shape:  # not declared at all
        return None
    if len(shape) == 1:
        return (shape[0] if isinstance(shape[0], int) else None) if batch == 1 else 0
    axes = [axis for axis in shape[2:] if axis != 1]
    if axes:
        return 0
    return shape[1] if isinstance(shape[1], int) else None


def _listed(entries: Sequence[_Output]) -> str:
    return ", ".join(f"{each.name} {list(each.shape)}" for each in entries)


def _one_line(error: Exception) -> str:
    """The whole message, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
