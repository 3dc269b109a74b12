"""The model of a training step's costs: memory by part, traffic, bytes over the network.

They follow from what the code stores and does, and are under test against it (`tests/launch`, `tests/gpuless`,
`benchmarks/plan.py`). Shapes: W ranks, B pictures a rank
and forward pass, G = W·B, n classes a rank, k of them chosen in a step, K centers a class, D numbers a center.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dist_train.head.config import HeadConfig
from dist_train.head.sizes import block_classes, chosen_classes, class_range, logits_bytes, row_width
from launch.plan_hardware import GIB, BackboneCost, Gpu

if TYPE_CHECKING:
    from dist_train.head.storage import TableSpec

# CUDA's context, NCCL's buffers and cuDNN's workspace; and the share of all other memory that allocators lose to gaps.
GPU_FIXED_BYTES = 2 * GIB
GAPS_SHARE = 0.04
HOST_FIXED_BYTES = 4 * GIB  # libraries, data workers, batches in flight


@dataclass(frozen=True, slots=True)
class Setup:
    """A job to be planned.

    Attributes:
        identities: C, classes over all ranks.
        gpus: W, a rank each.
        gpus_per_node: GPUs of a machine.
        gpu: their data sheet.
        memory_gib: memory of a GPU, GiB.
        network_gb_s: bandwidth between machines of one GPU in one direction, 10**9 bytes/s.
        backbone: costs of the network.
        embedding_dim: D.
        image_size: side of a picture in pixels.
        batch: B, pictures a rank and forward pass.
        accumulation: forward passes of a step.
        half: whether the backbone computes in 16 bits.
        strategy: `train.strategy`.
        moments: numbers that the backbone's optimizer keeps for a weight: 1 for SGD, 2 for AdamW.
        head: the head's section of the recipe.
        views: of each picture, each of which passes the backbone.
        averaged: whether a moving average of the backbone's weights is kept.
    """

    identities: int
    gpus: int
    gpus_per_node: int
    gpu: Gpu
    memory_gib: float
    network_gb_s: float
    backbone: BackboneCost
    embedding_dim: int
    image_size: int
    batch: int
    accumulation: int
    half: bool
    strategy: str
    moments: int
    head: HeadConfig
    views: int = 1
    averaged: bool = False

    @property
    def operands(self) -> str:
        """Type of the operands of the head's products."""
        if self.head.arithmetic != "auto":
            return self.head.arithmetic
        return "bfloat16" if self.gpu.bfloat16 else "float32"

    @property
    def rows(self) -> int:
        """Classes of the fullest rank, n."""
        start, stop = class_range(self.identities, 0, self.gpus)
        return stop - start

    @property
    def samples(self) -> int:
        """Pictures of a forward pass over all ranks, G."""
        return self.gpus * self.batch


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


def host_memory(setup: Setup) -> dict[str, int]:
    """Bytes of a rank's host memory, by part; memory-mapped rows count as disk, but for copies of some."""
    shape = head_shape(setup)
    parts = {"libraries and data": HOST_FIXED_BYTES}
    if setup.head.storage == "host":
        parts["class centers and state"] = shape.rows * shape.class_bytes
    if shape.staged:  # pinned, and torch pins powers of two
        sizes = [rows * table.width * table.dtype.itemsize for rows in _buffers(shape) for table in shape.tables]
        parts["copies of chosen rows"] = sum(1 << (size - 1).bit_length() for size in sizes if size)
    replica = 4 * setup.backbone.parameters * (1 + setup.moments)
    # A checkpoint of rows in a file is copied into another one; whoever resumes from it reads a whole table at a time.
    copied = shape.width * shape.number_bytes if disk_bytes(setup) else shape.class_bytes
    parts["checkpoint being written or read"] = replica + shape.rows * copied
    return parts


def staged_rows(shape: HeadShape) -> int:
    """Largest number of rows in the host's buffers between the store and the GPU."""
    return sum(_buffers(shape))


def _buffers(shape: HeadShape) -> list[int]:
    """Rows of each of them."""
    if shape.accumulation == 1:
        return [shape.chosen] * 2  # a fetch overlaps the write-back of the step before
    # The union of rows grows a pass's buffer if one is free in time; otherwise it takes a buffer of its own.
    return [shape.chosen] * shape.accumulation + [shape.updated]


def disk_bytes(setup: Setup) -> int:
    """Bytes of a rank's memory-mapped rows, and of the copy that a checkpoint is written from."""
    shape = head_shape(setup)
    return 2 * shape.rows * shape.class_bytes if setup.head.storage == "mmap" else 0


def head_shape(setup: Setup) -> HeadShape:
    """Sizes of the head of the fullest rank."""
    return HeadShape(
        setup.head,
        setup.rows,
        setup.embedding_dim,
        setup.samples,
        setup.accumulation,
        operands=setup.operands,
    )


def gpu_memory(setup: Setup) -> dict[str, int]:
    """Bytes of a rank's GPU, by part."""
    backbone, ranks = setup.backbone, setup.gpus
    stage = int(setup.strategy.removeprefix("zero")) if setup.strategy != "ddp" else 0
    numbers = 4 * backbone.parameters
    activation = 2 if setup.half else 4
    parts = {
        "backbone weights": (numbers // ranks if stage == 3 else numbers) + 4 * backbone.buffers,
        "backbone gradients": numbers // ranks if stage >= 2 else numbers,
        "backbone optimizer": setup.moments * numbers // (ranks if stage >= 1 else 1),
        "moving average": numbers + 4 * backbone.buffers if setup.averaged else 0,
        "backbone weights in 16 bits": numbers // 2 if setup.half else 0,
        "activations": setup.views * setup.batch * backbone.peak * activation,
        # This batch, and the next one on its way.
        "pictures": 2 * setup.views * setup.batch * setup.accumulation * 3 * setup.image_size**2 * 4,
        **head_memory(head_shape(setup)),
        "CUDA, NCCL, cuDNN": GPU_FIXED_BYTES,
    }
    parts["gaps"] = round(GAPS_SHARE * (sum(parts.values()) - GPU_FIXED_BYTES))
    return {name: value for name, value in parts.items() if value}


def fits(setup: Setup) -> bool:
    """Whether a rank's parts go into its GPU."""
    return sum(gpu_memory(setup).values()) <= setup.memory_gib * GIB


def network_bytes(setup: Setup) -> dict[str, int]:
    """Bytes that a rank receives in a step, by exchange; in rings, which NCCL uses for large messages."""
    others = setup.gpus - 1
    times = setup.accumulation
    weights = 4 * setup.backbone.parameters
    parts = {
        "labels gathered": times * others * setup.batch * 8,
        "embeddings gathered": times * others * setup.batch * 4 * (setup.embedding_dim + 1),
        "softmax statistics": times * 2 * others * 4 * (1 + 3) * setup.batch,  # two all-reduces
        "embeddings' gradient": times * others * setup.batch * 4 * (setup.embedding_dim + 1),
        "backbone gradient": 2 * others * weights // setup.gpus,
    }
    if setup.strategy in ("zero1", "zero2"):  # of which each rank has updated a part
        parts["backbone weights gathered"] = others * weights // setup.gpus
    elif setup.strategy == "zero3":  # weights are gathered once for both passes, gradients reduced to their owners
        parts["backbone weights gathered"] = others * weights // setup.gpus
        parts["backbone gradient"] //= 2
    return parts


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


def head_flops(shape: HeadShape) -> int:
    """Operations of the products of a step's head: logits, embeddings' gradient, rows' gradient."""
    products = 3 * shape.accumulation + (shape.accumulation - shape.passes_kept)  # logits that are computed twice
    return products * 2 * shape.chosen * shape.width * shape.samples


def kernel_traffic(shape: HeadShape) -> int:
    """Bytes of rows that a step of the kernels reads from and writes to memory.

    A pass gathers its rows, takes their norms, and rounds them to operands, which two products read; the rows' gradient
    is written and read in float32, and an update reads and writes rows and state. The weights that products write and
    read are hidden behind these, which count more operations a byte than the card does.
    """
    gathered = shape.number_bytes + (4 if shape.number_bytes < 4 or shape.config.sample_rate < 1 else 0)
    rounded = gathered + 4 + 2
    again = (shape.accumulation - shape.passes_kept) * (rounded + 2)
    once = shape.accumulation * (rounded + 4 + 2 * 2 + 2 * 4)
    return (once + again) * shape.chosen * shape.width + 2 * shape.updated * shape.class_bytes
