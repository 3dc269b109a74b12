"""Training state on disk: written while training goes on, committed by rename, read on any number of ranks.

A run directory holds `checkpoints/step-00001000/`, each in the form of `torch.distributed.checkpoint`: replicated
tensors once, class-sharded ones as `DTensor`, so that the number of ranks may change between writing and reading.
"""

import json
import logging
import shutil
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn

from dist_train.backbones import build_backbone
from dist_train.config import RunConfig, load_config
from dist_train.errors import UserError, WorkError
from dist_train.head import Head
from dist_train.parallel import Replica
from dist_train.ranks import Ranks

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
CONFIG_NAME = "config.yaml"
PROGRESS_NAME = "progress.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, and on what data.

    Attributes:
        step: optimizer steps done.
        position: place in the sample order, in samples over all ranks.
        image_size: side of the pictures in pixels.
        num_classes: classes of the head.
        data_digest: digest of the set's manifest.
    """

    step: int
    position: int
    image_size: int
    num_classes: int
    data_digest: str


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run_dir / CHECKPOINTS).glob("step-*/.metadata"))


def read_progress(checkpoint: Path) -> Progress:
    """The progress that `checkpoint` was written at.

    Raises:
        WorkError: missing or damaged.
    """
    try:
        return Progress(**json.loads((checkpoint / PROGRESS_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WorkError(
            f"checkpoint {checkpoint}: {PROGRESS_NAME} is damaged ({error}); remove this checkpoint"
        ) from error


class Checkpointer:
    """Saves and restores backbone, optimizer, head and progress.

    Everything else that a step depends on (sample order, augmentation, sampled classes, dropout) is a pure function
    of the seed, the step and the rank, so there is no more to save.
    """

    def __init__(self, run_dir: Path, keep: int, replica: Replica, head: Head, ranks: Ranks) -> None:
        self._directory = run_dir / CHECKPOINTS
        self._keep = keep
        self._replica, self._head, self._ranks = replica, head, ranks
        self._pending: tuple[Path, Path, Future[Any]] | None = None

    def _state(self) -> dict[str, Any]:
        return {
            "backbone": self._replica.backbone.state_dict(),
            "optimizer": self._replica.optimizer_state(),
            "head": self._head.state_dict(),
        }

    def save(self, progress: Progress) -> None:
        """Begin to write a checkpoint; returns when the state is copied, while the files are written behind.

        A collective. An earlier save that is still being written is waited for first.
        """
        self.wait()
        final = self._directory / f"step-{progress.step:08d}"
        if (final / ".metadata").exists():
            return
        writing = self._directory / f".writing-{final.name}"
        if self._ranks.rank == 0:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            (writing / PROGRESS_NAME).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        self._ranks.barrier()
        future = dcp.async_save(self._state(), checkpoint_id=writing, process_group=self._ranks.saving_group)
        if not isinstance(future, Future):
            raise TypeError(f"async_save gave {type(future).__name__}, expected a Future")
        self._pending = (writing, final, future)

    def wait(self) -> None:
        """Wait for a save under way and commit it. One that failed is reported and removed; older ones stay."""
        if self._pending is None:
            return
        writing, final, future = self._pending
        self._pending = None
        error = future.exception()
        if self._ranks.rank != 0:
            return
        if error is not None:
            shutil.rmtree(writing, ignore_errors=True)
            logger.error(
                "checkpoint %s was NOT written: %s; training goes on, older ones are intact",
                final.name,
                error,
            )
            return
        writing.replace(final)
        for old in committed_checkpoints(self._directory.parent)[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)

    def commit_if_written(self) -> None:
        """Commit a save whose files are complete, without waiting."""
        if self._pending is not None and self._pending[2].done():
            self.wait()

    def restore(self, checkpoint: Path) -> Progress:
        """Load `checkpoint`, written on whatever number of ranks, into backbone, optimizer and head. A collective.

        Raises:
            WorkError: the files cannot be read or hold another model.
        """
        progress = read_progress(checkpoint)
        state = self._state()
        try:
            dcp.load(state, checkpoint_id=checkpoint, process_group=self._ranks.group)
        except Exception as error:  # DCP raises many kinds; all mean that this checkpoint cannot be used
            raise WorkError(f"checkpoint {checkpoint}: cannot be loaded: {_last_line(error)}") from error
        self._replica.backbone.load_state_dict(state["backbone"])
        self._replica.load_optimizer_state(state["optimizer"])
        self._head.load_state_dict(state["head"])
        return progress


def load_backbone(path: Path) -> tuple[nn.Module, RunConfig, Progress]:
    """The trained backbone of a run, in evaluation mode on the CPU.

    Args:
        path: a run directory (its newest checkpoint is taken) or one checkpoint in it.

    Raises:
        UserError: no checkpoint there.
        WorkError: a damaged checkpoint.
    """
    checkpoint = path
    if not (path / ".metadata").exists():
        found = committed_checkpoints(path)
        if not found:
            raise UserError(
                f"{path}: no checkpoint found; give a run directory or a directory like RUN/{CHECKPOINTS}/step-00001000"
            )
        checkpoint = found[-1]
    progress = read_progress(checkpoint)
    config = load_config(checkpoint.parent.parent / CONFIG_NAME)
    backbone = build_backbone(config.backbone, progress.image_size)
    state = {"backbone": backbone.state_dict()}
    try:
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    except Exception as error:  # as in Checkpointer.restore
        raise WorkError(f"checkpoint {checkpoint}: cannot be loaded: {_last_line(error)}") from error
    backbone.load_state_dict(state["backbone"])
    return backbone.eval(), config, progress


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
