"""The model of the head's costs in a training step: memory by part, traffic, operations.

They follow from what the code stores and does, and are under test against it (`tests/launch`, `tests/gpuless`). Shapes
as in `plan_model`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from dist_train.head.config import HeadConfig
from dist_train.head.margins.table import MARGINS
from dist_train.head.sizes import block_classes, chosen_classes, logits_bytes, row_width

if TYPE_CHECKING:
    from dist_train.head.storage import TableSpec

LARGEST_SCALE = 64.5  # as in `dist_train/head/kernel_weights.py`, which imports triton; all default scales are smaller


@dataclass(frozen=True)  # no slots: cached properties need a __dict__
class HeadShape:
    """The sizes that the head's costs depend on.

    Attributes:
        config: the head's section of the recipe.
        rows: n, classes of a rank.
        dim: D, width of an embedding.
        samples: G, pictures of a forward pass over all ranks.
        accumulation: forward passes of a step.
        cpu: whether the head computes on a CPU.
        operands: type of the operands of its products.
    """

    config: HeadConfig
    rows: int
    dim: int
    samples: int
    accumulation: int = 1
    cpu: bool = False
    operands: str = "float32"

    @cached_property
    def tables(self) -> "list[TableSpec]":
        """The head's tables; the table of centers comes first."""
        from dist_train.head.optimizers import build_tables  # imports torch, which takes seconds

        return build_tables(self.config, row_width(self.config, self.dim))

    @property
    def width(self) -> int:
        """Numbers of a class's centers."""
        return self.config.centers_per_class * row_width(self.config, self.dim)

    @property
    def number_bytes(self) -> int:
        """Bytes of a stored number."""
        return self.tables[0].dtype.itemsize

    @cached_property
    def class_bytes(self) -> int:
        """Bytes of a class in all tables."""
        return sum(table.width * table.dtype.itemsize for table in self.tables)

    @property
    def state_bytes(self) -> int:
        """Bytes of a class's optimizer state."""
        return self.class_bytes - self.width * self.number_bytes

    @property
    def wide_tables(self) -> int:
        """Number of tables as wide as the centers, the centers included."""
        return sum(table.width == self.width for table in self.tables)

    @cached_property
    def update_passes(self) -> int:
        """Number of times that the optimizer reads or writes a row's numbers."""
        from dist_train.head.optimizers import build_row_optimizer

        return build_row_optimizer(self.config).row_passes

    @property
    def chosen(self) -> int:
        """Classes that a rank chooses in a step, k."""
        return chosen_classes(self.rows, self.config.sample_rate)

    @property
    def updated(self) -> int:
        """Expected number of classes that a step updates: the union of the classes that its passes choose."""
        share = self.chosen / self.rows if self.rows else 0.0
        return round(self.rows * (1 - (1 - share) ** self.accumulation))

    @property
    def part(self) -> float:
        """Share of the updated classes that a pass chooses."""
        return self.chosen / max(1, self.updated)

    @property
    def staged(self) -> bool:
        """Whether rows are stored outside of the memory that the head computes in."""
        return self.config.storage != "device"

    @property
    def moved(self) -> int:
        """Rows that a step fetches from a store outside of that memory or writes back to it.

        Each pass fetches those that it chose; of several passes the update fetches their union once more.
        """
        return self.accumulation * self.chosen + (2 if self.accumulation > 1 else 1) * self.updated

    @property
    def block(self) -> int:
        """Classes in a block of the softmax."""
        return min(self.chosen, self._most_at_a_time)

    @property
    def updated_block(self) -> int:
        """Classes in a block of the update."""
        return min(self.updated, self._most_at_a_time)

    @property
    def _most_at_a_time(self) -> int:
        return block_classes(self.config, self.samples, self._device_type, self._budget, self.logit_bytes)

    @property
    def _device_type(self) -> str:
        return "cpu" if self.cpu else "cuda"

    @property
    def _budget(self) -> int:
        return self.config.logits_budget(self._device_type)

    @property
    def kernels(self) -> bool:
        """Whether kernels form the softmax's weights, which are 16 bits wide; else they are logits in float32."""
        return self.rounds and not self.config.filter_eps

    @property
    def normalised(self) -> bool:
        """Whether the margin compares directions alone."""
        return MARGINS[self.config.margin].normalised

    @property
    def bounded(self) -> bool:
        """Whether kernels form the weights without the largest logit: no logit leaves a float32's exponentials."""
        return self.normalised and self.config.margin != "curricularface" and (self.config.scale or 0) <= LARGEST_SCALE

    @property
    def rounds(self) -> bool:
        """Whether a GPU's products take copies in 16 bits of what they multiply."""
        return self.operands == "bfloat16" and not self.cpu

    @property
    def logit_bytes(self) -> int:
        """Bytes of a logit, or of what the kernels leave of it."""
        return 2 if self.kernels else 4

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits of one forward pass, over all chosen classes."""
        return logits_bytes(self.config, self.chosen, self.samples, self.logit_bytes)

    @property
    def passes_kept(self) -> int:
        """Forward passes of a step whose logits are kept until its end; logits of other passes are computed twice."""
        return min(self.accumulation, self._budget // max(1, self.logits_bytes))


def head_memory(shape: HeadShape) -> dict[str, int]:
    """Bytes of the head in the memory that it computes in, by part."""
    from dist_train.head.kernels.tiles import weights_tiles  # imports torch

    config, block, times = shape.config, shape.block, shape.accumulation
    again = shape.passes_kept < times
    kept = shape.passes_kept * shape.logits_bytes
    block_logits = logits_bytes(config, block, shape.samples, shape.logit_bytes)
    parts = {}
    if not shape.staged:
        parts["class centers"] = shape.rows * shape.width * shape.number_bytes
        parts["centers' optimizer state"] = shape.rows * shape.state_bytes
    elif not shape.cpu:
        # Each forward pass holds its rows until the step; a step of several passes holds the union of their rows too.
        union = shape.updated if times > 1 else 0
        parts["copies of chosen rows"] = (times * shape.chosen + union) * shape.class_bytes
    # With several passes a block is one of the union of their classes, of which each pass chose a part.
    parts["logits"] = kept + (round((1 + shape.part) * block_logits) if again else 0)
    if shape.kernels:  # and the sums of each tile
        rows = weights_tiles(config.centers_per_class, 1, False, shape.dim, 90).rows
        parts["logits"] += block_logits * 4 // (shape.logit_bytes * rows)
    elif shape.rounds:
        parts["logits"] += block_logits // 2
    if not shape.kernels and config.centers_per_class > 1:  # the nearest of a class's: a logit and a number of 8 bytes
        parts["nearest centers"] = 12 * block * shape.samples
    # Embeddings are kept for every pass; two forms of their gradient and buffers of the exchange for one pass.
    parts["gathered embeddings"] = 4 * shape.samples * shape.dim * (times + 6)
    parts["blocks of rows"] = _row_blocks(shape)
    parts["norms and indices"] = times * shape.chosen * (4 * config.centers_per_class + 8)
    return parts


def _row_blocks(shape: HeadShape) -> int:
    """Bytes of a block's rows as they are read, and as operands of products, and of the rows' gradient."""
    several = shape.accumulation > 1
    # A GPU projects a gradient and updates rows and state where they are; a CPU reads blocks of all tables for it.
    gradients = (2 if shape.cpu else 1) + (shape.part if several else 0)
    read = shape.wide_tables if shape.cpu else 1
    wide = 0 if shape.number_bytes == 4 else read
    narrow = read * shape.number_bytes if shape.config.sample_rate < 1 and not shape.staged else 0
    operands = 2 * shape.block if shape.rounds else 0
    return round(shape.width * (shape.updated_block * (4 * (gradients + wide) + narrow) + operands))


def staged_rows(shape: HeadShape) -> int:
    """Largest number of rows in the host's buffers between the store and the GPU."""
    return sum(staging_buffers(shape))


def staging_buffers(shape: HeadShape) -> list[int]:
    """Rows of each of these buffers."""
    if shape.accumulation == 1:
        return [shape.chosen] * 2  # a fetch overlaps the write-back of the step before
    # The union of rows grows a pass's buffer if one is free in time; otherwise it takes a buffer of its own.
    return [shape.chosen] * shape.accumulation + [shape.updated]


def head_traffic(shape: HeadShape) -> int:
    """Bytes that the head reads and writes in a step, in the memory that it computes in."""
    config, times, samples = shape.config, shape.accumulation, shape.samples
    numbers = shape.chosen * shape.width
    # Logits are read or written 13 times; 22 times where they are computed twice.
    logits = (13 * shape.passes_kept + 22 * (times - shape.passes_kept)) * shape.chosen * config.centers_per_class
    tables = shape.wide_tables  # an update reads and writes each once
    each = 3.0  # products and norms of a forward pass
    once = 9.0 + shape.update_passes  # the gradient, its projection, the update
    if config.sample_rate < 1:  # rows are gathered, and scattered when written
        each += 2 * shape.number_bytes / 4
        once += 2 * 2 * tables * shape.number_bytes / 4
    if shape.number_bytes == 2:  # widened when read, rounded stochastically when written
        each += 1.5
        once += (1.5 + 8.5) * tables
    if times > 1:  # the passes' gradients are added up
        each += 6.0
    return round(4 * (logits * samples + each * times * numbers + once * shape.updated * shape.width))


class Products(NamedTuple):
    """Products of centers and samples in a step, all of the same size.

    Attributes:
        formed: make the softmax's weights, or logits: once a pass, twice where they are not kept.
        searched: look for the largest logit alone.
        multiplied: take the weights, for the embeddings' gradient and for the rows'.
    """

    formed: int
    searched: int
    multiplied: int


def head_products(shape: HeadShape) -> Products:
    """Products of a step's head."""
    times = shape.accumulation
    return Products(2 * times - shape.passes_kept, times if shape.kernels and not shape.bounded else 0, 2 * times)


def product_flops(shape: HeadShape) -> int:
    """Operations of one of them."""
    return 2 * shape.chosen * shape.width * shape.samples


def head_flops(shape: HeadShape) -> int:
    """Operations of the products of a step's head."""
    return sum(head_products(shape)) * product_flops(shape)


def kernel_traffic(shape: HeadShape) -> int:
    """Bytes of rows that a step of the kernels reads from and writes to memory, without the weights of the products.

    A pass reads its rows, takes their norms, and rounds them to operands, which two products or three read; the rows'
    gradient is written and read in float32, and an update reads and writes rows and state.
    """
    number, times, sampled = shape.number_bytes, shape.accumulation, shape.config.sample_rate < 1
    read = 2 * number if sampled and not shape.staged else 0  # a copy of what was chosen
    read += number + 4 if number < 4 else 0  # and one in float32
    norms = 4 if shape.normalised else 0
    rounded = 4 + 2
    each = read + norms + rounded + 2 * (2 if shape.bounded else 3) + 4
    again, once = rounded + 2, 4
    if times > 1:  # an update takes the union of the passes' rows: each picks its own and adds its gradient
        each += 2 * 4 + 3 * 4
        once += read + norms + 4
    else:
        again += read
    passes = times * each + (times - shape.passes_kept) * again
    return passes * shape.chosen * shape.width + shape.updated * (once * shape.width + 2 * shape.class_bytes)


def drawn_classes(shape: HeadShape) -> int:
    """Classes that the host draws in a step: those that are chosen, or left out, whichever are fewer."""
    return shape.accumulation * min(shape.chosen, shape.rows - shape.chosen)
