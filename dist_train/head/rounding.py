"""float32 -> bfloat16 by stochastic rounding: the expected value of what is stored is what was computed.

Rounding to nearest loses every update smaller than half the spacing of bfloat16 (2**-8 of the value), which late in
training is nearly all of them; see Zamirai et al. 2020, "Revisiting BFloat16 Training".
"""

import torch
from torch import Tensor

from dist_train.head.workspace import Workspace

_NOISE_ROWS = 512


class StochasticRounder:
    """Adds 16 random bits below the bfloat16 part of a float32 and cuts them off.

    A pool of random bits is drawn once a step; every row of every block meets it under its own random mask (XOR
    with a uniform value is uniform), so each rounding is unbiased while few random numbers are drawn.

    Attributes:
        key: what the noise of this step follows from.
    """

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self.key = 0
        self._generator = torch.Generator(device)
        self._key = (seed * 1_000_003 + rank) % (1 << 40)
        self._workspace = Workspace(device)
        self._pool: Tensor | None = None

    def new_step(self, step: int) -> None:
        """Draw other noise from now on, a function of (seed, rank, step)."""
        self.key = self._key * 1_048_583 + step
        self._generator.manual_seed(self.key)
        self._pool = None

    def round(self, values: Tensor, out: Tensor) -> Tensor:
        """Write float32 `values` [n, width] to bfloat16 `out` [n, width]; `values`, finite, is scratch afterwards."""
        rows, width = values.shape
        if self._pool is None or self._pool.shape[1] != width:
            pool = self._workspace.get("pool", (_NOISE_ROWS, width), torch.int32)
            self._pool = pool.random_(0, 1 << 16, generator=self._generator)
        masks = self._workspace.get("masks", (rows, 1), torch.int32).random_(0, 1 << 16, generator=self._generator)
        bits = values.view(torch.int32)
        noise = self._workspace.get("noise", (min(rows, _NOISE_ROWS), width), torch.int32)
        for start in range(0, rows, _NOISE_ROWS):
            part = bits[start : start + _NOISE_ROWS]
            some = torch.bitwise_xor(
                self._pool[: len(part)], masks[start : start + _NOISE_ROWS], out=noise[: len(part)]
            )
            # The low 16 bits cut off, the conversion below is exact; a carry into the exponent is the next value up.
            part.add_(some).bitwise_and_(-65536)
        return out.copy_(values)
