"""The training loop: it wires loader, backbone, head, optimizer, checkpoints and trackers together."""

import logging
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dist_train.backbones import build_backbone, memory_format, recompute_activations
from dist_train.checkpoint.checkpointer import Checkpointer
from dist_train.checkpoint.store import Progress, check_same_data, committed_checkpoints, read_progress
from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.data.class_counts import class_counts
from dist_train.data.loader import build_loader
from dist_train.errors import NonFiniteError, UserError, WorkError
from dist_train.evaluate.suite import check_sets, evaluate_backbone
from dist_train.head import Head
from dist_train.replica.build import build_replica
from dist_train.run_files import BAD_SAMPLES_NAME
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.stop_signal import StopSignal
from dist_train.runtime.watchdog import Watchdog
from dist_train.track.meter import Meter
from dist_train.track.trackers import Trackers
from dist_train.train.bad_steps import BadSteps
from dist_train.train.batching import check_one_set, micro_batches, total_steps
from dist_train.train.kept_buffers import KeptBuffers
from dist_train.train.schedule import learning_rate

logger = logging.getLogger(__name__)


class Trainer:
    """A run on this rank.

    Args:
        config: the whole configuration.
        ranks: this process among the job's.
        checkpoint: where to go on from; None for a fresh start.

    Attributes:
        lost: results that the run could not make although training went on, a line each.

    Raises:
        UserError: batch sizes that do not divide, or a dataset that cannot be trained on.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, checkpoint: Path | None = None) -> None:
        self.config, self.ranks = config, ranks
        self.lost: list[str] = []
        self._opened = ExitStack()
        try:
            self._open(checkpoint)
        except BaseException:
            self.close()
            raise

    def _open(self, checkpoint: Path | None) -> None:
        """Build every part; those that hold files, threads or processes are noted for `close`."""
        config, ranks = self.config, self.ranks
        ranks.agree(lambda: check_sets(config.evaluate))
        self.accumulation = ranks.agree(lambda: micro_batches(config, ranks.world_size))
        before = None if checkpoint is None else ranks.agree(lambda: read_progress(checkpoint))
        self.step, position = (before.step, before.position) if before else (0, 0)
        # Another global batch than before (--allow-changes) goes on at the next whole one.
        self.position = position + -position % config.train.global_batch_size
        self.loader = ranks.agree(
            lambda: build_loader(
                config.data,
                batch_size=config.train.global_batch_size // ranks.world_size,
                rank=ranks.rank,
                world_size=ranks.world_size,
                seed=config.seed,
                start_position=self.position,
                device=ranks.device,
                bad_samples_path=config.run_dir / BAD_SAMPLES_NAME,
            )
        )
        self._opened.callback(self.loader.close)
        self.manifest = self.loader.manifest
        digests = ranks.gather(self.manifest.digest)
        ranks.agree(lambda: check_one_set(digests, ranks.rank, config.data.path))
        if checkpoint is not None and before is not None:
            ranks.agree(lambda: check_same_data(checkpoint, before, *self._data()))
        self.total_steps = total_steps(config, self.loader.steps_per_epoch)
        self.head = ranks.agree(
            lambda: Head(
                config.head,
                self.manifest.num_classes,
                config.backbone.embedding_dim,
                group=ranks.group,
                rank=ranks.rank,
                world_size=ranks.world_size,
                device=ranks.device,
                seed=config.seed,
                class_counts=class_counts(config.data) if config.head.needs_class_counts else None,
            )
        )
        self._opened.callback(self.head.close)
        torch.manual_seed(config.seed)  # the same initial backbone on every rank
        backbone = build_backbone(config.backbone, self.loader.image_size)
        if config.train.activation_checkpointing:
            recompute_activations(backbone)
        self.backbone = backbone.to(ranks.device).to(memory_format=memory_format(backbone))
        decay = config.train.ema_decay
        self.average = None if decay is None else AveragedModel(backbone, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.replica = ranks.agree(
            lambda: build_replica(config.train, config.optimizer, self.backbone, self.accumulation, ranks)
        )
        self._statistics = KeptBuffers(self.backbone)
        self.meter = Meter(config.train.global_batch_size, ranks.device)
        self.bad_steps = BadSteps(config.train.max_bad_steps, ranks)
        self.trackers = Trackers(config, ranks.rank, self.step)
        self._opened.callback(self.trackers.close)
        self.checkpointer = Checkpointer(
            config.run_dir,
            config.checkpoint.keep,
            self.replica,
            self.head,
            self.average,
            ranks,
            on_commit=self.trackers.checkpoint,
        )
        self._opened.callback(self.checkpointer.close)
        if checkpoint is not None:
            ranks.agree(lambda: self.checkpointer.restore(checkpoint))
            if ranks.rank == 0:
                logger.info("resumed from %s at step %d of %d", checkpoint, self.step, self.total_steps)
        self.samples: Tensor | None = None  # of the first batch, for the report

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
        bar = tqdm(
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
            batches = iter(self.loader)
            batch = self.ranks.agree(lambda: next(batches))
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
                    batch = next(batches) if self.step < self.total_steps else batch
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

    def train_step(self, batch: Batch) -> Tensor:
        """One step of backbone and head on this rank's share of the global batch; its loss, the same on all ranks.

        A step whose embeddings or gradient are not finite changes nothing on any rank and counts as bad.
        """
        if self.samples is None:
            self.samples = batch.images
            self.trackers.pictures("samples", batch.images)
        self.backbone.train()
        lr = learning_rate(self.config.optimizer, self.step, self.total_steps)
        if self.config.backbone.dropout:
            # A function of seed, step and rank, so that a resumed run drops what an unbroken one would.
            torch.manual_seed(hash((self.config.seed, self.step, self.ranks.rank)))
        total = torch.zeros((), device=self.ranks.device)
        self._statistics.keep()
        parts = [Batch(*part) for part in zip(*(each.chunk(self.accumulation) for each in batch), strict=True)]
        try:
            for part in parts:
                total += self._micro_step(part, last=part is parts[-1])
            self.gradient_norm = self.replica.step(lr)
            self.head.step(lr, measure=self._logged(self.step + 1))
            if self.average is not None:
                self.average.update_parameters(self.backbone)
            self.bad_steps.good()
        except NonFiniteError as error:
            self.replica.discard()
            self.head.zero_grad()
            self._statistics.restore()  # a forward pass with NaN leaves NaN in BatchNorm's
            self.bad_steps.bad(error, self.step, self.replica, self.head, parts)
            self.gradient_norm = total.fill_(float("nan"))
        self.step += 1
        self.position += self.config.train.global_batch_size
        return total

    def _micro_step(self, batch: Batch, last: bool) -> Tensor:
        """Forward and backward of a part of the batch; its share of the step's loss."""
        images = batch.images.contiguous(memory_format=memory_format(self.backbone))
        with self.replica.accumulate(last):
            with self.meter.time("head"):
                self.head.prefetch(batch.labels)  # rows kept elsewhere come while the backbone computes
            with self.meter.time("backbone"):
                embeddings = self.replica.embed(images)
            border = embeddings.detach().float().requires_grad_()
            try:
                with self.meter.time("head"):
                    loss = self.head(border, batch.labels) / self.accumulation
                    loss.backward()
            except NonFiniteError:
                # The gradient exchange that this forward pass announced must still happen.
                self.replica.backward(embeddings, torch.zeros_like(border))
                raise
            with self.meter.time("backbone"):
                self.replica.backward(embeddings, cast(Tensor, border.grad))
        return loss.detach()

    def save(self, score: float | None = None) -> None:
        """Begin a checkpoint of the present step, as the best one where it has a `score`; a collective."""
        self.replica.average_buffers()
        self._sync_average()
        self.checkpointer.save(Progress(self.step, self.position, *self._data()), score)

    def evaluated_backbone(self) -> nn.Module:
        """The network that is evaluated and exported, whole on every rank, with statistics of all; a collective."""
        self.replica.average_buffers()
        self._sync_average()
        if self.average is not None:
            return self.average.module.eval()
        if not self.replica.partitioned:
            return self.backbone.eval()
        with torch.device("meta"):  # its weights are those that come
            whole = build_backbone(self.config.backbone, self.loader.image_size)
        whole.load_state_dict(self.replica.backbone_state(), assign=True)
        return whole.eval()

    def _sync_average(self) -> None:
        if self.average is not None:
            for own, source in zip(self.average.module.buffers(), self.backbone.buffers(), strict=True):
                own.copy_(source)

    def _evaluate(self) -> float | None:
        """The model's score; None where the sets cannot be judged now, which costs this evaluation. A collective."""
        image_size = self.loader.image_size
        try:
            found = evaluate_backbone(self.evaluated_backbone(), self.config.evaluate, image_size, self.ranks)
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

    def _data(self) -> tuple[int, int, str]:
        """What a checkpoint must agree with: size of pictures, classes, digest of the set."""
        return self.loader.image_size, self.manifest.num_classes, self.manifest.digest

    def _figures(self) -> dict[str, float]:
        figures = self.meter.figures(self.loader.take_wait())
        figures["lr"] = learning_rate(self.config.optimizer, self.step - 1, self.total_steps)
        figures["gradient_norm"] = float(self.gradient_norm)
        figures["bad_steps"] = self.bad_steps.count
        figures["epoch"] = self.step / self.loader.steps_per_epoch
        return figures | {f"head/{name}": value for name, value in self.head.statistics().items()}


def _raise(error: UserError | WorkError | None) -> None:
    if error is not None:
        raise error
