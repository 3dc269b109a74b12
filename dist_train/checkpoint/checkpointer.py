"""Training state on disk: written while training goes on, committed by rename, read on any number of ranks.

A run directory holds `checkpoints/step-00001000/`, each in the form of `torch.distributed.checkpoint`: replicated
tensors once, class-sharded ones as `DTensor`, so that the number of ranks may change between writing and reading.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch.distributed.checkpoint as dcp

from dist_train.checkpoint.errors import DCP_ERRORS, last_line
from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.part import Part, Snapshot
from dist_train.checkpoint.reader import load_tensors
from dist_train.checkpoint.store import (
    Progress,
    checkpoint_name,
    checksums_path,
    failure_path,
    prune,
    read_best,
    remove_pruned,
    write_best,
    write_checksums,
    write_progress,
)
from dist_train.errors import WorkError
from dist_train.run_files import CHECKPOINTS_NAME, METADATA_NAME
from dist_train.runtime.ranks import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PendingSave:
    """A checkpoint that is being written.

    Attributes:
        step: optimizer steps done.
        writing: the directory that it is written to.
        final: its name once all ranks are done.
        score: of the evaluation that it is kept for as the best; None where it is not.
        written: this rank's part.
    """

    step: int
    writing: Path
    final: Path
    score: float | None
    written: Future[None]


_MISSED = "optimizer.scalars.missed"
"""Steps that parts have missed, which the checkpoint of a run in which nothing stood still lacks: there are none."""

ALWAYS = frozenset({"backbone", "optimizer"})
"""Parts that every run has from its first step on."""


class Checkpointer:
    """Saves and restores the parts of a program.

    Everything else that a step depends on (sample order, augmentation, sampled classes, dropout) is a pure function
    of the seed, the step and the rank, so there is no more to save.

    Args:
        run_dir: directory of the run.
        keep: newest checkpoints kept, besides the best.
        parts: what is saved, by the name under which a checkpoint holds it.
        ranks: this process among the job's.
        on_commit: told of each complete checkpoint, on rank 0.

    Attributes:
        lost: why the newest checkpoint that was begun could not be written; None where it was. Known on rank 0.
    """

    def __init__(
        self,
        run_dir: Path,
        keep: int,
        parts: Mapping[str, Part],
        ranks: Ranks,
        on_commit: Callable[[Path], None] | None = None,
    ) -> None:
        self._run_dir, self._keep = run_dir, keep
        self._parts, self._ranks = parts, ranks
        self._on_commit = on_commit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-removal")
        self._pending: PendingSave | None = None
        self.lost: str | None = None

    def is_best(self, score: float) -> bool:
        """Whether `score` is above the best checkpoint's, one that is being written included; for rank 0 to ask."""
        best = read_best(self._run_dir)
        known = (None if best is None else best[1], None if self._pending is None else self._pending.score)
        return all(one is None or score > one for one in known)

    def save(self, progress: Progress, score: float | None = None) -> None:
        """Begin to write a checkpoint; returns when every part has taken its snapshot.

        Snapshots are completed, and files written, while training goes on. A collective. An earlier save that
        is still being written is waited for first. A save that fails is reported when it is found out; training goes
        on and older checkpoints stay.

        Args:
            progress: where the run stands.
            score: on rank 0, of the evaluation that makes this checkpoint the best; None where it is not the best.
        """
        self.wait()
        final = self._run_dir / CHECKPOINTS_NAME / checkpoint_name(progress.step)
        writing = final.with_name(f".writing-{final.name}")
        # Rank 0 alone looks and decides: the others may look before or after it has committed.
        begun = self._ranks.rank != 0 or self._begin(writing, final, progress)
        if self._ranks.any(not begun)[0]:
            return
        snapshots = {name: part.snapshot() for name, part in self._parts.items()}
        written = self._thread.submit(self._write, writing, snapshots)
        self._pending = PendingSave(progress.step, writing, final, score, written)

    def _begin(self, writing: Path, final: Path, progress: Progress) -> bool:
        """Make the directory to write into; False where this step's checkpoint exists or the disk refuses."""
        try:
            if (final / METADATA_NAME).exists():  # and sound: a start has set damaged ones aside
                return False
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            write_progress(writing, progress)
        except OSError as error:
            self._report(final, error)
            return False
        return True

    def _write(self, writing: Path, snapshots: dict[str, Snapshot]) -> None:
        """In the background: complete the snapshots, write them, then the checksums of the files."""
        try:
            for snapshot in snapshots.values():
                snapshot.fill()
            state = {name: snapshot.state for name, snapshot in snapshots.items()}
            dcp.save(state, checkpoint_id=writing, process_group=self._ranks.saving_group)
        finally:
            for snapshot in snapshots.values():
                snapshot.close()
        try:
            write_checksums(writing, self._ranks.rank, self._ranks.world_size)
        except OSError:
            with suppress(OSError):
                failure_path(writing, self._ranks.rank).touch()  # rank 0 need not wait
            raise

    def wait(self) -> None:
        """Wait for a save under way, and commit it on rank 0."""
        if self._pending is None:
            return
        save = self._pending
        error = save.written.exception()
        self._pending = None
        if self._ranks.rank != 0:
            return
        try:
            if error is not None:
                raise error
            self._wait_for_peers(save.writing)
            save.writing.replace(save.final)
        except DCP_ERRORS as failure:  # none of them is worth the run
            shutil.rmtree(save.writing, ignore_errors=True)
            self._report(save.final, failure)
            return
        self.lost = None
        if save.score is not None:  # only now, since a save that is cut off must not be taken for the best
            write_best(self._run_dir, save.step, save.score)
        try:
            self._remover.submit(remove_pruned, prune(self._run_dir, self._keep))
        except OSError as error:
            logger.warning("old checkpoints of %s cannot be removed: %s", self._run_dir, error)
        if self._on_commit is not None:
            self._on_commit(save.final)

    def _wait_for_peers(self, writing: Path) -> None:
        """Wait until every rank has put its checksums beside its files."""
        deadline = time.monotonic() + self._ranks.timeout_s
        for rank in range(self._ranks.world_size):
            while not checksums_path(writing, rank).exists():
                if failure_path(writing, rank).exists():
                    raise OSError(f"rank {rank} could not read back what it wrote")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"rank {rank} did not finish its files in {self._ranks.timeout_s:g} s")
                time.sleep(0.01)

    def _report(self, checkpoint: Path, error: BaseException) -> None:
        self.lost = last_line(error)
        logger.error(
            "CHECKPOINT NOT WRITTEN: %s: %s. Training goes on, older checkpoints are intact",
            checkpoint,
            self.lost,
        )

    @property
    def writing(self) -> bool:
        """Whether a save is under way."""
        return self._pending is not None

    def commit_if_written(self) -> None:
        """Commit a save whose files are complete, without waiting; rank 0 looks for those of all ranks."""
        if self._pending is None or not self._pending.written.done():
            return
        writing, whole = self._pending.writing, self._pending.written.exception() is None
        peers = range(self._ranks.world_size) if self._ranks.rank == 0 and whole else ()
        if all(checksums_path(writing, rank).exists() or failure_path(writing, rank).exists() for rank in peers):
            self.wait()

    def restore(self, checkpoint: Path) -> None:
        """Load `checkpoint`, written on whatever number of ranks, into the parts. A collective.

        A part that the run has not had until then, e.g. a further loss, stays as it was built.

        Raises:
            WorkError: the files cannot be read or hold another model.
        """
        try:
            stored = read_tensors(checkpoint)
            known = {name.partition(".")[0] for name in stored}
            state = {name: part.state_dict() for name, part in self._parts.items() if name in known | ALWAYS}
            if _MISSED not in stored:
                state.get("optimizer", {}).get("scalars", {}).pop("missed", None)
            load_tensors(state, checkpoint, self._ranks.control_group)
        except DCP_ERRORS as error:  # all mean that this checkpoint cannot be used
            raise WorkError(f"checkpoint {checkpoint}: cannot be loaded: {last_line(error)}") from error
        for name, part in self._parts.items():
            if name in state:
                part.load_state_dict(state[name])
            elif part.state_dict() and self._ranks.rank == 0:
                logger.warning("checkpoint %s has no %s: begun anew at this step", checkpoint, name)

    def close(self) -> None:
        """Begin no more saves; safe to repeat. One under way is not waited for: its directory is not counted.

        Removals of old checkpoints are not waited for either, but by the end of the process.
        """
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._remover.shutdown(wait=False)
