"""One training step by a recipe at small size: drawn pictures, few classes, on the CPU."""

import io
import math
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dist_train.config import RunConfig
from dist_train.data.foreign import write_index
from dist_train.data.manifest import IDENTITIES_NAME, Manifest, Shard
from dist_train.errors import WorkError
from dist_train.evaluate.config import EvaluateConfig
from dist_train.objectives.check import dry_objectives
from dist_train.runtime.digest import sha256_of
from dist_train.runtime.ranks import Ranks
from dist_train.train.build import open_training

SHARD_NAME = "dry-000000.tar"
CLASSES = 100


@dataclass(frozen=True, slots=True)
class DryStep:
    """What the step gave.

    Attributes:
        pictures: of the step.
        loss: before the step.
        gradient_norm: L2 norm of the backbone's gradient.
        seconds: of the step, without building the network.
        left_out: objectives that need the run's own identities or pictures.
    """

    pictures: int
    loss: float
    gradient_norm: float
    seconds: float
    left_out: tuple[str, ...]


def dry_step(config: RunConfig, image_size: int) -> DryStep | None:
    """Train one step as `config` says, by the same code as a run, and leave nothing behind.

    Augmentation, backbone, margin, sampling, both optimizers, clipping and the moving average are the recipe's. Size is
    not: two pictures (or two classes, where batches are made by class) out of a hundred classes. Nor is what a CPU
    without other ranks cannot do: it is float32, one rank, one set, no compilation. A network that teaches does so
    here, too; terms over another run's identities, and stored embeddings, are left out.

    Args:
        config: the recipe; its set, run directory and evaluation sets are not touched.
        image_size: side of the pictures in pixels.

    Returns:
        What the step gave; None where nothing is left to train by.

    Raises:
        UserError: a combination of values that the parts refuse.
        WorkError: the loss or the gradient is not finite.
    """
    objectives, left_out = dry_objectives(config)
    learns = config.program == "contrast" or any(section.weight for section in objectives.given().values())
    if config.head is None and not learns:
        return None
    config = config.model_copy(update={"objectives": objectives})
    with tempfile.TemporaryDirectory(prefix="headcount-check-") as name, _one_thread():
        small = _small(config, Path(name), image_size)
        pictures = small.train.global_batch_size
        _write_set(Path(small.data.path), image_size, pictures, small.data.images_per_class or 1)
        with closing(open_training(small, Ranks(0, 0, 1, torch.device("cpu")))) as loop:
            batch = next(iter(loop.loader))
            began = time.monotonic()
            loss = float(loop.train_step(batch))
            seconds = time.monotonic() - began
            if not math.isfinite(loss):
                raise WorkError(f"dry step: loss {loss}, expected a finite number; what was not finite stands above")
            return DryStep(pictures, loss, float(loop.gradient_norm), seconds, tuple(left_out))


@contextmanager
def _one_thread() -> Iterator[None]:
    """A recipe is often checked on a busy login node, where many threads wait for each other at every layer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _small(config: RunConfig, scratch: Path, image_size: int) -> RunConfig:
    """The recipe for a small step in the directory `scratch`."""
    train, head, contrast = config.train, config.head, config.contrast
    run_dir, rows = scratch / "run", scratch / "rows"
    run_dir.mkdir()
    pictures = 2 * (config.data.images_per_class or 1)
    return config.model_copy(
        update={
            "run_dir": run_dir,
            "data": config.data.model_copy(
                update={
                    "path": str(scratch / "set"),
                    "mix": tuple(each.model_copy(update={"path": str(scratch / "set")}) for each in config.data.mix),
                    "image_size": image_size,
                    "backend": "opencv",
                    "workers": 0,
                    "prefetch": 1,
                    "cache_dir": str(scratch / "cache"),
                }
            ),
            "head": head and head.model_copy(update={"storage_dir": rows if head.storage == "mmap" else None}),
            # A queue holds at least a step's keys, and at most the set's.
            "contrast": contrast.model_copy(update={"queue": pictures if contrast.queue else 0}),
            "train": train.model_copy(
                update={
                    "epochs": None,
                    "steps": 1,
                    "global_batch_size": pictures,
                    "micro_batch_size": None,
                    "device": "cpu",
                    "precision": "float32",
                    "strategy": "ddp",
                    "compile": False,
                }
            ),
            "track": config.track.model_copy(update={"wandb": "disabled"}),
            "start": config.start.model_copy(update={"backbone": None, "head": None}),  # of other classes and sizes
            "evaluate": EvaluateConfig(),
        }
    )


def _write_set(directory: Path, image_size: int, pictures: int, images_per_class: int) -> None:
    """A set of one shard: `pictures` smooth pictures, `images_per_class` of each class."""
    directory.mkdir()
    random = np.random.default_rng(0)
    path = directory / SHARD_NAME
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(pictures):
            coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            _, data = cv2.imencode(".jpg", cv2.resize(coarse, (image_size, image_size), interpolation=cv2.INTER_CUBIC))
            label = str(number // images_per_class).encode()
            for extension, content in (("jpg", data.tobytes()), ("cls", label)):
                info = tarfile.TarInfo(f"{number:06d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    write_index(path, path.with_suffix(".idx"))
    counts = [images_per_class if label < pictures // images_per_class else 0 for label in range(CLASSES)]
    pq.write_table(pa.table({"label": range(CLASSES), "count": counts}), directory / IDENTITIES_NAME)
    Manifest(image_size, CLASSES, (Shard(path.name, pictures, path.stat().st_size, sha256_of(path)),)).save(directory)
