"""What one step of a phase of training is; the loop knows nothing else."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from dist_train.checkpoint.part import Part
from dist_train.data.batch import Batch


class Program(Protocol):
    """A phase of training, e.g. `Recognition`: what it learns, and how a batch changes that.

    A step is `enter`, `begin`, `micro_step` for each micro-batch, `update`; or `discard` instead of what is left of it,
    once one of them has raised `NonFiniteError`. A program whose verdict is late raises none: its `update` changes
    nothing where the verdict refuses, and no `discard` follows. Methods are called on all ranks at once, and may
    communicate.
    """

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint of this phase holds, by name; with that, step and position, a run goes on as before."""

    def enter(self, step: int) -> None:
        """Step `step` of 0, 1, ... comes next: what changes at given steps changes now.

        The loop seeds the step's random numbers afterwards, so what is drawn here, e.g. to build a network anew, is
        free. A checkpoint of step N is written before `enter(N)` and loaded into a program that was built for step N;
        so the names and shapes of `parts` are the same for all steps.
        """

    def begin(self) -> None:
        """A step begins: networks go to training mode, what `discard` shall bring back is kept."""

    def micro_step(self, batch: Batch, *, last: bool) -> Tensor:
        """Forward and backward.

        Args:
            batch: one of the step's micro-batches.
            last: the step has no further one.

        Returns:
            [] its share of the step's loss, detached, equal on all ranks.

        Raises:
            NonFiniteError: on all ranks or none.
        """

    def update(self, lr: float, *, measure: bool) -> Tensor:
        """Change the weights by the gradients of the step.

        Args:
            lr: learning rate of the schedule.
            measure: `figures` will be asked for after this step.

        Returns:
            [] norm of the gradient.

        Raises:
            NonFiniteError: the gradient is not finite, on all ranks; no weight was changed.
        """

    def discard(self) -> None:
        """Give the step up without a trace: weights, buffers and statistics are as `begin` found them."""

    def evaluated(self) -> nn.Module:
        """The network that is evaluated and exported, in evaluation mode, whole on every rank."""

    def figures(self) -> dict[str, float]:
        """Figures of the last step for the trackers, by name; may wait for the device."""

    def diagnose(self, micro_batches: list[Batch]) -> str | None:
        """Where a step that was discarded loses finite numbers on this rank; None where it does not.

        Args:
            micro_batches: this rank's share of the step. The run is over afterwards.
        """

    def close(self) -> None:
        """End threads and files; safe to repeat."""
