"""How the kernels cut their work: tiles, paddings and launches for a device."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of one launch.

    Attributes:
        samples: BLOCK_G.
        rows: BLOCK_N.
        warps: of a program.
        stages: of the streamed side that are on their way at once.
    """

    samples: int
    rows: int
    warps: int
    stages: int


# Measured on an H100 by `benchmarks/gpu.py`; a tile of the side that is held, 64 by 512 in bfloat16, takes 64 KiB.
FORWARD = Tiles(samples=64, rows=64, warps=8, stages=2)
GRADIENT = Tiles(samples=64, rows=64, warps=8, stages=2)


def padded(count: int, block: int) -> int:
    """`count` rounded up to a multiple of `block`."""
    return -(-count // block) * block


def power_of_two(count: int) -> int:
    """The smallest power of two from `count` on."""
    return 1 << max(0, count - 1).bit_length()


def multiprocessors(device: torch.device) -> int:
    """Programs that run at the same time, one a multiprocessor; 2 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
