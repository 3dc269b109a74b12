"""What teaches: something that gives the embedding that a student's is to follow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dist_train.backbones import memory_format
from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.errors import UserError
from dist_train.evaluate.models import Model, load_model
from dist_train.replica.base import compute_dtype
from dist_train.runtime.ranks import Ranks
from dist_train.start.place import find_place

KEY = "objectives.distill.teacher"


class Teacher(Protocol):
    """Gives the embeddings of a batch's pictures.

    Attributes:
        embedding_dim: Dt.
        digest: hexadecimal SHA-256 of what decides its embeddings.
    """

    embedding_dim: int
    digest: str

    def __call__(self, batch: Batch, /) -> Tensor:
        """Embeddings float32 [B, Dt], without a graph, on the device of the batch; zeros where it knows none."""

    def figures(self) -> dict[str, float]:
        """What there is to say of the last step."""

    def close(self) -> None:
        """Close files; safe to repeat."""


class NetworkTeacher:
    """A network that stands still: it sees the very pictures of the student, as they were augmented.

    Args:
        model: that teaches.
        config: of the student's run; its precision is the teacher's, too.
        device: of the batches.

    Attributes:
        embedding_dim: Dt.
        digest: of its weights, or of the ONNX file.
    """

    def __init__(self, model: Model, config: RunConfig, device: torch.device) -> None:
        self.embedding_dim, self.digest = model.embedding_dim, model.digest()
        self._embed = model.embed
        self._memory_format = torch.contiguous_format
        if model.network is not None:
            self._memory_format = memory_format(model.network)
            model.network.to(memory_format=self._memory_format).requires_grad_(False)
        self._device, self._dtype = device, compute_dtype(config.train.precision, device)

    def __call__(self, batch: Batch) -> Tensor:
        """See `Teacher`."""
        images = batch.images.contiguous(memory_format=self._memory_format)
        half = self._dtype != torch.float32
        with torch.no_grad(), torch.autocast(self._device.type, self._dtype, enabled=half):
            return self._embed(images).to(self._device).float()

    def figures(self) -> dict[str, float]:
        """See `Teacher`; a network misses no picture."""
        return {}

    def close(self) -> None:
        """See `Teacher`; nothing is open."""


def open_teacher(path: Path, config: RunConfig, sizes: Mapping[str, int], ranks: Ranks) -> NetworkTeacher:
    """The network at `path`, on every rank the same. A collective; it draws no random number.

    Args:
        path: a run directory, one checkpoint, exported weights, or an ONNX file.
        config: of the student's run.
        sizes: sides of the pictures that the student is taught by, in pixels, by the keys that give them.
        ranks: this process among the job's.

    Raises:
        UserError: nothing that can teach, the student's own run, pictures of another size, or another file on another
            rank.
        WorkError: a damaged checkpoint.
    """
    kind = "a file of embeddings by `headcount embed`, exported weights, or an ONNX file"
    place = find_place(KEY, path, config.run_dir, kind, ranks)

    def opened() -> NetworkTeacher:
        try:
            with torch.random.fork_rng(devices=[]):  # a network that weights are loaded into draws random ones first
                model = load_model(place, ranks.device)
        except UserError as error:
            raise UserError(f"{KEY}: {str(error).removeprefix('model ')}") from error
        wrong = next((key for key, size in sizes.items() if size != model.image_size), None)
        if wrong is not None:
            raise UserError(
                f"{KEY} {path}: takes pictures of {model.image_size} px, the student's have {sizes[wrong]} px; "
                f"give {wrong}={model.image_size}, or another teacher"
            )
        return NetworkTeacher(model, config, ranks.device)

    teacher = ranks.agree(opened)
    digests = ranks.gather(teacher.digest)
    with ranks.first_speaks():
        if len(set(digests)) > 1:
            raise UserError(f"{KEY} {path}: other weights on other ranks; put the same file on every machine")
    return teacher
