"""The head: class centers split over ranks, their loss, and their optimizer step."""

import itertools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from dist_train.errors import UserError, WorkError
from dist_train.head.config import HeadConfig
from dist_train.head.margins import build_margin
from dist_train.head.optimizers import build_optimizer
from dist_train.head.ranks import Ranks, class_range, first_failure
from dist_train.head.rounding import StochasticRounder
from dist_train.head.sampling import Indices, choose_classes
from dist_train.head.softmax import BlockSoftmax, Pending, Targets, spans
from dist_train.head.storage import Lease, RowStore, TableSpec, fill_normal
from dist_train.head.workspace import Workspace


class Head:
    """A margin-softmax classifier whose classes are split over ranks.

    Usage, on every rank at once and with the same batch size B on each:

        loss = head(embeddings, labels)    # mean over the global batch of W·B samples, equal on all ranks
        loss.backward()                    # gradient of that mean with respect to the local rows, not times W
        head.step(lr)                      # updates the chosen rows; several backwards may come before it

    Collectives of a training step, in order: one all-gather of embeddings, norms and labels [B, D + 3]; one
    all-gather of softmax statistics [G, 4]; in the backward one reduce-scatter of [G, D + 1]. `curricularface`
    adds one all-reduce of [G] target cosines. Bad input is seen by all ranks in the first exchange and raised by all.

    Cosines, exponentials, sums and updates are float32 whatever the autocast outside. The loss is not
    differentiable twice. On a CUDA device each call waits once for the batch's labels and norms.

    Args:
        config: the `head` section.
        num_classes: C, over all ranks.
        embedding_dim: D.
        group: the ranks; None: the default group, or none where world_size is 1.
        rank: this rank in `group`.
        world_size: its size W.
        device: where embeddings are and the head computes.
        seed: initial rows and sampling follow from it.
        class_counts: [C] images per class, for margins that depend on it.

    Attributes:
        start: first class of this rank.
        stop: one past its last; ceil(C/W) classes a rank, the last ranks fewer or none.

    Raises:
        UserError: a value that the configuration cannot check alone, a store without room; on all ranks alike.
    """

    def __init__(
        self,
        config: HeadConfig,
        num_classes: int,
        embedding_dim: int,
        *,
        group: dist.ProcessGroup | None,
        rank: int,
        world_size: int,
        device: torch.device,
        seed: int,
        class_counts: Tensor | None = None,
    ) -> None:
        if num_classes < 1 or embedding_dim < 1:
            raise UserError(f"a head needs classes and dimensions, got {num_classes} classes x {embedding_dim}")
        self.config = config
        self.num_classes = num_classes
        self.embedding_dim = embedding_dim
        self.device = device
        self.seed = seed
        self.ranks = Ranks(group, rank, world_size)
        self.start, self.stop = class_range(num_classes, rank, world_size)
        self.margin = build_margin(config)
        self._optimizer = build_optimizer(config)
        # A constant 1 appended to each embedding makes the bias one more number of each row.
        self._width = embedding_dim if self.margin.normalised else embedding_dim + 1
        self._rounder = StochasticRounder(seed, rank, device)
        self._store = self._open_store()
        self._softmax = BlockSoftmax(
            self.margin,
            config.centers_per_class,
            config.interclass_threshold,
            config.block_rows,
            config.logits_budget_mb,
            device,
        )
        self._workspace = Workspace(device)
        self._pending: list[Pending] = []
        self._draws = torch.zeros((), dtype=torch.int64)  # forwards so far: the sampling's "step"
        self._steps = torch.zeros((), dtype=torch.int64)
        self._observed: dict[str, Any] = {}

    def _open_store(self) -> RowStore:
        config, ranks = self.config, self.ranks
        dtype = getattr(torch, config.dtype)
        centers = TableSpec("centers", config.centers_per_class * self._width, dtype)
        specs = [centers, *self._optimizer.tables(config.centers_per_class, self._width, dtype)]
        failure: str | None = None
        try:
            store = RowStore(
                specs,
                self.stop - self.start,
                self.device,
                config.storage,
                config.storage_dir,
                (ranks.rank, ranks.world_size),
                self._rounder,
            )
        except UserError as error:
            failure = str(error)
        # Every rank learns of a failure here, before training: none waits in a collective for one that gave up.
        message = first_failure(ranks.gather_messages(failure))
        if message is not None:
            raise UserError(message)
        store.fill()
        fill_normal(store.tables["centers"], self.start, self.seed, config.init_std)
        if not self.margin.normalised:
            store.tables["centers"].view(-1, config.centers_per_class, self._width)[:, :, -1] = 0
        return store

    def __call__(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the global batch.

        Args:
            embeddings: [B, D] raw, of any float type, on the head's device.
            labels: [B] int64 classes in [0, C).

        Returns:
            [] float32, equal on every rank.

        Raises:
            UserError: shapes or labels that do not fit; nothing is updated.
            WorkError: an embedding of any rank is not finite; nothing is updated.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim or labels.shape != embeddings.shape[:1]:
            raise UserError(
                f"rank {self.ranks.rank}: embeddings {list(embeddings.shape)} and labels {list(labels.shape)}, "
                f"expected [B, {self.embedding_dim}] and [B]"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            norms = embeddings.norm(dim=1)
            if self.margin.normalised:
                # A zero vector stays zero: cosine 0 with everything, and no gradient.
                inverse = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1.0), 0.0)
                queries = embeddings * (self.margin.scale * inverse)[:, None]
            else:
                queries = torch.cat([embeddings, torch.ones_like(embeddings[:, :1])], dim=1)
            loss: Tensor = _Border.apply(queries, norms, labels, self)
            penalty = self.margin.penalty(norms)
        return loss if penalty is None else loss + penalty

    def step(self, lr: float, *, grad_scale: float = 1.0) -> None:
        """Update the rows chosen since the last step by the sum of their gradients.

        Args:
            lr: learning rate of the schedule; `head.lr_scale` multiplies it.
            grad_scale: what the loss was multiplied with before `backward` (a gradient scaler's factor).
        """
        pending, self._pending = self._pending, []
        self._steps += 1
        if not pending:
            return
        self._rounder.new_step(int(self._steps))
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for one in pending:
                one.scale = one.scale / grad_scale
            if len(pending) == 1:
                self._step_one(pending[0], lr * self.config.lr_scale)
            else:
                self._step_union(pending, lr * self.config.lr_scale)
        for one in pending:
            self._softmax.recycle(one)

    def zero_grad(self) -> None:
        """Forget the gradients since the last step, as after an overflow in mixed precision."""
        for one in self._pending:
            one.lease.release()
            self._softmax.recycle(one)
        self._pending = []

    def statistics(self) -> dict[str, float]:
        """Of the last call: mean and deviation of the global batch's target cosines, share of classes chosen."""
        if not self._observed:
            return {}
        cosines = self._observed["cosines"]
        return {
            "target_cosine_mean": float(cosines.mean()),
            "target_cosine_std": float(cosines.std(correction=0)),
            "classes_sampled": self._observed["sampled"],
        }

    def class_centers(self) -> Tensor:
        """This rank's centers as stored: [stop - start, D], or [stop - start, K, D] for K > 1; a live view."""
        self._store.flush()
        centers = self._store.tables["centers"].view(-1, self.config.centers_per_class, self._width)
        centers = centers[:, :, : self.embedding_dim]
        return centers.squeeze(1) if self.config.centers_per_class == 1 else centers

    def state_dict(self) -> dict[str, Any]:
        """Rows and optimizer state as `DTensor`s of [C, width] over `Shard(0)`, views of the live tables; counters.

        With one rank and no group the tables are plain tensors. `torch.distributed.checkpoint` loads in place.
        """
        self._store.flush()
        state: dict[str, Any] = {"draws": self._draws, "steps": self._steps}
        state |= {f"margin.{name}": value for name, value in self.margin.state().items()}
        for name, table in self._store.tables.items():
            state[name] = table
            if self.ranks.world_size > 1:
                assert self.ranks.group is not None
                mesh = DeviceMesh.from_group(self.ranks.group, table.device.type)
                shape = torch.Size((self.num_classes, table.shape[1]))
                state[name] = DTensor.from_local(
                    table, mesh, [Shard(0)], run_check=False, shape=shape, stride=(shape[1], 1)
                )
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; tables may also be whole tensors of all C classes.

        Raises:
            UserError: a name is missing or unknown, or a shape differs.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise UserError(
                f"head state: missing {sorted(set(own) - set(state))}, unknown {sorted(set(state) - set(own))}; "
                "was it saved with another head.optimizer or head.margin?"
            )
        self.zero_grad()
        for name, target in own.items():
            if list(state[name].shape) not in ([list(target.shape)]):
                raise UserError(f"head state {name!r}: shape {list(state[name].shape)}, expected {list(target.shape)}")
            source = state[name].to_local() if isinstance(state[name], DTensor) else state[name]
            local = target.to_local() if isinstance(target, DTensor) else target
            if isinstance(target, DTensor) and not isinstance(state[name], DTensor):
                source = source[self.start : self.stop]
            if source.data_ptr() != local.data_ptr():
                local.copy_(source)

    def close(self) -> None:
        """Finish write-backs; the head is not used afterwards."""
        self.zero_grad()
        self._store.close()

    def _forward(self, queries: Tensor, norms: Tensor, labels: Tensor, training: bool) -> tuple[Tensor, "_Partial"]:
        queries, norms, host_labels = self._exchange(queries, norms, labels)
        mine = np.flatnonzero((host_labels >= self.start) & (host_labels < self.stop))
        local = host_labels[mine] - self.start
        classes = self._choose(np.unique(local), training)
        lease = self._store.lease(None if classes is None else torch.from_numpy(classes))
        places = local if classes is None else np.searchsorted(classes, local)
        order = np.argsort(places, kind="stable")
        targets = Targets(
            torch.from_numpy(mine[order]).to(self.device),
            torch.from_numpy(places[order]).to(self.device),
            places[order],
        )
        self._softmax.find_targets(lease, targets, queries)
        if training:
            self.margin.observe(norms, self._all_target_cosines(targets, len(queries)))
        self._softmax.form_target_logits(targets, norms, torch.from_numpy(local[order]).to(self.device))
        kept = sum(one.weights.nbytes for one in self._pending if one.weights is not None)
        part = self._softmax.forward(lease, queries, targets, kept, training)

        statistics = torch.stack([part.top, part.total, torch.zeros_like(part.top), torch.zeros_like(part.top)])
        statistics[2, targets.samples] = targets.logits
        statistics[3, targets.samples] = targets.cosines
        every = self.ranks.gather(statistics.unsqueeze(0))  # [W, 4, G]
        top = every[:, 0].amax(dim=0)
        log_sum = top + (every[:, 1] * (every[:, 0] - top).exp()).sum(dim=0).log()
        loss = (log_sum - every[:, 2].sum(dim=0)).mean()
        share = lease.count / max(1, self.stop - self.start)
        self._observed = {"cosines": every[:, 3].sum(dim=0), "sampled": share}
        if not training:
            lease.release()
            return loss, _Partial(queries, None)

        pull = ((targets.logits - log_sum[targets.samples]).exp() - 1) / len(queries)
        assert part.pull is not None
        partial = torch.cat([part.pull, norms.new_zeros((len(norms), 1))], dim=1)  # [G, D + 1]
        partial[:, :-1].mul_(((part.top - log_sum).exp() / len(queries))[:, None])
        direct = torch.cat([targets.unit * targets.slopes[:, None], targets.norm_slopes[:, None]], dim=1)
        partial.index_add_(0, targets.samples, direct * pull[:, None])
        pending = Pending(
            lease,
            classes,
            queries,
            targets,
            part.block,
            part.weights,
            part.shifts,
            log_sum,
            part.inverse,
            pull * targets.slopes,
            scale=log_sum.new_zeros(()),
        )
        return loss, _Partial(partial, pending)

    def _exchange(self, queries: Tensor, norms: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Indices]:
        """All ranks' queries [G, D'], norms [G], and labels [G] on the host, checked."""
        # One buffer of 32-bit words: the labels' 64 bits travel beside the floats without rounding.
        words = [t.view(torch.int32) for t in (queries, norms[:, None], labels.to(torch.int64)[:, None].contiguous())]
        every = self.ranks.gather(torch.cat(words, dim=1))
        queries = every[:, :-3].contiguous().view(torch.float32)
        norms = every[:, -3].contiguous().view(torch.float32)
        # The one wait of a step on a CUDA device: norms are finite exactly if their embeddings are.
        checked = torch.cat([every[:, -2:].contiguous().view(torch.int64)[:, 0], norms.isfinite().long()]).cpu().numpy()
        host_labels, finite = np.split(checked, 2)
        per_rank = len(host_labels) // self.ranks.world_size
        wrong = np.flatnonzero((host_labels < 0) | (host_labels >= self.num_classes))
        if len(wrong):
            raise UserError(
                f"rank {wrong[0] // per_rank}: label {host_labels[wrong[0]]} at place {wrong[0] % per_rank} of the "
                f"batch, but the head has {self.num_classes} classes, labels 0 to {self.num_classes - 1}"
            )
        lost = np.flatnonzero(finite == 0)
        if len(lost):
            raise WorkError(
                f"rank {lost[0] // per_rank}: embedding {lost[0] % per_rank} of the batch is not finite "
                f"({len(lost)} of {len(finite)} in all); the step is refused, no center was changed"
            )
        return queries, norms, host_labels

    def _choose(self, positives: Indices, training: bool) -> Indices | None:
        if not training:
            return None
        key = (self.seed, int(self._draws), self.ranks.rank)
        self._draws += 1
        return choose_classes(self.stop - self.start, self.config.sample_rate, positives, key)

    def _all_target_cosines(self, targets: Targets, samples: int) -> Tensor | None:
        if not self.margin.needs_target_cosines:
            return None
        cosines = targets.cosines.new_zeros(samples)
        cosines[targets.samples] = targets.cosines
        return self.ranks.all_reduce(cosines)

    def _step_one(self, pending: Pending, lr: float) -> None:
        lease, width = pending.lease, self._width
        for start, stop in spans(lease.count, pending.block):
            stored = lease.read("centers", start, stop)
            rows = stored.view(-1, width)
            gradient = self._workspace.get("gradient", tuple(rows.shape))
            self._softmax.row_gradient(pending, rows, start, stop, gradient)
            self._update(lease, start, stop, stored, gradient, lr)
        lease.commit()

    def _step_union(self, pending: list[Pending], lr: float) -> None:
        everyone = any(one.classes is None for one in pending)
        union = None if everyone else np.unique(np.concatenate([one.classes for one in pending]))  # type: ignore[misc]
        for one in pending:
            one.lease.release()
        lease = self._store.lease(None if union is None else torch.from_numpy(union))
        k, width = self.config.centers_per_class, self._width
        for start, stop in spans(lease.count, pending[0].block):
            stored = lease.read("centers", start, stop)
            rows = stored.view(-1, width)
            gradient = self._workspace.get("gradient", tuple(rows.shape)).zero_()
            for one in pending:
                # Where this block's classes lie among those of the micro-batch: a range, since both are sorted.
                low, high = start, stop
                places: Tensor | slice = slice(None)
                if one.classes is not None:
                    ids = np.arange(start, stop) if union is None else union[start:stop]
                    low, high = (int(i) for i in np.searchsorted(one.classes, [ids[0], ids[-1] + 1]))
                for first, last in spans_within(low, high, one.block):
                    if one.classes is not None:
                        places = torch.from_numpy(np.searchsorted(ids, one.classes[first:last])).to(self.device)
                    else:
                        places = torch.arange(first - start, last - start, device=self.device)
                    some = rows.view(-1, k * width)[places].view(-1, width)
                    part = self._workspace.get("part", tuple(some.shape))
                    self._softmax.row_gradient(one, some, first, last, part)
                    gradient.view(-1, k * width).index_add_(0, places, part.view(-1, k * width))
            self._update(lease, start, stop, stored, gradient, lr)
        lease.commit()

    def _update(self, lease: Lease, start: int, stop: int, stored: Tensor, gradient: Tensor, lr: float) -> None:
        """Project the gradient, update and write the block `stored` of classes [start, stop)."""
        rows = stored.view(-1, self._width)
        decay = self.config.weight_decay if self._optimizer.decay_in_gradient else 0.0
        if self.margin.normalised:
            # The cosine does not depend on a row's length: subtract the gradient's part along the row.
            along = torch.mul(gradient, rows, out=self._workspace.get("along", tuple(rows.shape))).sum(dim=1)
            squares = torch.linalg.vector_norm(rows, dim=1).square_()
            along.div_(squares.clamp_min_(torch.finfo(squares.dtype).tiny)).neg_().add_(decay)
            gradient.addcmul_(rows, along[:, None])
        elif decay:
            gradient.add_(rows, alpha=decay)
        self._optimizer.update(lease, start, stop, rows, gradient, lr)
        lease.write("centers", start, stop, stored)


def spans_within(low: int, high: int, block: int) -> list[tuple[int, int]]:
    """[low, high) cut at multiples of `block`."""
    cuts = [low, *range(low // block * block + block, high, block), high]
    return list(itertools.pairwise(cuts)) if high > low else []


class _Partial:
    """This rank's share of the gradient of all samples' queries and norms [G, D + 1], and what the step needs."""

    def __init__(self, gradient: Tensor, pending: Pending | None) -> None:
        self.gradient = gradient
        self.pending = pending


class _Context(torch.autograd.function.FunctionCtx):
    head: Head
    partial: _Partial
    needs_input_grad: tuple[bool, ...]


class _Border(torch.autograd.Function):
    """Where autograd meets the head: local queries [B, D] and norms [B] in, the global mean loss out."""

    @staticmethod
    def forward(ctx: "_Context", queries: Tensor, norms: Tensor, labels: Tensor, head: Head) -> Tensor:
        training = any(ctx.needs_input_grad)
        with torch.no_grad():
            loss, ctx.partial = head._forward(queries.detach(), norms.detach(), labels, training)
        ctx.head = head
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: "_Context", *outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        head, partial = ctx.head, ctx.partial
        assert partial.pending is not None  # only a call that needed gradients gets here
        partial.pending.scale = outer[0].float()
        head._pending.append(partial.pending)
        local = head.ranks.reduce_scatter(partial.gradient) * outer[0]
        return local[:, :-1], local[:, -1], None, None
