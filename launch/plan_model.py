"""The model of a training step's costs: memory by part, bytes over the network; those of its head are in `plan_head`.

They follow from what the code stores and does, and are under test against it (`tests/launch`, `tests/gpuless`,
`benchmarks/plan.py`). Shapes: W ranks, B pictures a rank
and forward pass, G = W·B, n classes a rank, k of them chosen in a step, K centers a class, D numbers a center.
"""

from dataclasses import dataclass

from dist_train.head.config import HeadConfig
from dist_train.head.sizes import class_range
from launch.plan_hardware import GIB, BackboneCost, Gpu
from launch.plan_head import HeadShape, head_memory, staging_buffers

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


def host_memory(setup: Setup) -> dict[str, int]:
    """Bytes of a rank's host memory, by part; memory-mapped rows count as disk, but for copies of some."""
    shape = head_shape(setup)
    parts = {"libraries and data": HOST_FIXED_BYTES}
    if setup.head.storage == "host":
        parts["class centers and state"] = shape.rows * shape.class_bytes
    if shape.staged:  # pinned, and torch pins powers of two
        sizes = [rows * table.width * table.dtype.itemsize for rows in staging_buffers(shape) for table in shape.tables]
        parts["copies of chosen rows"] = sum(1 << (size - 1).bit_length() for size in sizes if size)
    replica = 4 * setup.backbone.parameters * (1 + setup.moments)
    # A checkpoint of rows in a file is copied into another one; whoever resumes from it reads a whole table at a time.
    copied = shape.width * shape.number_bytes if disk_bytes(setup) else shape.class_bytes
    parts["checkpoint being written or read"] = replica + shape.rows * copied
    return parts


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
