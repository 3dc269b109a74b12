"""The head's state at one moment, for checkpoints that are written while training goes on."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dist_train.head.storage import RowStore


class HeadSnapshot:
    """The head's state at one moment; training may change the head meanwhile.

    Attributes:
        state: as `Head.state_dict`, over copies in host memory, complete once `fill` has returned.
    """

    def __init__(self, store: RowStore, state_of: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
        self._store = store
        self._tables = store.snapshot()
        copies = {name: table.copy for name, table in self._tables.items()}
        self.state = {
            name: value if name in copies else value.detach().to("cpu", copy=True)
            for name, value in state_of(copies).items()
        }

    def fill(self) -> None:
        """Copy all rows that are not copied yet; call it once, in a thread beside training."""
        for table in self._tables.values():
            table.fill()

    def close(self) -> None:
        """Free the copies, filled or not."""
        self._store.end_snapshot()
        self._tables, self.state = {}, {}
