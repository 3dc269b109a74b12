"""A row of numbers for every class, split over the ranks as a head's rows are."""

from typing import Any

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.head.exchange import HeadGroup, sharded_rows
from dist_train.head.head_snapshot import HeadSnapshot
from dist_train.head.rounding import StochasticRounder
from dist_train.head.sizes import class_range
from dist_train.head.storage import RowStore, TableSpec
from dist_train.runtime.ranks import Ranks

_NAME = "centers"


class ClassTable:
    """Rows [C, width] of float32 that start as zeros, of which each rank holds its own classes; a `Part`.

    Args:
        num_classes: C, over all ranks.
        width: numbers of a row.
        ranks: this process among the job's.

    Attributes:
        start: first class of this rank.
        stop: one past its last.
    """

    def __init__(self, num_classes: int, width: int, ranks: Ranks) -> None:
        self._num_classes = num_classes
        self._ranks = HeadGroup(ranks.group, ranks.rank, ranks.world_size)
        self.start, self.stop = class_range(num_classes, ranks.rank, ranks.world_size)
        self._store = RowStore(
            [TableSpec(_NAME, width, torch.float32)],
            self.stop - self.start,
            ranks.device,
            "device",
            None,
            (ranks.rank, ranks.world_size),
            StochasticRounder(0, ranks.rank, ranks.device),
        )

    def read(self, classes: Tensor) -> Tensor:
        """Copies [n, width] of the rows of `classes` [n], on the device and counted from this rank's first."""
        return self._store.tables[_NAME].index_select(0, classes)

    def write(self, classes: Tensor, rows: Tensor) -> None:
        """Put `rows` [n, width] into the places of `classes` [n], distinct, counted from this rank's first."""
        self._store.before_change(_NAME, classes)
        self._store.put(_NAME, classes, rows)

    def state_dict(self) -> dict[str, Any]:
        """See `Part`: the rows, a `DTensor` of all classes where there are several ranks."""
        return self._state(self._store.tables)

    def snapshot(self) -> HeadSnapshot:
        """See `Part`: copied row by row while training goes on to change them."""
        return HeadSnapshot(self._store, self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Part`; the rows may also be a whole tensor of all classes.

        Raises:
            UserError: rows of another number or width.
        """
        table = self._store.tables[_NAME]
        expected = [self._num_classes, table.shape[1]]
        if set(state) != {_NAME} or list(state[_NAME].shape) != expected:
            found = {name: list(value.shape) for name, value in state.items()}
            raise UserError(f"state of centers: {found}, expected {expected} of {_NAME}")
        rows = state[_NAME]
        if hasattr(rows, "to_local"):
            rows = rows.to_local()
        elif len(rows) != len(table):
            rows = rows[self.start : self.stop]
        if rows.data_ptr() != table.data_ptr():
            table.copy_(rows)

    def _state(self, tables: dict[str, Tensor]) -> dict[str, Any]:
        return {_NAME: sharded_rows(tables[_NAME], self._num_classes, self._ranks)}
