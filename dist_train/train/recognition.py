"""Training to recognise: a backbone, the head that tells its embeddings apart, and further terms of the loss."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dist_train.backbones import draw, memory_format
from dist_train.checkpoint.part import CopiedPart, Part
from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.errors import NonFiniteError
from dist_train.head import Head
from dist_train.objectives.by_source import LossBySource
from dist_train.objectives.gathering import Gathering
from dist_train.objectives.objective import Objective, OfTwoViews
from dist_train.replica.base import Replica
from dist_train.runtime.verdict import Verdict
from dist_train.track.stopwatch import Stopwatch
from dist_train.train.diagnosis import diagnose
from dist_train.train.kept_buffers import KeptBuffers
from dist_train.train.moving_average import MovingAverage
from dist_train.train.replicas import Replicas


class Term(NamedTuple):
    """A term of the loss beside the head's.

    Attributes:
        objective: the term.
        weight: what it is multiplied by in step `step` of 0, 1, ...; a term of weight 0 is not asked.
    """

    objective: Objective
    weight: Callable[[int], float]


class Recognition:
    """The program of a recognition run.

    Args:
        replica: the backbone and its optimizer, as `replicas` make them for `step`.
        head: the classifier over all identities, with weight 1 in the loss; None: further terms alone.
        average: moving average of the backbone's weights, which is then what is evaluated; None for none.
        accumulation: micro-batches per step.
        replicas: make what takes the replica's place when what stands still changes.
        step: that comes first.
        stopwatch: takes the times of head and backbone.
        config: the whole recipe, whose phases the head follows, and whose seed the backbone's draws.
        terms: by name, further terms of the loss.
        gathering: what the terms share of a micro-batch.
        by_source: takes the head's losses, for figures by set.
        verdict: on a step, which head and terms share.
    """

    def __init__(
        self,
        replica: Replica,
        head: Head | None,
        *,
        average: MovingAverage | None,
        accumulation: int,
        replicas: Replicas,
        step: int,
        stopwatch: Stopwatch,
        config: RunConfig,
        terms: Mapping[str, Term],
        gathering: Gathering,
        by_source: LossBySource,
        verdict: Verdict,
    ) -> None:
        self.replica, self.head, self.average = replica, head, average
        self._accumulation, self._replicas, self._time = accumulation, replicas, stopwatch
        self._further, self._gathering = dict(terms), gathering
        self._config, self._by_source, self._verdict = config, by_source, verdict
        self._opened: list[Objective] = [
            *([] if head is None else [head]),
            *(term.objective for term in terms.values()),
        ]
        self._still: tuple[str, ...] = ()
        self._seed, self._step = config.seed, step
        self._weights: dict[str, float] = {}
        self._terms: dict[str, Objective] = {}
        self._take(step)
        self._kept = KeptBuffers(replica.backbone)
        self._memory_format = memory_format(replica.backbone)
        self.parts: dict[str, Part] = {  # of the replica that is there when they are asked for
            "backbone": CopiedPart(
                lambda: self.replica.backbone_state(),
                lambda state: self.replica.load_backbone(state),
                lambda: self.replica.average_buffers(),
            ),
            "optimizer": CopiedPart(
                lambda: self.replica.optimizer_state(), lambda state: self.replica.load_optimizer(state)
            ),
        }
        if average is not None:  # after the backbone, whose statistics it takes over
            self.parts["average"] = CopiedPart(average.state_dict, average.load_state_dict, self._sync_average)
        every: dict[str, Objective] = {} if head is None else {"head": head}
        every |= {name: term.objective for name, term in terms.items()}
        self.parts |= {name: term for name, term in every.items() if isinstance(term, Part)}

    @property
    def backbone(self) -> nn.Module:
        """The network that is trained; under ZeRO-3 this rank's part of it."""
        return self.replica.backbone

    def enter(self, step: int) -> None:
        """See `Program`; parts stand still from now on, or no longer, and terms come and go."""
        if self._replicas.freezing.at(step) != self._still:
            self.replica = self._replicas.follow(self.replica, step)
            self._kept = KeptBuffers(self.backbone)
        self._take(step)

    def _take(self, step: int) -> None:
        """Take over what step `step` asks for: the head's settings, what stands still, which terms have what weight."""
        self._step = step
        self._still = self._replicas.freezing.at(step)
        section = self._config.at(step).head
        if self.head is not None and section is not None:
            self.head.change(section)
            self.head.hold("head" in self._still)
        weights = {name: term.weight(step) for name, term in self._further.items()}
        self._weights = {name: weight for name, weight in weights.items() if weight}
        self._terms = {} if self.head is None else {"head": self.head}
        self._terms |= {name: self._further[name].objective for name in self._weights}

    def begin(self) -> None:
        """See `Program`."""
        self.replica.train()
        self._kept.keep()
        self._by_source.begin()

    def micro_step(self, batch: Batch, *, last: bool) -> Tensor:
        """See `Program`."""
        seen = self._views_of(batch)
        images = seen.images.contiguous(memory_format=self._memory_format)
        with self.replica.accumulate(last):
            with self._time("head"):
                # E.g. rows kept elsewhere come while the backbone computes.
                if self.head is not None:
                    self.head.prepare(batch, self._gathering.weights(batch))
                for name in self._weights:
                    self._terms[name].prepare(batch)
            with self._time("backbone"):
                self._draw(seen)
                embeddings = self.replica.embed(images)
            # The border: every term sees a leaf, and one backward pass through the backbone takes what they give.
            border = embeddings.detach().float().requires_grad_()
            try:
                with self._time("head"):
                    loss = self.loss(border, batch) / self._accumulation
                    loss.backward()
            except NonFiniteError:
                # The gradient exchange that this forward pass announced must still happen.
                self.replica.backward(embeddings, torch.zeros_like(border))
                raise
            with self._time("backbone"):
                self.replica.backward(embeddings, cast(Tensor, border.grad))
        return loss.detach()

    def _draw(self, batch: Batch) -> None:
        """Let the backbone draw for the samples of its next forward pass."""
        draw(self.backbone, self._seed, self._step, batch.positions)

    def loss(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """The sum of all terms []: means over the global micro-batch, or what sets weigh in it.

        Args:
            embeddings: [B, D], this rank's; [2·B, D] where a term takes two views, the second ones behind the first.
            batch: that they were made from.
        """
        first = embeddings[: len(batch.labels)] if len(embeddings) > len(batch.labels) else embeddings
        total = embeddings.new_zeros(())
        if self.head is not None:
            total = self.head(first, batch, self._gathering.weights(batch))
            self._by_source.add(self.head.sample_losses, batch.source)
        for name, weight in self._weights.items():
            term = self._terms[name]
            total = total + weight * term(embeddings if isinstance(term, OfTwoViews) else first, batch)
        self._gathering.forget()
        return total

    def _views_of(self, batch: Batch) -> Batch:
        """The batch with the second views as further samples, where a term of this step takes them."""
        if any(isinstance(term, OfTwoViews) for term in self._terms.values()):
            return batch.both()
        return batch

    def update(self, lr: float, *, measure: bool) -> Tensor:
        """See `Program`."""
        norm = self.replica.step(lr, self._verdict)
        proceed = self._verdict.proceed
        if proceed is not None:
            self._kept.restore_unless(proceed)  # a forward pass with NaN leaves NaN in BatchNorm's
        late: dict[str, Any] = {} if proceed is None else {"proceed": proceed}
        for term in self._terms.values():
            term.step(lr, measure=measure, **late)
        if self.average is not None:
            self.average.follow(self.backbone, proceed)
        return norm

    def discard(self) -> None:
        """See `Program`."""
        self.replica.discard()
        self._gathering.forget()
        for term in self._terms.values():
            term.zero_grad()
        self._by_source.begin()
        self._kept.restore()  # a forward pass with NaN leaves NaN in BatchNorm's

    def evaluated(self) -> nn.Module:
        """See `Program`; with the statistics of all ranks."""
        self.replica.average_buffers()
        if self.average is not None:
            self._sync_average()
            return self.average.module.eval()
        if not self.replica.partitioned:
            return self.backbone.eval()
        with torch.device("meta"):  # its weights are those that come
            whole = self._replicas.empty()
        whole.load_state_dict(self.replica.backbone_state(), assign=True)
        return whole.eval()

    def _sync_average(self) -> None:
        """Give the moving average, which is of weights, the backbone's statistics.

        So does torch's `AveragedModel` at each update; this copy is of those that `average_buffers` has made since.
        """
        average = cast(MovingAverage, self.average)
        for own, source in zip(average.module.buffers(), self.backbone.buffers(), strict=True):
            own.copy_(source)

    def figures(self) -> dict[str, float]:
        """See `Program`: statistics of each term under its name."""
        terms = self._terms.items()
        found = {f"{name}/{key}": value for name, term in terms for key, value in term.statistics().items()}
        return found | {f"head/{key}": value for key, value in self._by_source.figures().items()}

    def diagnose(self, micro_batches: list[Batch]) -> str | None:
        """See `Program`."""
        whole = [self._views_of(batch) for batch in micro_batches]
        single = {id(both): batch for both, batch in zip(whole, micro_batches, strict=True)}

        def loss(embeddings: Tensor, both: Batch) -> Tensor:
            return self.loss(embeddings, single[id(both)])

        return diagnose(self.replica, loss, self._draw, whole)

    def close(self) -> None:
        """See `Program`."""
        with ExitStack() as opened:
            for term in self._opened:
                opened.callback(term.close)
