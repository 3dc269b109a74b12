"""The training loop: it wires loader, backbone, head, optimizer, checkpoints and trackers together."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from dist_train.backbones import build_backbone
from dist_train.checkpoint import Checkpointer, Progress, read_progress
from dist_train.config import RunConfig
from dist_train.data.loader import Batch, build_loader
from dist_train.errors import UserError
from dist_train.head import Head
from dist_train.parallel import Replica
from dist_train.ranks import Ranks
from dist_train.schedule import learning_rate
from dist_train.trackers import Trackers

logger = logging.getLogger(__name__)

BAD_SAMPLES_NAME = "bad_samples.jsonl"


class Trainer:
    """A run on this rank.

    Args:
        config: the whole configuration.
        ranks: this process among the job's.
        checkpoint: where to go on from; None for a fresh start.

    Raises:
        UserError: batch sizes that do not divide, or a dataset that cannot be trained on.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, checkpoint: Path | None = None) -> None:
        self.config, self.ranks = config, ranks
        self.accumulation = ranks.agree(lambda: _accumulation(config, ranks.world_size))
        self.step = 0 if checkpoint is None else ranks.agree(lambda: read_progress(checkpoint).step)
        self.loader = ranks.agree(
            lambda: build_loader(
                config.data,
                batch_size=config.train.global_batch_size // ranks.world_size,
                rank=ranks.rank,
                world_size=ranks.world_size,
                seed=config.seed,
                start_position=self.step * config.train.global_batch_size,
                device=ranks.device,
                bad_samples_path=config.run_dir / BAD_SAMPLES_NAME,
            )
        )
        self.manifest = self.loader.manifest
        self.total_steps = _total_steps(config, self.loader.steps_per_epoch)
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
            )
        )
        torch.manual_seed(config.seed)  # the same initial backbone on every rank
        backbone = build_backbone(config.backbone, self.loader.image_size)
        self.backbone = backbone.to(ranks.device, memory_format=torch.channels_last)
        self.replica = Replica(self.backbone, config.optimizer, ranks)
        self.checkpointer = Checkpointer(config.run_dir, config.checkpoint.keep, self.replica, self.head, ranks)
        if checkpoint is not None:
            ranks.agree(lambda: self._restore(checkpoint))
        self._precision = _precision(config.train.precision, ranks.device)
        self._stop_asked = False

    def fit(self) -> bool:
        """Train to the last step, or until a signal asks to stop; a checkpoint is written either way.

        Returns:
            Whether the last step was reached.
        """
        trackers = Trackers(self.config, self.ranks.rank, self.step)
        meter = Meter(self.config.train.global_batch_size)
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
        with self._signals(), self.loader, bar:
            batches = iter(self.loader)
            while self.step < self.total_steps and not stopped:
                loss = self.train_step(next(batches))
                meter.add(loss)
                bar.update(images)
                if self.step % self.config.train.log_every == 0 or self.step == self.total_steps:
                    figures = meter.figures(self.loader.take_wait()) | self._figures()
                    bar.set_postfix(loss=f"{figures['loss']:.3f}", lr=f"{figures['lr']:.2g}")
                    trackers.log(self.step, figures)
                if self.step % self.config.checkpoint.every_steps == 0:
                    self.save()
                self.checkpointer.commit_if_written()
                stopped = self.ranks.any(self._stop_asked)
            self.save()
            self.checkpointer.wait()
            trackers.close()
        return self.step == self.total_steps

    def train_step(self, batch: Batch) -> Tensor:
        """One step of backbone and head on this rank's share of the global batch; its loss, the same on all ranks."""
        self.backbone.train()
        lr = learning_rate(self.config.optimizer, self.step, self.total_steps)
        if self.config.backbone.dropout:
            # A function of seed, step and rank, so that a resumed run drops what an unbroken one would.
            torch.manual_seed(hash((self.config.seed, self.step, self.ranks.rank)))
        total = torch.zeros((), device=self.ranks.device)
        micro_batches = zip(batch.images.chunk(self.accumulation), batch.labels.chunk(self.accumulation), strict=True)
        for index, (images, labels) in enumerate(micro_batches, start=1):
            with self.replica.accumulate(last=index == self.accumulation):
                with torch.autocast(self.ranks.device.type, self._precision, enabled=self._precision != torch.float32):
                    embeddings = self.replica.embed(images.contiguous(memory_format=torch.channels_last))
                border = embeddings.detach().float().requires_grad_()
                loss = self.head(border, labels) / self.accumulation
                loss.backward()
                self.replica.backward(embeddings, cast(Tensor, border.grad))
            total += loss.detach()
        self.gradient_norm = self.replica.step(lr)
        self.head.step(lr)
        self.step += 1
        return total

    def save(self) -> None:
        """Begin a checkpoint of the present step; a collective."""
        self.replica.average_buffers()
        self.checkpointer.save(self._progress())

    def _progress(self) -> Progress:
        return Progress(
            step=self.step,
            position=self.step * self.config.train.global_batch_size,
            image_size=self.loader.image_size,
            num_classes=self.manifest.num_classes,
            data_digest=self.manifest.digest,
        )

    def _restore(self, checkpoint: Path) -> None:
        progress = self.checkpointer.restore(checkpoint)
        if progress != self._progress():
            raise UserError(
                f"checkpoint {checkpoint} was made on other data than {self.config.data.path}: {progress}, but now "
                f"{self._progress()}; bring that set back, or start a new run in another run_dir"
            )
        if self.ranks.rank == 0:
            logger.info("resumed from %s at step %d of %d", checkpoint, self.step, self.total_steps)

    def _figures(self) -> dict[str, float]:
        figures = {"lr": learning_rate(self.config.optimizer, self.step - 1, self.total_steps)}
        figures["gradient_norm"] = float(self.gradient_norm)
        figures["epoch"] = self.step * self.config.train.global_batch_size / self.manifest.samples
        return figures | {f"head/{name}": value for name, value in self.head.statistics().items()}

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for a stop at the next step boundary instead of ending the process."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._stop_asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Meter:
    """Loss and speed since the last report."""

    def __init__(self, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._started, self._losses = time.perf_counter(), list[Tensor]()

    def add(self, loss: Tensor) -> None:
        """Count a step. The loss is not read here, which would make the host wait for a GPU."""
        self._losses.append(loss)

    def figures(self, waited_s: float) -> dict[str, float]:
        """Mean loss, images per second over all ranks, share of time spent waiting for data; starts anew."""
        loss = float(torch.stack(self._losses).mean())
        seconds = time.perf_counter() - self._started
        images = len(self._losses) * self._images_per_step
        self._started, self._losses = time.perf_counter(), []
        return {"loss": loss, "images_per_s": images / seconds, "data_wait": waited_s / seconds}


def _accumulation(config: RunConfig, world_size: int) -> int:
    """Micro-batches in which a rank works off its share of the global batch."""
    total = config.train.global_batch_size
    micro = config.train.micro_batch_size or total // world_size
    if micro < 2 or total % (micro * world_size):
        raise UserError(
            f"train.global_batch_size {total} is not a multiple of {world_size} ranks × train.micro_batch_size {micro} "
            "(which must be at least 2); change one of them"
        )
    return total // (micro * world_size)


def _total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    if config.train.steps is not None:
        return config.train.steps
    return max(1, round((config.train.epochs or 0) * steps_per_epoch))


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32
