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


_FASTEST = Tiles(rows=128, samples=128, numbers=64, group=8, warps=4, stages=3)
"""Of five tried by hand on an H200, at 8192 samples, 65,536 rows and 512 numbers: 384 TFLOP/s; an H100 made 338."""

# With each a thread holds half as many logits as with the one before, and has registers left for the epilogue.
_ROOMY = _FASTEST._replace(warps=8)
_NARROW = _ROOMY._replace(samples=64)
_SMALL = _NARROW._replace(rows=64)


def weights_tiles(
    centers: int, labels: int, lifted: bool, width: int, capability: int, threshold: bool = False, samples: int = 16
) -> Tiles:
    """Sizes with which `weights_kernel` spills no register, as `tests/head/compiled.py` shows.

    Args:
        centers: K a class.
        labels: of a sample.
        lifted: the margin lifts hard negatives.
        width: numbers of a center; rows that no 16 numbers divide are loaded through registers.
        capability: of the device to compute, times 10.
        threshold: negatives beyond one are left out.
        samples: G; rows of weights that no 16 samples divide are written number by number.
    """
    blackwell = capability >= 100  # its epilogue takes more registers
    burdens = (centers > 1) + (labels > 1) + lifted + (width % 16 != 0) + (samples % 16 != 0)
    if (width % 16 and samples % 16) or (blackwell and labels > 1 and burdens > 1):
        return _SMALL
    if burdens > 1 or (blackwell and (lifted or (threshold and labels > 1))):
        return _NARROW
    return _ROOMY if burdens or capability != 90 else _FASTEST


def power_of_two(count: int) -> int:
    """The smallest power of two from `count` on."""
    return 1 << max(0, count - 1).bit_length()
