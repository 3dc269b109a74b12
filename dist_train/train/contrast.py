"""Training without labels: two views of a picture are told from the views of others (MoCo v3, and v2's queue)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dist_train.backbones import draw
from dist_train.checkpoint.part import CopiedPart, Part
from dist_train.contrast.config import ContrastConfig
from dist_train.contrast.loss import Contrasted, info_nce
from dist_train.contrast.momentum import MomentumEncoder, momentum_at
from dist_train.contrast.network import QueryNetwork
from dist_train.contrast.queue import KeyQueue
from dist_train.contrast.shuffle import Shuffle
from dist_train.data.batch import Batch
from dist_train.errors import NonFiniteError
from dist_train.head.exchange import HeadGroup
from dist_train.replica.base import Replica
from dist_train.runtime.verdict import Verdict
from dist_train.track.stopwatch import Stopwatch
from dist_train.train.diagnosis import diagnose
from dist_train.train.kept_buffers import KeptBuffers


class Length(NamedTuple):
    """How long a run is, and how its steps are cut.

    Attributes:
        steps: of the whole run.
        samples: G of a step, over all ranks.
        accumulation: micro-batches of a step.
    """

    steps: int
    samples: int
    accumulation: int


class Query(NamedTuple):
    """A forward pass of the query network.

    Attributes:
        batch: a micro-batch whose `images` are those of the view.
        view: 0 or 1.
        own: [B] int64 on the device, the places of its samples among the G of the step.
    """

    batch: Batch
    view: int
    own: Tensor


class Contrast:
    """The program of pre-training without labels; its result is the plain backbone.

    The keys of a whole step are made first: no gradient flows through them, so that takes no memory worth naming. Then
    each micro-batch and view passes through the query network alone, against the keys of all of them. So the loss, and
    the groups that BatchNorm normalises over, do not depend on the number of ranks where `micro_batch_size` is given.

    Args:
        replica: of the query network, with its optimizer.
        network: the query network itself, whole on this rank.
        momentum_encoder: makes the keys.
        queue: of earlier keys; None for none.
        section: the recipe's section `contrast`.
        length: of the run and of a step.
        dtype: of the momentum encoder's arithmetic.
        seed: of the run.
        step: that comes first.
        stopwatch: takes the times of loss (as of a head) and networks.
        verdict: on a step.
    """

    def __init__(
        self,
        replica: Replica,
        network: QueryNetwork,
        momentum_encoder: MomentumEncoder,
        queue: KeyQueue | None,
        *,
        section: ContrastConfig,
        length: Length,
        dtype: torch.dtype,
        seed: int,
        step: int,
        stopwatch: Stopwatch,
        verdict: Verdict,
    ) -> None:
        self.replica, self.network, self.momentum_encoder, self.queue = replica, network, momentum_encoder, queue
        self._section, self._length, self._dtype, self._seed = section, length, dtype, seed
        self._step, self._time, self._verdict = step, stopwatch, verdict
        ranks = replica.ranks
        self._group, self._device = HeadGroup(ranks.group, ranks.rank, ranks.world_size), ranks.device
        self._kept = KeptBuffers(network)
        self._waiting: list[Batch] = []
        self._new_keys: Tensor | None = None
        self._hits = torch.zeros((), device=self._device)
        self.parts: dict[str, Part] = {
            # The first one makes statistics equal on all ranks, those of the two that follow as well.
            "backbone": self._part_of_network("backbone", first=True),
            "projector": self._part_of_network("projector"),
            "predictor": self._part_of_network("predictor"),
            "momentum_encoder": CopiedPart(momentum_encoder.state_dict, momentum_encoder.load_state_dict),
            "optimizer": CopiedPart(replica.optimizer_state, replica.load_optimizer),
        }
        if queue is not None:
            self.parts["queue"] = CopiedPart(queue.state_dict, queue.load_state_dict)

    def _part_of_network(self, name: str, *, first: bool = False) -> CopiedPart:
        """One of the query network's three, under plain names: who wants the backbone need not know of the others."""
        prefix = f"{name}."

        def state() -> dict[str, Any]:
            whole = self.replica.backbone_state()
            return {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}

        def load(state: Mapping[str, Any]) -> None:
            own = {prefix + key: value for key, value in state.items()}
            self.replica.load_backbone(self.replica.backbone_state() | own)

        return CopiedPart(state, load, self.replica.average_buffers if first else None)

    def enter(self, step: int) -> None:
        """See `Program`."""
        self._step = step

    def begin(self) -> None:
        """See `Program`."""
        self.replica.train()
        self.momentum_encoder.train()
        self._kept.keep()

    def micro_step(self, batch: Batch, *, last: bool) -> Tensor:
        """See `Program`; all is done in the last one of a step, since the queries of each need the keys of all."""
        self._waiting.append(batch)
        if not last:
            return torch.zeros((), device=self._device)
        batches, self._waiting = self._waiting, []
        with self._time("keys"):
            keys = self._keys_of(batches)
        finite = torch.stack([each.isfinite().all() for each in keys])  # of all ranks
        self._verdict.check(finite, _bad_key)
        sums = torch.zeros(2, device=self._device)  # of losses and of hits
        queries = self._queries(batches)
        for query in queries:
            with self.replica.accumulate(query is queries[-1]):
                with self._time("backbone"):
                    self._draw(query)
                    predictions = self.replica.embed(query.batch.images)
                border = predictions.detach().float().requires_grad_()
                found = self._contrasted(border, query, keys)
                found.loss.backward()
                with self._time("backbone"):
                    self.replica.backward(predictions, cast(Tensor, border.grad))
            sums += torch.stack([found.loss.detach(), found.hits])
        loss: Tensor
        loss, self._hits = self._group.all_reduce(sums)
        self._verdict.check(loss.isfinite(), lambda _: _bad_loss(loss))
        self._new_keys = keys[1]
        return loss

    def _keys_of(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Keys [G, P] of both views of a step's samples, in the order of ranks, equal on all of them. A collective."""
        shuffle = Shuffle(self._seed, self._step, self._length.samples, self._group)
        views = ([batch.images for batch in batches], [cast(Tensor, batch.other) for batch in batches])
        first, second = (self._encoded(shuffle, torch.cat(view)) for view in views)
        return first, second

    def _encoded(self, shuffle: Shuffle, images: Tensor) -> Tensor:
        """Keys [G, P] of all ranks' pictures, of which this rank has [B, 3, S, S]."""
        layout = self.network.memory_format
        made = []
        for part in shuffle.take(images).chunk(self._length.accumulation):
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
                made.append(self.momentum_encoder(part.contiguous(memory_format=layout)))
        return shuffle.restore(self._group.gather(torch.cat(made)))

    def _queries(self, batches: Sequence[Batch]) -> list[Query]:
        """The forward passes of a step on this rank: each view of each micro-batch."""
        layout, found = self.network.memory_format, []
        start = self._group.rank * sum(len(batch.labels) for batch in batches)
        for batch in batches:
            own = torch.arange(start, start + len(batch.labels), device=self._device)
            start += len(batch.labels)
            for view, images in enumerate((batch.images, cast(Tensor, batch.other))):
                seen = batch._replace(images=images.contiguous(memory_format=layout))
                found.append(Query(seen, view, own))
        return found

    def _draw(self, query: Query) -> None:
        """Let the backbone draw for the samples of its next forward pass, for each view apart."""
        draw(self.network.backbone, self._seed, 2 * self._step + query.view, query.batch.positions)

    def _contrasted(self, predictions: Tensor, query: Query, keys: Sequence[Tensor]) -> Contrasted:
        """Loss and hits of a pass as shares of the step's means, against the other view's keys and the queue's."""
        others = keys[1 - query.view]
        if self.queue is not None:
            others = torch.cat([others, self.queue.keys])
        return info_nce(predictions, others, query.own, self._section.temperature, self._length.samples)

    def update(self, lr: float, *, measure: bool) -> Tensor:
        """See `Program`; what the keys are made by, and kept in, moves only once the weights have."""
        norm = self.replica.step(lr, self._verdict)
        proceed = self._verdict.proceed
        if proceed is not None:
            self._kept.restore_unless(proceed)
        self.momentum_encoder.follow(self.network, self._momentum(), proceed)
        if self.queue is not None:
            self.queue.push(cast(Tensor, self._new_keys), proceed)
        self._new_keys = None
        return norm

    def _momentum(self) -> float:
        return momentum_at(self._step, self._length.steps, self._section.momentum, self._section.final_momentum)

    def discard(self) -> None:
        """See `Program`; the momentum encoder and the queue have not changed yet."""
        self.replica.discard()
        self._waiting, self._new_keys = [], None
        self._kept.restore()  # a forward pass with NaN leaves NaN in BatchNorm's

    def evaluated(self) -> nn.Module:
        """See `Program`: the plain backbone, with the statistics of all ranks."""
        self.replica.average_buffers()
        return self.network.backbone.eval()

    def figures(self) -> dict[str, float]:
        """See `Program`: the share of queries that find their own key, and the momentum of the step."""
        return {"contrast/accuracy": float(self._hits), "contrast/momentum": self._momentum()}

    def diagnose(self, micro_batches: list[Batch]) -> str | None:
        """See `Program`."""
        keys, queries = self._keys_of(micro_batches), self._queries(micro_batches)
        by_batch = {id(query.batch): query for query in queries}

        def loss(predictions: Tensor, batch: Batch) -> Tensor:
            return self._contrasted(predictions, by_batch[id(batch)], keys).loss

        def draws(batch: Batch) -> None:
            self._draw(by_batch[id(batch)])

        return diagnose(self.replica, loss, draws, [query.batch for query in queries])

    def close(self) -> None:
        """See `Program`; nothing is open."""


def _bad_key(_: object) -> NonFiniteError:
    return NonFiniteError("a key of the momentum encoder is not finite; look at that step's pictures")


def _bad_loss(loss: Tensor) -> NonFiniteError:
    return NonFiniteError(f"the loss is {float(loss)}; lower the learning rate or look at that step's pictures")
