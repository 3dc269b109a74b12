"""The training loop: steps of a program, with checkpoints, evaluations, figures and a polite end."""

import logging
import time
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from dist_train.checkpoint.checkpointer import Checkpointer
from dist_train.checkpoint.store import Progress, committed_checkpoints
from dist_train.config import RunConfig, differences
from dist_train.data.batch import Batch
from dist_train.data.loader import Loader
from dist_train.errors import NonFiniteError, UserError, WorkError
from dist_train.evaluate.suite import evaluate_backbone
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.stop_signal import StopSignal
from dist_train.runtime.verdict import Ruling, Verdict
from dist_train.runtime.watchdog import Watchdog
from dist_train.track.meter import Meter
from dist_train.track.trackers import Trackers
from dist_train.train.bad_steps import BadSteps
from dist_train.train.outcome import Outcome
from dist_train.train.program import Program
from dist_train.train.schedule import rate_at

logger = logging.getLogger(__name__)


class Loop:
    """A run on this rank, whatever it trains; `open_training` makes one.

    Args:
        program: what a step is.
        loader: of batches, from `position` on.
        checkpointer: of the program's parts.
        trackers: of figures.
        meter: of loss and speed, whose stopwatch the program uses.
        config: the whole recipe.
        ranks: this process among the job's.
        verdict: on a step, which the program uses.
        accumulation: micro-batches per step.
        total_steps: of the whole run.
        step: optimizer steps done.
        position: place in the sample order, in samples over all ranks.
        opened: what `close` ends.

    Attributes:
        gradient_norm: [] of the last step; NaN where it was refused.
        bad_steps: counts those.
        samples: pictures of the first batch, for the report; None before it.
        lost: results that the run could not make although training went on, a line each.
    """

    def __init__(
        self,
        program: Program,
        loader: Loader,
        checkpointer: Checkpointer,
        trackers: Trackers,
        meter: Meter,
        config: RunConfig,
        ranks: Ranks,
        *,
        verdict: Verdict,
        accumulation: int,
        total_steps: int,
        step: int,
        position: int,
        opened: ExitStack,
    ) -> None:
        self.program, self.loader, self.checkpointer = program, loader, checkpointer
        self.trackers, self.meter, self.config, self.ranks = trackers, meter, config, ranks
        self.accumulation, self.total_steps, self.step, self.position = accumulation, total_steps, step, position
        self._opened, self._verdict = opened, verdict
        self._unruled: tuple[Ruling, int, list[Batch]] | None = None  # the last step, and its micro-batches
        self.bad_steps = BadSteps(config.train.max_bad_steps, ranks)
        self.gradient_norm = torch.zeros(())
        self.samples: Tensor | None = None
        self.lost: list[str] = []

    def fit(self) -> bool:
        """Train to the last step, or until a signal asks to stop; a checkpoint is written either way.

        What could not be written or evaluated on the way is noted in `lost`.

        Returns:
            Whether the last step was reached and nobody asked to stop.

        Raises:
            UserError | WorkError: too many steps in a row without a finite loss, or a rank whose data fail; on rank
                0, while the others leave silently.
        """
        images = self.config.train.global_batch_size
        bar = progress_bar(
            total=self.total_steps * images,
            initial=self.step * images,
            unit="img",
            unit_scale=True,
            desc="train",
            disable=self.ranks.rank != 0,
        )
        stopped = False
        last_save = time.monotonic()
        with StopSignal() as stop, bar, Watchdog(self.config.train.timeout_s, self.ranks.rank) as watchdog:
            batch = self.ranks.agree(self.next_batch)
            while self.step < self.total_steps and not stopped:
                self.meter.add(self.train_step(batch))
                bar.update(images)
                if self._logged(self.step):
                    figures = self._figures()
                    bar.set_postfix(loss=f"{figures['loss']:.3f}", lr=f"{figures['lr']:.2g}")
                    self.trackers.log(self.step, figures)
                score = None
                if self._due(self.config.evaluate.every_steps):
                    with watchdog.paused():
                        score = self._evaluate()
                failure: UserError | WorkError | None = None
                try:
                    batch = self.next_batch() if self.step < self.total_steps else batch
                except (UserError, WorkError) as error:
                    failure = error  # said when all ranks know of it, since none may wait for this one
                # One exchange a step for all questions. Rank 0 alone reads the clock and the best score: the others'
                # views of the file system may be older.
                first = self.ranks.rank == 0
                overdue = first and self._overdue(last_save)
                best = first and score is not None and self.checkpointer.is_best(score)
                stopped, overdue, best, failed = self.ranks.any(stop.asked, overdue, best, failure is not None)
                if overdue or best or self._due(self.config.checkpoint.every_steps):
                    self.save(score if best else None)
                    last_save = time.monotonic()
                if failed and not stopped:
                    with watchdog.paused():
                        self._save_last()
                    self.ranks.agree(partial(_raise, failure))
                self.checkpointer.commit_if_written()
                watchdog.beat()
            if self.samples is None:  # resumed at the last step
                self.samples = batch.images
            with watchdog.paused():  # nothing is left to do but to write the last checkpoint
                self._save_last()
            # What is left to do takes time too, which whoever asked to stop in the last step does not give.
            stopped = self.ranks.any(stop.asked)[0]
        return self.step == self.total_steps and not stopped

    def _save_last(self) -> None:
        """Write the present step's checkpoint if it is not there yet; what is lost without it is noted."""
        self.checkpointer.wait()
        self.save()
        self.checkpointer.wait()
        if self.checkpointer.lost is not None:
            older = committed_checkpoints(self.config.run_dir)
            newest = f"the newest complete one is {older[-1].name}" if older else "there is no older one"
            self.lost.append(f"the checkpoint of step {self.step}: {self.checkpointer.lost}; {newest}")

    def close(self) -> None:
        """End whatever holds files, threads or processes; safe to repeat, and after a start that failed half-way."""
        self._opened.close()

    def next_batch(self) -> Batch:
        """This rank's batch for the step that comes, made as that step's phase says.

        Raises:
            UserError | WorkError: the data fail on this rank.
        """
        self.loader.change(self.config.at(self.step).data)
        return next(self.loader)

    def train_step(self, batch: Batch) -> Tensor:
        """One step of the program on this rank's share of the global batch; its loss [], the same on all ranks.

        A step whose embeddings or gradient are not finite changes nothing on any rank and counts as bad, on a GPU
        once the next step is about to change something.
        """
        if self.samples is None:
            self.samples = batch.images
            self.trackers.pictures("samples", batch.images)
        self._begin_phase()
        self.program.enter(self.step)
        lr = rate_at(self.config, self.step, self.total_steps)
        # Whatever a step draws, e.g. in dropout, is a function of seed, step and rank, so that a resumed run draws
        # what an unbroken one would.
        torch.manual_seed(hash((self.config.seed, self.step, self.ranks.rank)))
        total = torch.zeros((), device=self.ranks.device)
        parts = batch.chunk(self.accumulation)
        self.program.begin()
        try:
            for part in parts:
                total += self.program.micro_step(part, last=part is parts[-1])
            self.settle()  # the device has the work up to here before it
            self.gradient_norm = self.program.update(lr, measure=self._logged(self.step + 1))
            if (proceed := self._verdict.proceed) is not None:
                lost = torch.full_like(total, float("nan"))
                total, self.gradient_norm = (torch.where(proceed, each, lost) for each in (total, self.gradient_norm))
            self._unruled = (self._verdict.rule(), self.step, parts)
            if not self._verdict.late:
                self.settle()
        except NonFiniteError as error:
            self.program.discard()
            self.bad_steps.bad(error, self.step, self.program, parts)
            self.gradient_norm = total.fill_(float("nan"))
        self.step += 1
        self.position += self.config.train.global_batch_size
        return total

    def settle(self) -> None:
        """Count the last step as good or bad, as far as that has not been done; waits for the device.

        Raises:
            WorkError | SystemExit: see `BadSteps.bad`.
        """
        waiting, self._unruled = self._unruled, None
        if waiting is None:
            return
        ruling, step, parts = waiting
        if (refusal := ruling.refusal()) is None:
            self.bad_steps.good()
        else:
            self.bad_steps.bad(refusal, step, self.program, parts)

    def save(self, score: float | None = None) -> None:
        """Begin a checkpoint of the present step, as the best one where it has a `score`; a collective."""
        self.settle()
        manifest = self.loader.manifest
        # Of the step that comes, with which a resumed run begins; the loader may be at the one before.
        image_size = self.config.at(self.step).data.image_size or manifest.image_size
        data = (image_size, manifest.num_classes, manifest.digest)
        self.checkpointer.save(Progress(self.step, self.position, *data, manifest.aligner), score)

    def outcome(self) -> Outcome:
        """What the run has made, once `fit` has reached the last step; a collective.

        Raises:
            RuntimeError: `fit` has not run.
        """
        if self.samples is None:
            raise RuntimeError("a run that has seen no batch has no outcome; call fit first")
        manifest = self.loader.manifest
        return Outcome(
            self.program.evaluated(),
            self.step,
            self.loader.image_size,
            self.samples,
            manifest.num_classes,
            manifest.samples,
            manifest.aligner,
        )

    def _evaluate(self) -> float | None:
        """The model's score; None where the sets cannot be judged now, which costs this evaluation. A collective."""
        self.settle()
        image_size = self.loader.image_size
        try:
            found = evaluate_backbone(self.program.evaluated(), self.config.evaluate, image_size, self.ranks)
        except (UserError, WorkError) as error:
            self.lost.append(f"the evaluation at step {self.step}: {error}")
            if self.ranks.rank == 0:
                logger.error("EVALUATION LOST at step %d: %s. Training goes on", self.step, error)
            return None
        self.trackers.log(self.step, found.figures())
        return found.score

    def _due(self, every_steps: int | None) -> bool:
        return every_steps is not None and self.step % every_steps == 0

    def _logged(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == self.total_steps

    def _overdue(self, last_save: float) -> bool:
        minutes = self.config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - last_save > 60 * minutes

    def _begin_phase(self) -> None:
        """Settle the steps before a phase that begins in the step that comes, and tell on rank 0 what it changes."""
        if not any(phase.at == self.step for phase in self.config.phases):
            return
        self.settle()
        if self.ranks.rank == 0:
            changes = differences(self.config.at(self.step - 1), self.config.at(self.step))
            logger.info("a phase begins at step %d: %s", self.step, "; ".join(changes) or "a new schedule")

    def _figures(self) -> dict[str, float]:
        self.settle()
        figures = self.meter.figures(self.loader.take_wait())
        figures["lr"] = rate_at(self.config, self.step - 1, self.total_steps)
        figures["gradient_norm"] = float(self.gradient_norm)
        figures["bad_steps"] = self.bad_steps.count
        if self.config.phases:  # 0 before the first one
            figures["phase"] = sum(phase.at < self.step for phase in self.config.phases)
        figures["epoch"] = self.position / (self.loader.steps_per_epoch * self.config.train.global_batch_size)
        return figures | self.program.figures()


def _raise(error: UserError | WorkError | None) -> None:
    if error is not None:
        raise error
