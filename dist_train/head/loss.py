"""The mean loss over all ranks' samples and classes, and its place in autograd."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import NonFiniteError, UserError
from dist_train.head.exchange import Ranks
from dist_train.head.margins import Margin
from dist_train.head.records import Pass, Targets
from dist_train.head.sampling import ClassSampler, Indices
from dist_train.head.softmax import BlockSoftmax
from dist_train.head.storage import RowStore


class ShardedLoss:
    """One rank's part in the loss of a global batch.

    Args:
        margin: the loss.
        softmax: works over this rank's chosen rows.
        store: holds the rows.
        sampler: chooses them.
        ranks: the exchanges.
        num_classes: C over all ranks.
        start: this rank's first class.

    Attributes:
        micro_batches: those whose backward has been made since the last step.
        observed: of the last forward: the target cosines [G], this rank's chosen and updated share of its classes.
    """

    def __init__(
        self,
        margin: Margin,
        softmax: BlockSoftmax,
        store: RowStore,
        sampler: ClassSampler,
        ranks: Ranks,
        num_classes: int,
        start: int,
    ) -> None:
        self.margin = margin
        self.softmax = softmax
        self.store = store
        self.sampler = sampler
        self.ranks = ranks
        self.num_classes = num_classes
        self.start = start
        self.stop = start + store.num_classes
        self.micro_batches: list[Pass] = []
        self.observed: dict[str, Any] = {}

    def __call__(self, queries: Tensor, norms: Tensor, labels: Indices) -> Tensor:
        """Mean loss [] of all ranks' queries [B, D], with raw embeddings' norms [B] and all ranks' labels [G]."""
        loss: Tensor = _Border.apply(queries, norms, labels, self)
        return loss

    def forward(self, queries: Tensor, norms: Tensor, labels: Indices, training: bool) -> tuple[Tensor, "Share"]:
        """The loss, and this rank's share of its gradient."""
        batch = len(queries)
        queries, norms = self._exchange(queries, norms)
        mine = np.flatnonzero((labels >= self.start) & (labels < self.stop))
        local = labels[mine] - self.start
        if training:
            classes, lease = self.sampler.choose(labels, np.unique(local))
        else:
            classes, lease = None, self.store.lease(None)
        places = local if classes is None else np.searchsorted(classes, local)
        order = np.argsort(places, kind="stable")
        targets = Targets(self._near(mine[order]), self._near(places[order]), places[order])
        self.softmax.find_targets(lease, targets, queries)
        self.margin.observe(norms, self._all_target_cosines(targets, len(queries)), training)
        self.softmax.form_target_logits(targets, norms, self._near(local[order]))
        kept = sum(one.kept_bytes for one in self.micro_batches)
        done = self.softmax.forward(lease, classes, queries, targets, kept, training)
        loss, chosen = self._mean_loss(done), lease.count
        if training:
            self._narrow(done)
        else:
            lease.release()
        mine_all = max(1, self.store.num_classes)
        self.observed |= {"chosen": chosen / mine_all, "updated": done.lease.count / mine_all}
        gradient = self._gradient(done, norms) if training else torch.empty(0)
        penalty, slopes = self._penalty(norms)
        if penalty is not None:
            loss = loss + penalty
            if training:  # every rank knows the whole penalty: each adds its own samples' slopes, once
                own = slice(self.ranks.rank * batch, (self.ranks.rank + 1) * batch)
                gradient[own, -1] += slopes[own]
        return loss, Share(gradient, done)

    def _near(self, values: Indices) -> Tensor:
        return torch.from_numpy(values).to(self.store.device, non_blocking=True)

    def _exchange(self, queries: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """All ranks' queries [G, D] and norms [G], checked."""
        every = self.ranks.gather(torch.cat([queries, norms[:, None]], dim=1))
        queries, norms = every[:, :-1].contiguous(), every[:, -1].contiguous()
        # The one wait of a forward on a CUDA device. A norm is finite exactly if its embedding and square are.
        finite = norms.isfinite().cpu().numpy()
        lost = np.flatnonzero(~finite)
        if len(lost):
            per_rank = len(finite) // self.ranks.world_size
            raise NonFiniteError(
                f"rank {lost[0] // per_rank}: embedding {lost[0] % per_rank} of the batch is not finite "
                f"({len(lost)} of {len(finite)} over all ranks); the step is refused, no center was changed; "
                "lower the learning rate or look at that input"
            )
        return queries, norms

    def _all_target_cosines(self, targets: Targets, samples: int) -> Tensor | None:
        if not self.margin.needs_target_cosines:
            return None
        cosines = targets.cosines.new_zeros(samples)
        cosines[targets.samples] = targets.cosines
        return self.ranks.all_reduce(cosines)

    def _mean_loss(self, done: Pass) -> Tensor:
        """Exchange the softmax statistics, in one collective: the loss, with `done.log_sum` set."""
        statistics = done.queries.new_zeros((4, len(done.queries)))
        statistics[0], statistics[1] = done.top, done.total
        statistics[2, done.targets.samples] = done.targets.logits
        statistics[3, done.targets.samples] = done.targets.cosines
        every = self.ranks.gather(statistics.unsqueeze(0))  # [W, 4, G]
        top = every[:, 0].amax(dim=0)
        done.log_sum = top + (every[:, 1] * (every[:, 0] - top).exp()).sum(dim=0).log()
        self.observed["cosines"] = every[:, 3].sum(dim=0)
        return (done.log_sum - every[:, 2].sum(dim=0)).mean()

    def _narrow(self, done: Pass) -> None:
        if self.softmax.filter_eps and self.softmax.filter(done) and done.classes is not None:
            done.lease.release()
            done.lease = self.store.lease(torch.from_numpy(done.classes))

    def _gradient(self, done: Pass, norms: Tensor) -> Tensor:
        """This rank's share of d loss / d (queries, norms) of all samples: [G, D + 1]."""
        targets, samples = done.targets, len(norms)
        outer = ((targets.logits - done.log_sum[targets.samples]).exp() - 1) / samples  # d loss / d target logit
        targets.pull = outer * targets.slopes
        if done.pull is None:
            raise RuntimeError("this pass was made without gradients")
        gradient = torch.cat([done.pull, norms.new_zeros((samples, 1))], dim=1)
        gradient.mul_(((done.top - done.log_sum).exp() / samples)[:, None])
        direct = torch.cat([targets.unit * targets.slopes[:, None], targets.norm_slopes[:, None]], dim=1)
        return gradient.index_add_(0, targets.samples, direct * outer[:, None])

    def _penalty(self, norms: Tensor) -> tuple[Tensor | None, Tensor]:
        with torch.enable_grad():
            norms = norms.requires_grad_()
            penalty = self.margin.penalty(norms)
            if penalty is None:
                return None, norms
            return penalty.detach(), torch.autograd.grad(penalty, norms)[0]


def check_labels(labels: Indices, num_classes: int, world_size: int) -> None:
    """Raise UserError unless all ranks' labels [G] lie in [0, num_classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        rank, place = divmod(int(wrong[0]), len(labels) // world_size)
        raise UserError(
            f"rank {rank}: label {labels[wrong[0]]} at place {place} of the batch, but the head has "
            f"{num_classes} classes, labels 0 to {num_classes - 1}"
        )


class Share:
    """This rank's share of the gradient of all samples [G, D + 1], and what the step needs."""

    def __init__(self, gradient: Tensor, done: Pass) -> None:
        self.gradient = gradient
        self.done = done


class _Context(torch.autograd.function.FunctionCtx):
    sharded: ShardedLoss
    share: Share
    needs_input_grad: tuple[bool, ...]


class _Border(torch.autograd.Function):
    """Where autograd meets the head: local queries [B, D] and norms [B] in, the global mean loss out."""

    @staticmethod
    def forward(ctx: _Context, queries: Tensor, norms: Tensor, labels: Indices, sharded: ShardedLoss) -> Tensor:
        training = any(ctx.needs_input_grad)
        loss, ctx.share = sharded.forward(queries.detach(), norms.detach(), labels, training)
        ctx.sharded = sharded
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, *outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        sharded, share = ctx.sharded, ctx.share
        share.done.scale = outer[0].float()
        sharded.micro_batches.append(share.done)
        local = sharded.ranks.reduce_scatter(share.gradient) * outer[0]
        return local[:, :-1], local[:, -1], None, None
