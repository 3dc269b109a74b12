"""A learned linear map from a student's embeddings to a teacher's longer or shorter ones."""

from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.9


class Projection:
    """A matrix [Dt, D] with its SGD, equal on all ranks as long as its gradients are.

    It starts with orthonormal rows or columns, drawn from a seed of its own, so that no other random number is moved.

    Args:
        student_dim: D.
        teacher_dim: Dt.
        seed: of the run.
        device: where it computes.

    Attributes:
        matrix: [Dt, D] float32.
    """

    def __init__(self, student_dim: int, teacher_dim: int, seed: int, device: torch.device) -> None:
        start = torch.empty(teacher_dim, student_dim)
        nn.init.orthogonal_(start, generator=torch.Generator().manual_seed(seed))
        self.matrix = nn.Parameter(start.to(device))
        self._momentum = torch.zeros_like(self.matrix.data)

    def __call__(self, embeddings: Tensor) -> Tensor:
        """[G, D] -> [G, Dt]."""
        return embeddings @ self.matrix.T

    @torch.no_grad()
    def step(self, lr: float, proceed: Tensor | None = None) -> None:
        """SGD with momentum 0.9 and no decay: the cosine does not see the matrix's length.

        Nothing changes where `proceed`, [] bool on the device, is false.
        """
        if self.matrix.grad is None:
            return
        before = None if proceed is None else (self.matrix.clone(), self._momentum.clone())
        self._momentum.mul_(MOMENTUM).add_(self.matrix.grad)
        self.matrix.add_(self._momentum, alpha=-lr)
        self.matrix.grad = None
        if proceed is not None and before is not None:
            for live, kept in zip((self.matrix, self._momentum), before, strict=True):
                live.copy_(torch.where(proceed, live, kept))

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.matrix.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The live matrix and momentum."""
        return {"projection": self.matrix.data, "momentum": self._momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])
