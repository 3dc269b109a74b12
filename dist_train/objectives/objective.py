"""What a term of the loss over embeddings must do to be trained with."""

from typing import Protocol

from torch import Tensor

from dist_train.data.batch import Batch


class Objective(Protocol):
    """A term of the loss over embeddings; `dist_train.head.Head` is the first.

    Embeddings come as a leaf, cut off from the backbone, and the term's gradient with respect to them goes through
    the backbone once for all terms. A term with weights of its own updates them in `step`; one that has
    `state_dict`, `load_state_dict` and `snapshot` too is a `Part` and has its place in checkpoints.

    Every method is called on all ranks at once and may communicate.
    """

    def prepare(self, batch: Batch) -> None:
        """Begin what can be done before the embeddings are there; called before the backbone's forward."""

    def __call__(self, embeddings: Tensor, batch: Batch, /) -> Tensor:
        """The term's value for this micro-batch.

        Args:
            embeddings: [B, D] float32, this rank's; the gradient that reaches them must be that of the global mean.
            batch: that they were made from.

        Returns:
            [] mean over the global micro-batch of W·B samples, equal on all ranks.

        Raises:
            NonFiniteError: on all ranks or none, for numbers that cannot be trained on.
        """

    def step(self, lr: float, *, measure: bool) -> None:
        """Update the term's own weights by the gradients since the last step.

        Args:
            lr: learning rate of the schedule.
            measure: `statistics` will be asked for after this step.
        """

    def zero_grad(self) -> None:
        """Forget everything since the last step: a refused step leaves no trace."""

    def statistics(self) -> dict[str, float]:
        """Figures of the last step, by name; may wait for the device."""

    def close(self) -> None:
        """End threads and files; safe to repeat."""


class Conditional:
    """Base of objectives whose `step` also takes `proceed`, [] bool on the device, and changes nothing if it is false.

    Only beside such terms a step is judged on the device. It is given where that is done, and None means true; no
    `zero_grad` follows a step that was refused so.
    """


class OfTwoViews:
    """Base of objectives that compare two views of each sample.

    They are called with embeddings [2·B, D], those of `Batch.other` behind those of `Batch.images`.
    """
