"""How the kernels cut their work."""

from typing import NamedTuple


class Tiles(NamedTuple):
    """Sizes of a launch of `weights_kernel`.

    Attributes:
        rows: BLOCK_N.
        samples: BLOCK_G.
        numbers: BLOCK_D.
        group: GROUP.
        warps: of a program.
        stages: of tiles of numbers that are on their way at once.
    """

    rows: int
    samples: int
    numbers: int
    group: int
    warps: int
    stages: int


WEIGHTS = Tiles(rows=128, samples=128, numbers=64, group=8, warps=4, stages=3)
"""The fastest of five on an H200 at 8192 samples, 65,536 rows and 512 numbers (`benchmarks/gpu.py`)."""

LEAST = 16
"""Side of the smallest product that a tensor core takes."""


def power_of_two(count: int) -> int:
    """The smallest power of two from `count` on."""
    return 1 << max(0, count - 1).bit_length()
