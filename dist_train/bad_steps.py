"""Steps without a finite loss or gradient: counted, and after too many in a row a diagnosis."""

import logging

import torch
from torch import Tensor, nn

from dist_train.data.loader import Batch
from dist_train.errors import NonFiniteError, WorkError
from dist_train.ranks import Ranks

logger = logging.getLogger(__name__)


class BadSteps:
    """Counts skipped steps; the same on every rank, since all ranks skip together.

    Args:
        limit: bad steps in a row after which the run stops.
        ranks: this process among the job's.

    Attributes:
        count: bad steps so far.
    """

    def __init__(self, limit: int, ranks: Ranks) -> None:
        self._limit, self._ranks = limit, ranks
        self.count = 0
        self._in_a_row = 0

    def good(self) -> None:
        """A step went through."""
        self._in_a_row = 0

    def bad(self, error: NonFiniteError, step: int, backbone: nn.Module, batch: Batch) -> None:
        """A step was skipped. A collective when it was one too many.

        Raises:
            WorkError: more than `limit` in a row, with rank, samples and layer where the numbers were lost.
        """
        self.count += 1
        self._in_a_row += 1
        if self._ranks.rank == 0:
            logger.warning("step %d skipped on all ranks (%d in a row): %s", step, self._in_a_row, error)
        if self._in_a_row < self._limit:
            return
        found = self._ranks.gather(diagnose(backbone, batch))
        lines = [f"rank {rank}: {text}" for rank, text in enumerate(found) if text]
        raise WorkError(
            f"{self._in_a_row} steps in a row without finite numbers (train.max_bad_steps); stopped at step "
            f"{step}, older checkpoints are intact. {error}. "
            + (
                "; ".join(lines)
                or "the forward pass is finite, so the gradient overflowed: lower optimizer.lr, or set "
                "optimizer.clip_norm"
            )
        )


@torch.no_grad()
def diagnose(backbone: nn.Module, batch: Batch) -> str | None:
    """Where a forward pass of `batch` loses finite numbers: input, weight or first layer, and which samples."""
    wrong = _bad_rows(batch.images)
    if wrong:
        return f"pictures at positions {batch.positions[wrong].tolist()} are not finite"
    for name, weight in backbone.named_parameters():
        if not weight.isfinite().all():
            return f"weight {name} is not finite"
    first: list[tuple[str, list[int]]] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows = _bad_rows(output)
            if rows and not first:
                first.append((name, rows))

        return module.register_forward_hook(hook)

    leaves = [(name, module) for name, module in backbone.named_modules() if not list(module.children())]
    hooks = [watch(name, module) for name, module in leaves]
    backbone(batch.images)
    for handle in hooks:
        handle.remove()
    if not first:
        return None
    name, rows = first[0]
    return f"layer {name} loses them first, for the samples at positions {batch.positions[rows].tolist()}"


def _bad_rows(tensor: Tensor) -> list[int]:
    """Rows of the batch that hold a NaN or infinity."""
    return (~tensor.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
