"""What a training job runs on, and what its network costs: the figures that the planner counts with."""

from dataclasses import dataclass

from dist_train.backbones.config import BackboneConfig

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peak figures of a GPU, from its vendor's data sheet (SXM form, no sparsity).

    Attributes:
        memory_gib: memory.
        half_tflops: matrix products in bfloat16 or float16 on tensor cores, 10**12 operations/s.
        float32_tflops: in float32 without TF32.
        memory_gb_s: bandwidth of its memory, 10**9 bytes/s.
        link_gb_s: bandwidth to the GPUs of the same node in one direction, 10**9 bytes/s.
    """

    memory_gib: float
    half_tflops: float
    float32_tflops: float
    memory_gb_s: float
    link_gb_s: float


GPUS = {
    "v100": Gpu(32, 125, 15.7, 900, 150),
    "a100": Gpu(80, 312, 19.5, 2039, 300),
    "h100": Gpu(80, 989, 67, 3350, 450),
    "h200": Gpu(141, 989, 67, 4800, 450),
}


@dataclass(frozen=True, slots=True)
class BackboneCost:
    """What a network costs, counted on the network itself.

    Attributes:
        parameters: numbers.
        buffers: numbers of BatchNorm statistics.
        macs: multiplications and additions of one picture's forward pass, in pairs.
        saved: numbers kept for the backward pass of one picture.
        largest: numbers of the largest of them.
    """

    parameters: int
    buffers: int
    macs: int
    saved: int
    largest: int


def backbone_cost(config: BackboneConfig, image_size: int) -> BackboneCost:
    """Count a network's costs by a forward pass on torch's `meta` device, which computes shapes and no numbers.

    torch counts every product that it knows: convolutions, linear layers, and those between activations, as attention
    has them.

    Raises:
        UserError: pictures smaller or larger than the network takes.
    """
    import torch
    from torch import Tensor
    from torch.utils.flop_counter import FlopCounterMode

    from dist_train.backbones import build_backbone

    pictures = 2  # BatchNorm refuses to train on one
    saved: dict[int, int] = {}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes() // tensor.element_size()
        kept.append(tensor)  # so that no two of them have the same address
        return tensor

    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        network = build_backbone(config, image_size).train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counter:
            network(torch.empty(pictures, 3, image_size, image_size))
    for tensor in [*network.parameters(), *network.buffers()]:
        saved.pop(tensor.untyped_storage()._cdata, None)
    return BackboneCost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        buffers=sum(buffer.numel() for buffer in network.buffers()),
        macs=counter.get_total_flops() // 2 // pictures,
        saved=sum(saved.values()) // pictures,
        largest=max(saved.values()) // pictures,
    )
