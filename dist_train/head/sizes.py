"""How large the parts of a head are: one answer for the head, which allocates them, and for the planner.

Without torch, which the planner does not wait for.

Shapes: n classes of a rank, k of them chosen in a step, K centers a class, D numbers of an embedding, G samples.
"""

from collections.abc import Iterator

from dist_train.head.config import HeadConfig
from dist_train.head.margins.table import MARGINS

CPU_BLOCK_ROWS = 512
"""Centers handled at a time on a CPU: with 512 numbers each they stay near a core, and their logits with them."""


def class_range(num_classes: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and one-past-last class of `rank`: ceil(C/W) classes each, the last ranks fewer or none.

    This is the convention of `torch.chunk` and so of `DTensor`'s `Shard(0)`.
    """
    share = -(-num_classes // world_size)
    return min(rank * share, num_classes), min((rank + 1) * share, num_classes)


def chosen_classes(num_classes: int, sample_rate: float) -> int:
    """How many of a rank's n classes a step chooses, k; more where the batch's own classes are more."""
    return min(num_classes, max(1, round(sample_rate * num_classes)))


def row_width(config: HeadConfig, embedding_dim: int) -> int:
    """Numbers of a center: D, and one more for the bias where the margin does not normalise."""
    return embedding_dim if MARGINS[config.margin].normalised else embedding_dim + 1


def logits_bytes(config: HeadConfig, classes: int, samples: int, bytes_each: int = 4) -> int:
    """Bytes of the logits [classes·K, G], or of what the kernel leaves of them."""
    return bytes_each * classes * config.centers_per_class * samples


def block_classes(config: HeadConfig, samples: int, device_type: str, budget: int, bytes_each: int = 4) -> int:
    """Classes handled at a time, so that their logits keep within `budget` bytes.

    Args:
        config: the `head` section.
        samples: G.
        device_type: "cpu" or "cuda", where the head computes.
        budget: bytes of logits, as a rule `config.logits_budget(device_type)`.
        bytes_each: of a logit, or of what the kernel leaves of it.
    """
    fitting = budget // (bytes_each * samples)
    wanted = config.block_rows or (CPU_BLOCK_ROWS if device_type == "cpu" else fitting)
    return max(1, min(wanted, fitting) // config.centers_per_class)


def spans(low: int, high: int, block: int) -> Iterator[tuple[int, int]]:
    """[low, high) cut at multiples of `block`."""
    while low < high:
        cut = min((low // block + 1) * block, high)
        yield low, cut
        low = cut
