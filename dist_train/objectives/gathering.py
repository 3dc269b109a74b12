"""The embeddings of all ranks, brought together once for all objectives."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.data.batch import Batch
from dist_train.data.config import DataConfig
from dist_train.errors import NonFiniteError
from dist_train.head.exchange import HeadGroup
from dist_train.objectives.weights import is_weighted, sample_weights
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.to_device import to_device
from dist_train.runtime.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Gathered:
    """A global micro-batch of G = W·B samples in the order of ranks, equal on all of them.

    Attributes:
        embeddings: [G, D] float32. Their gradient reaches this rank's own samples and no exchange follows: a term is
            computed from all of them on every rank alike, and each rank keeps the gradient of its own.
        labels: [G] int64, on the device; -1 where a sample has none.
        host_labels: the labels on the CPU.
        sources: [G] int64 on the CPU, the set that each sample was read from.
        own: this rank's samples.
        weights: [G] float32, on the device: the mean of a value that needs labels is the sum of weight times value;
            None: the plain mean.
    """

    embeddings: Tensor
    labels: Tensor
    host_labels: NDArray[np.int64]
    sources: NDArray[np.int64]
    own: slice
    weights: Tensor | None = None


class Gathering:
    """Brings together the embeddings, labels and sources of a micro-batch, once however many terms ask.

    Args:
        ranks: this process among the job's.
        data: the `data` section, which may weigh samples; None: they weigh the same.
        verdict: on the numbers of a step; None: what is not finite is raised at once.

    Attributes:
        verdict: for terms that look at numbers of their own.
    """

    def __init__(self, ranks: Ranks, data: DataConfig | None = None, verdict: Verdict | None = None) -> None:
        self.verdict = Verdict(ranks.device) if verdict is None else verdict
        self._data = data if data is not None and is_weighted(data) else None
        self._rank, self._device = ranks.rank, ranks.device
        self._near = HeadGroup(ranks.group, ranks.rank, ranks.world_size)
        self._hosts = HeadGroup(ranks.control_group, ranks.rank, ranks.world_size)
        self._prepared: tuple[Batch, NDArray[np.int64]] | None = None
        self._made: tuple[Tensor, Gathered] | None = None

    def prepare(self, batch: Batch) -> NDArray[np.int64]:
        """Labels and sources [2, G] of all ranks, exchanged between hosts: no device is waited for. A collective."""
        if self._prepared is None or self._prepared[0] is not batch:
            every = self._hosts.gather(torch.stack([batch.host_labels, batch.source], dim=1))
            self._prepared = (batch, every.numpy().T)
        return self._prepared[1]

    def weights(self, batch: Batch) -> Tensor | None:
        """Weights [G] float64, on the host, of all ranks' samples in losses that need labels; None: the plain mean.

        A collective where the recipe weighs samples.
        """
        found = None if self._data is None else sample_weights(self._data, self.prepare(batch)[1])
        return None if found is None else torch.from_numpy(found)

    def every_source(self, source: Tensor) -> NDArray[np.int64]:
        """The sets [G] that all ranks' samples are from, by this rank's [B] on the CPU. A collective."""
        found: NDArray[np.int64] = self._hosts.gather(source).numpy()
        return found

    def __call__(self, embeddings: Tensor, batch: Batch) -> Gathered:
        """The global micro-batch. A collective at the first call with these embeddings.

        Args:
            embeddings: [B, D] float32, this rank's.
            batch: that they were made from.

        Raises:
            NonFiniteError: an embedding of any rank is not finite; on all ranks.
        """
        if self._made is None or self._made[0] is not embeddings:
            labels, sources = self.prepare(batch)
            every = cast(Tensor, _AllRanks.apply(embeddings, self._near))
            self.verdict.check(every.detach().isfinite().all(dim=1), self._refusal)
            near = to_device(torch.from_numpy(labels.copy()), self._device)
            own = slice(self._rank * len(embeddings), (self._rank + 1) * len(embeddings))
            weights = self.weights(batch)
            if weights is not None:
                weights = to_device(weights.to(torch.float32), self._device)
            self._made = (embeddings, Gathered(every, near, labels, sources, own, weights))
        return self._made[1]

    def forget(self) -> None:
        """Let go of the last micro-batch, whose graph keeps memory."""
        self._prepared = self._made = None

    def _refusal(self, finite: NDArray[np.bool_]) -> NonFiniteError:
        lost = np.flatnonzero(~finite)
        rank, place = divmod(int(lost[0]), len(finite) // self._near.world_size)
        return NonFiniteError(
            f"rank {rank}: embedding {place} of the batch is not finite ({len(lost)} of {len(finite)} over all "
            "ranks); the step is refused; lower the learning rate or look at that input"
        )


class _Context(torch.autograd.function.FunctionCtx):
    own: slice


class _AllRanks(torch.autograd.Function):
    """All-gather whose backward pass takes this rank's part of a gradient that all ranks have computed alike."""

    @staticmethod
    def forward(ctx: _Context, embeddings: Tensor, group: HeadGroup) -> Tensor:
        ctx.own = slice(group.rank * len(embeddings), (group.rank + 1) * len(embeddings))
        every = group.gather(embeddings.detach())
        return every.clone() if every.data_ptr() == embeddings.data_ptr() else every

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, *outer: Tensor) -> tuple[Tensor, None]:
        return outer[0][ctx.own], None
