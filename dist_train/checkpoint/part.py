"""What a checkpoint holds, by name: parts, and what they are at one moment."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils._pytree import tree_map_only


class Snapshot(Protocol):
    """A part's state at one moment, in host memory, while training goes on to change the part.

    Attributes:
        state: nested dicts of tensors or `DTensor`s, complete once `fill` has returned.
    """

    state: dict[str, Any]

    def fill(self) -> None:
        """Complete the copy; called in a thread of its own."""

    def close(self) -> None:
        """Free the copy; safe to repeat."""


@runtime_checkable
class Part(Protocol):
    """Something that a checkpoint holds under a name. Every method is a collective."""

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts of tensors, equal on all ranks, or of `DTensor`s; a load changes them in place."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over a state in the form of `state_dict`."""

    def snapshot(self) -> Snapshot:
        """The state as it stands now; the one before must be closed."""


class CopiedPart:
    """A part that is small enough to be copied whole before training goes on, e.g. a backbone.

    Args:
        state_dict: gives its state; a collective.
        load_state_dict: takes one over; a collective.
        before: called before a snapshot, e.g. to make ranks equal; a collective.
    """

    def __init__(
        self,
        state_dict: Callable[[], dict[str, Any]],
        load_state_dict: Callable[[dict[str, Any]], object],
        before: Callable[[], None] | None = None,
    ) -> None:
        self._state_dict, self._load, self._before = state_dict, load_state_dict, before

    def state_dict(self) -> dict[str, Any]:
        """See `Part`."""
        return self._state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Part`."""
        self._load(state)

    def snapshot(self) -> "HostCopy":
        """See `Part`."""
        if self._before is not None:
            self._before()
        return HostCopy(self._state_dict())


class HostCopy:
    """A snapshot that is complete at once.

    Attributes:
        state: copies of the tensors on the host.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.state: dict[str, Any] = tree_map_only(Tensor, lambda one: one.detach().to("cpu", copy=True), state)

    def fill(self) -> None:
        """See `Snapshot`; nothing is left to do."""

    def close(self) -> None:
        """See `Snapshot`."""
        self.state = {}
