"""The head: class centers split over ranks, their loss, and their optimizer step."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from dist_train.data.batch import Batch
from dist_train.errors import UserError
from dist_train.head.config import HeadConfig
from dist_train.head.exchange import HeadGroup, sharded_rows
from dist_train.head.head_snapshot import HeadSnapshot
from dist_train.head.labels import check_labels, labels_of
from dist_train.head.loss import ShardedLoss
from dist_train.head.margins.base import Classes
from dist_train.head.margins.build import build_margin
from dist_train.head.open_rows import open_rows
from dist_train.head.optimizers import build_row_optimizer
from dist_train.head.rounding import StochasticRounder
from dist_train.head.sampling import ClassSampler, Indices
from dist_train.head.shares import Shares, same_weights
from dist_train.head.sizes import class_range, row_width
from dist_train.head.softmax import BlockSoftmax
from dist_train.head.step import Exchanged
from dist_train.head.update import RowUpdate
from dist_train.runtime.verdict import Verdict


class Head:
    """A margin-softmax classifier whose classes are split over ranks; the first `Objective` of training.

    Usage, on every rank at once and with the same batch size B on each:

        head.prepare(labels)               # optional, before the forward of the backbone
        loss = head(embeddings, labels)    # mean over the global batch of G = W·B samples, equal on all ranks
        loss.backward()                    # gradient of that mean with respect to the local rows, not times W
        head.step(lr)                      # updates the chosen rows; several backwards may come before it

    Collectives of a training step, in order: one all-gather of labels [B] between hosts, in `prepare` where that is
    called; one all-gather of embeddings and norms [B, D + 1]; two all-reduces of the softmax, the largest logits [G]
    and sums [3, G] ([2, G] and [4, G] where samples have several labels); in the backward one reduce-scatter of
    [G, D + 1]. `curricularface` adds one all-reduce of [G] target cosines. Bad input is seen by all ranks in these
    exchanges and raised by all. The rows' gradient needs none: each rank owns its rows and sees all samples.

    Cosines, exponentials, sums and updates are float32 whatever the autocast outside. The loss is not
    differentiable twice. On a CUDA device a call waits once for the batch's norms unless its `verdict` is late, for
    labels only where they are not on the host, and with `head.filter_eps` once a block that is not dropped.

    Args:
        config: the `head` section.
        num_classes: C, over all ranks.
        embedding_dim: D.
        group: the ranks; None: the default group, or none where world_size is 1.
        control_group: the same ranks over gloo, through which labels go from host to host; None: they go through
            `group`, and wait for the device.
        rank: this rank in `group`.
        world_size: its size W.
        device: where embeddings are and the head computes.
        seed: initial rows and sampling follow from it; not negative.
        class_counts: [C] images per class, for margins that depend on it.
        later: sections that `change` will be given; averages of their margins are part of the state from the start.
        verdict: on the numbers of a step; None: what is not finite is raised at once.
        draws_rows: False where a checkpoint will be loaded, and rows that are drawn would only cost seconds.

    Attributes:
        start: first class of this rank.
        stop: one past its last; ceil(C/W) classes a rank, the last ranks fewer or none.

    Raises:
        UserError: a value that the configuration cannot check alone, or a store without room; on all ranks alike.
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
        control_group: dist.ProcessGroup | None = None,
        later: Sequence[HeadConfig] = (),
        verdict: Verdict | None = None,
        draws_rows: bool = True,
    ) -> None:
        if num_classes < 1 or embedding_dim < 1:
            raise UserError(f"a head needs classes and dimensions, got {num_classes} classes x {embedding_dim}")
        self.config = config
        self.num_classes = num_classes
        self.embedding_dim = embedding_dim
        self.device = device
        self.ranks = HeadGroup(group, rank, world_size)
        self._hosts = None if control_group is None else HeadGroup(control_group, rank, world_size)
        self.start, self.stop = class_range(num_classes, rank, world_size)
        self._classes = Classes(num_classes, self.start, self.stop, device, class_counts)
        self.margin = build_margin(config, self._classes)
        # By name, the moving averages of every margin that the head ever has, so that its state keeps its names.
        self._averages = {
            name: value for each in later for name, value in build_margin(each, self._classes).state().items()
        }
        self._averages |= self.margin.state()
        # A constant 1 appended to each embedding makes plain softmax's bias one more number of each row.
        self._width = row_width(config, embedding_dim)
        self._rounder = StochasticRounder(seed, rank, device)
        self._rounder.new_step(0)  # of rows that are written before training
        classes = range(self.start, self.stop)
        self._store = open_rows(config, self._width, classes, self.ranks, device, self._rounder, seed, draws_rows)
        if not self.margin.normalised:
            self._store.tables["centers"].view(len(classes), config.centers_per_class, self._width)[:, :, -1] = 0
        self._softmax = BlockSoftmax(config, self.margin, device)
        self._sampler = ClassSampler(self._store, config.sample_rate, seed, rank, self.start)
        self._loss = ShardedLoss(
            self.margin,
            self._softmax,
            self._store,
            self._sampler,
            self.ranks,
            num_classes,
            self.start,
            Verdict(device) if verdict is None else verdict,
        )
        self._update = RowUpdate(
            build_row_optimizer(config), self._store, config.weight_decay, self._width, self.margin.normalised
        )
        self._gradient_norm: Tensor | None = None
        self._still = False
        self._steps = torch.zeros((), dtype=torch.int64)
        self._before: dict[str, Tensor] | None = None  # what moves in a forward pass, as the present step found it
        self._prepared: tuple[Tensor, Tensor | None, Indices] | None = None  # own labels, weights, labels of all ranks

    def __call__(self, embeddings: Tensor, batch: Batch | Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean loss over the global batch, or its samples' losses weighted.

        Rows are chosen and gradients formed where `embeddings` require a gradient; otherwise the result is the loss
        over all classes, and the head keeps nothing of the call.

        Args:
            embeddings: [B, D] raw, of any float type, on the head's device.
            batch: its labels are meant, [B] int64 classes in [0, C), or [B, L] with -1 for none; or these alone.
            weights: [G] of all ranks' samples, equal on every rank, best on the host: the loss, and a margin's
                penalty, is the sum of weight times value in place of the mean. Where one is 0 the label may be -1, and
                the sample has no part in the margin's averages either.

        Returns:
            [] float32, equal on every rank.

        Raises:
            UserError: shapes, labels or weights that do not fit; nothing is updated.
            NonFiniteError: an embedding of any rank is not finite; nothing is updated. With a verdict that is late
                the loss is NaN instead, and `step` is to be told.
        """
        labels = labels_of(batch, self.config)
        rows = embeddings.shape[:1]
        if embeddings.shape[1:] != (self.embedding_dim,) or labels.shape[:1] != rows or labels.ndim > 2:
            raise UserError(
                f"rank {self.ranks.rank}: embeddings {list(embeddings.shape)} and labels {list(labels.shape)}, "
                f"expected [B, {self.embedding_dim}] and [B], or [B, L] for several labels"
            )
        every = self._all_labels(labels, weights)
        shares = None if weights is None else Shares.of(weights, self.device)
        self._remember()
        with torch.autocast(self.device.type, enabled=False):
            embeddings = embeddings.float()
            norms = embeddings.norm(dim=1)
            if self.margin.normalised:
                # A zero vector stays zero: cosine 0 with everything, and no gradient.
                inverse = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1.0), 0.0)
                queries = embeddings * (self.margin.scale * inverse)[:, None]
            else:
                queries = torch.cat([embeddings, torch.ones_like(embeddings[:, :1])], dim=1)
            return self._loss(queries, norms, every, shares)

    def prepare(self, batch: Batch | Tensor, weights: Tensor | None = None) -> None:
        """Exchange the labels of the batch of the next call and choose its rows, before its embeddings are computed.

        Rows of stores outside the device are fetched meanwhile. Optional; on all ranks or none, and with the batch
        that the next call has, unless `zero_grad` comes between.

        Args:
            batch: its labels are meant, or these alone, as the call has them. Those on a device are waited for.
            weights: as the next call has them.

        Raises:
            UserError: a label out of range; the same on all ranks.
        """
        self._prepared = None
        labels = labels_of(batch, self.config).to("cpu", torch.int64)
        every = self._all_labels(labels, weights)
        self._prepared = (labels, weights, every)
        self._remember()
        self._sampler.choose_ahead(every)

    def _all_labels(self, labels: Tensor, weights: Tensor | None) -> Indices:
        """Labels of all ranks, on the host, checked: those that `prepare` has exchanged, or exchanged now."""
        labels = labels.to("cpu", torch.int64)
        prepared, self._prepared = self._prepared, None
        if prepared is not None and torch.equal(labels, prepared[0]) and same_weights(weights, prepared[1]):
            return prepared[2]
        hosts = self._hosts if self.ranks.world_size > 1 else self.ranks
        if hosts is not None:
            found = hosts.gather(labels).numpy()
        else:
            found = self.ranks.gather(labels.to(self.device)).cpu().numpy()
        check_labels(found, self.num_classes, self.ranks.world_size, weights)
        return found

    @property
    def pending(self) -> Exchanged | None:
        """The last forward pass in training, whose backward pass is to come: another term may join it."""
        return self._loss.pending

    def hold(self, still: bool) -> None:
        """Let rows, their optimizer's state and the margin's averages stand still from now on, or move again.

        The loss and its gradient with respect to embeddings are the same either way.
        """
        self._still = still
        self._loss.margin_moves = not still

    def change(self, config: HeadConfig) -> None:
        """Take another margin, scale, sampling rate or filter between two steps; the averages of the margin stay.

        Args:
            config: differs in what changes nothing about stored rows and their optimizer; a margin that the head was
                not built for begins with averages of its own.
        """
        if config == self.config:
            return
        self._prepared = None
        self._sampler.forget()
        self.config = config
        self.margin = build_margin(config, self._classes)
        for name, value in self.margin.state().items():
            value.copy_(self._averages.get(name, value))
        self._averages |= self.margin.state()
        self._softmax = BlockSoftmax(config, self.margin, self.device)
        self._sampler.rate = config.sample_rate
        self._loss.margin, self._loss.softmax = self.margin, self._softmax

    def step(self, lr: float, *, measure: bool = False, proceed: Tensor | None = None) -> None:
        """Update the rows chosen since the last step by the sum of their gradients, which are dropped if they `hold`.

        Args:
            lr: learning rate of the schedule; `head.lr_scale` multiplies it.
            measure: give `statistics` the norm of the rows' gradient; one all-reduce, on all ranks or none.
            proceed: [] bool on the device: where it is false, rows, their optimizer's state and the margin's averages
                are as after the last step, though choices and steps have been counted. None: true.
        """
        before, self._before = self._before, None
        if proceed is not None and before is not None:
            for name, value in self.margin.state().items():
                value.copy_(torch.where(proceed, value, before[name]))
        if self._still:
            self._drop_gradients()
            return
        micro_batches, self._loss.micro_batches = self._loss.micro_batches, []
        self._steps += 1
        if not micro_batches:
            return
        self._rounder.new_step(int(self._steps))
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            squares = self._update.apply(micro_batches, lr * self.config.lr_scale, measure, proceed)
        if squares is not None:
            self._gradient_norm = self.ranks.all_reduce(squares).sqrt_()
        for waiting in micro_batches:
            self._softmax.recycle(waiting)

    def zero_grad(self) -> None:
        """Forget the gradients since the last step, as after an overflow in mixed precision.

        The margin's moving averages and the count of choices return to their values after that step.
        """
        self._sampler.forget()
        self._prepared = None
        for name, value in self._moving().items():
            if self._before is not None:
                value.copy_(self._before[name])
        self._before = None
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for waiting in self._loss.micro_batches:
            waiting.rows.lease.release()
            self._softmax.recycle(waiting)
        self._loss.micro_batches = []
        if self._loss.pending is not None:  # another term refused the micro-batch
            self._loss.pending.rows.lease.release()
            self._loss.pending = None
        self._gradient_norm = None

    def _moving(self) -> dict[str, Tensor]:
        return {"choices": self._sampler.step, **self.margin.state()}

    def _remember(self) -> None:
        if self._before is None:
            self._before = {name: value.clone() for name, value in self._moving().items()}

    def statistics(self) -> dict[str, float]:
        """Figures of the last call; waits for the device.

        `target_cosine_mean` and `target_cosine_std` of the global batch (inner products for plain softmax);
        `classes_sampled` and `classes_updated`, this rank's share of its classes in the softmax and left by the filter.
        `gradient_norm` of the rows of all ranks, weight decay included, in the last step that measured it.
        """
        observed = self._loss.observed
        if observed is None:
            return {}
        figures = {"classes_sampled": observed.chosen, "classes_updated": observed.updated}
        if len(observed.cosines):
            figures["target_cosine_mean"] = float(observed.cosines.mean())
            figures["target_cosine_std"] = float(observed.cosines.std(correction=0))
        if self._gradient_norm is not None:
            figures["gradient_norm"] = float(self._gradient_norm)
        return figures

    @property
    def sample_losses(self) -> Tensor:
        """Losses [G] of all ranks' samples in the last call, without a penalty; 0 where a sample does not count."""
        if self._loss.observed is None:
            raise ValueError("the head has seen no batch; call it first")
        return self._loss.observed.losses

    def class_centers(self) -> Tensor:
        """This rank's centers as stored: [stop - start, D], or [stop - start, K, D] for K > 1; a live view."""
        self._store.flush()
        k = self.config.centers_per_class
        centers = self._store.tables["centers"].view(-1, k, self._width)[:, :, : self.embedding_dim]
        return centers[:, 0] if k == 1 else centers

    def tables(self) -> dict[str, Tensor]:
        """This rank's rows as stored, [stop - start, width]: `centers`, and the optimizer's state by name; live."""
        self._store.flush()
        return dict(self._store.tables)

    def write_rows(self, table: str, classes: Tensor, values: Tensor) -> None:
        """Put rows that come from elsewhere into a table, before training.

        Args:
            table: one of `tables`.
            classes: [n] int64, distinct, counted from this rank's first.
            values: [n, width] of any float type; into bfloat16 others are rounded as a step rounds them, and scratch
                afterwards.
        """
        self._store.flush()
        self._store.put(table, classes, values)

    def state_dict(self) -> dict[str, Any]:
        """Rows and optimizer state as `DTensor`s of [C, width] over `Shard(0)`, views of the live tables; counters.

        With one rank the tables are plain tensors. `torch.distributed.checkpoint` loads into the tables in place, from
        any number of ranks; call `load_state_dict` with the result all the same.
        """
        self._store.flush()
        return self._state(self._store.tables)

    def snapshot(self) -> HeadSnapshot:
        """The state as it stands now, copied while training goes on; close it before you take the next."""
        return HeadSnapshot(self._store, self._state)

    def _state(self, tables: dict[str, Tensor]) -> dict[str, Any]:
        state: dict[str, Any] = {"choices": self._sampler.step, "steps": self._steps}
        state |= {f"margin.{name}": value for name, value in self._averages.items()}
        return state | {name: sharded_rows(table, self.num_classes, self.ranks) for name, table in tables.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` gave; tables may also be whole tensors of all C classes.

        Raises:
            UserError: a name is missing or unknown, or a shape differs.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise UserError(
                f"head state: missing {sorted(set(own) - set(state))}, unknown {sorted(set(state) - set(own))}; "
                "it was saved with another head.optimizer or head.margin"
            )
        self.zero_grad()
        for name, target in own.items():
            source = state[name]
            if list(source.shape) != list(target.shape):
                raise UserError(f"head state {name!r}: shape {list(source.shape)}, expected {list(target.shape)}")
            if isinstance(target, DTensor):
                source = source.to_local() if isinstance(source, DTensor) else source[self.start : self.stop]
                target = target.to_local()
            if source.data_ptr() != target.data_ptr():
                target.copy_(source)

    def close(self) -> None:
        """Finish write-backs; the head is not used afterwards."""
        self.zero_grad()
        self._store.close()
