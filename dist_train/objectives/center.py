"""The center loss: embeddings drawn to a center of their identity."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.checkpoint.part import Snapshot
from dist_train.data.batch import Batch
from dist_train.errors import UserError
from dist_train.head import Head
from dist_train.head.exchange import HeadGroup
from dist_train.objectives.class_table import ClassTable
from dist_train.objectives.config import CenterConfig
from dist_train.objectives.gathering import Gathered
from dist_train.objectives.objective import Conditional
from dist_train.objectives.pairs import unit
from dist_train.objectives.setting import ObjectiveSetting
from dist_train.runtime.to_device import to_device


class CenterRows(Protocol):
    """Centers of which each rank has those of the classes `start` to `stop`."""

    start: int
    stop: int

    def read(self, classes: Tensor) -> Tensor:
        """Copies [n, D] of the centers of `classes` [n], on the device and counted from this rank's first."""


class Center(Conditional):
    """Wen et al. 2016, equations 2 to 4: half the mean squared distance of embeddings x to their classes' centers c.

        loss = 1/2 · mean over samples i of |x(i) - c(y(i))|²

    Both are unit vectors, so that the loss is 1 - cosine, except beside a head that does not normalise (plain softmax),
    where they are as they are, as in the paper. A class whose center is still zero draws nothing, and a sample without
    a label is not drawn; it counts in the mean with a value of 0. The mean is weighted where samples have weights.

    Each rank keeps the centers of its own classes; those of a batch reach the ranks that have its samples in one
    reduce-scatter [G, D], and no rank sees the table of another. The centers take no gradient: see `OwnCenters`.

    Args:
        rows: the centers.
        setting: what it is built in.
    """

    def __init__(self, rows: CenterRows, setting: ObjectiveSetting) -> None:
        head = setting.head
        self._rows, self._gathering, self._device = rows, setting.gathering, setting.ranks.device
        self._ranks = HeadGroup(setting.ranks.group, setting.ranks.rank, setting.ranks.world_size)
        self._unit = head is None or head.margin.normalised
        self._figures: dict[str, Tensor] = {}

    def prepare(self, batch: Batch) -> None:
        """See `Objective`."""
        self._gathering.prepare(batch)

    def __call__(self, embeddings: Tensor, batch: Batch, /) -> Tensor:
        """See `Objective`."""
        gathered = self._gathering(embeddings, batch)
        with torch.autocast(embeddings.device.type, enabled=False):
            mine = self._mine(gathered.host_labels)
            places, classes = (to_device(torch.from_numpy(each), self._device) for each in mine)
            centers = torch.zeros_like(gathered.embeddings)
            centers[places] = self._rows.read(classes)
            centers = self._ranks.reduce_scatter(centers)  # [G, D] of one summand each -> [B, D]
            seen = centers.any(dim=1)
            apart = self._shape(embeddings.float()) - self._shape(centers)
            values = torch.where(seen, apart.square().sum(dim=1) / 2, 0)
            share = (values * self._weights(gathered)).sum()
            total = self._ranks.all_reduce(share.detach().clone())
            self._note(mine[1], places, self._shape(gathered.embeddings.detach()))
        self._figures = {"loss": total}
        return share + (total - share.detach())  # the value of all ranks, the gradient of this rank's samples

    def _mine(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places in the batch of samples [n] whose center this rank has, and their classes from its first."""
        places = np.flatnonzero((labels >= self._rows.start) & (labels < self._rows.stop))
        return places, labels[places] - self._rows.start

    def _weights(self, gathered: Gathered) -> Tensor | float:
        """What each of this rank's samples [B] counts in the mean."""
        return 1 / len(gathered.host_labels) if gathered.weights is None else gathered.weights[gathered.own]

    def _shape(self, rows: Tensor) -> Tensor:
        return unit(rows) if self._unit else rows

    def _note(self, classes: NDArray[np.int64], places: Tensor, embeddings: Tensor) -> None:
        """See the embeddings [G, D] that centers may follow; of `classes` [n] are those at `places` [n]."""

    def step(self, lr: float, *, measure: bool, proceed: Tensor | None = None) -> None:
        """See `Objective`; the head's rows are moved by the head."""

    def zero_grad(self) -> None:
        """See `Objective`."""
        self._figures = {}

    def statistics(self) -> dict[str, float]:
        """See `Objective`: `loss` of the last micro-batch, without its weight."""
        return {name: float(value) for name, value in self._figures.items()}

    def close(self) -> None:
        """See `Objective`."""


class HeadCenters:
    """The rows of the head as centers; a row is read as it stands and takes no gradient from this term.

    Args:
        head: has one center a class.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self.start, self.stop = head.start, head.stop

    def read(self, classes: Tensor) -> Tensor:
        """See `CenterRows`."""
        rows = self._head.class_centers()
        return rows[classes.to(rows.device)].to(self._head.device, torch.float32)


class OwnCenters(Center):
    """The center loss with centers of its own, which follow the embeddings; a `Part`.

    After a step with n > 0 samples x of a class, its center moves by Wen et al. 2016, equation 4, whatever the learning
    rate and the term's weight:

        c <- c - alpha · sum of (c - x) / (1 + n)

    A class that was not seen before takes the mean of its samples. Rows that no sample asks for are not touched.

    Args:
        section: the term's keys.
        setting: what it is built in.
    """

    def __init__(self, section: CenterConfig, setting: ObjectiveSetting) -> None:
        classes, width = setting.loader.manifest.num_classes, setting.config.backbone.embedding_dim
        self._table = ClassTable(classes, width, setting.ranks)
        self._alpha = section.alpha
        # Of each micro-batch: classes [n] on the host, and embeddings [n, D].
        self._noted: list[tuple[NDArray[np.int64], Tensor]] = []
        super().__init__(self._table, setting)

    def _note(self, classes: NDArray[np.int64], places: Tensor, embeddings: Tensor) -> None:
        self._noted.append((classes, embeddings[places]))

    @torch.no_grad()
    def step(self, lr: float, *, measure: bool, proceed: Tensor | None = None) -> None:
        """Move the centers of the samples since the last step."""
        noted, self._noted = self._noted, []
        if not noted:
            return
        every, embeddings = np.concatenate([each for each, _ in noted]), torch.cat([each for _, each in noted])
        found = np.unique(every, return_inverse=True, return_counts=True)
        classes, which, counts = (to_device(torch.from_numpy(each), embeddings.device) for each in found)
        sums = torch.zeros(len(classes), embeddings.shape[1], device=which.device).index_add_(0, which, embeddings)
        count = counts[:, None].float()
        centers = self._table.read(classes)
        moved = centers - self._alpha * (count * centers - sums) / (1 + count)
        moved = torch.where(centers.any(dim=1, keepdim=True), moved, sums / count)
        self._table.write(classes, moved if proceed is None else torch.where(proceed, moved, centers))

    def zero_grad(self) -> None:
        """See `Objective`."""
        super().zero_grad()
        self._noted = []

    def state_dict(self) -> dict[str, Any]:
        """See `Part`."""
        return self._table.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Part`."""
        self._noted = []
        self._table.load_state_dict(state)

    def snapshot(self) -> Snapshot:
        """See `Part`."""
        return self._table.snapshot()


def build(section: CenterConfig, setting: ObjectiveSetting) -> Center:
    """The term that `objectives.center` asks for.

    Raises:
        UserError: the head's rows are asked for, and are not there or are several for a class.
    """
    if section.centers == "own":
        return setting.ranks.agree(lambda: OwnCenters(section, setting))
    if setting.head is None:
        raise UserError("objectives.center.centers: head, and head is null; write own, or give the recipe a head")
    k = setting.head.config.centers_per_class
    if k > 1:
        raise UserError(
            f"objectives.center.centers: head, and head.centers_per_class is {k}: it is not said which of them draws; "
            "write own, or head.centers_per_class: 1"
        )
    return Center(HeadCenters(setting.head), setting)
