"""The planner's basic figures: data sheets of GPUs, and the costs of a network."""

from dataclasses import dataclass
from itertools import accumulate

from dist_train.backbones.config import BackboneConfig

GIB = 2**30
IN_FLIGHT = 2.0  # gradients into and out of a layer of the backward pass


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peak figures of a GPU, from its vendor's data sheet (SXM form, no sparsity).

    Attributes:
        memory_gib: size of its memory, GiB.
        half_tflops: matrix products in bfloat16 or float16 on tensor cores, 10**12 operations/s.
        float32_tflops: arithmetic in float32 without TF32, 10**12 operations/s.
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
    """The costs of a network, counted on the network.

    Attributes:
        parameters: number of parameters.
        buffers: number of BatchNorm's statistics.
        macs: multiply-adds of one picture's forward pass.
        saved: number of values that one picture's backward pass needs from the forward pass.
        peak: most values of one picture that live at a time in the backward pass: what is saved of the layers that it
            has not reached, and `IN_FLIGHT` values for each that is saved of the layer where it is.
    """

    parameters: int
    buffers: int
    macs: int
    saved: int
    peak: int


def backbone_cost(config: BackboneConfig, image_size: int) -> BackboneCost:
    """The costs of a network, counted in a forward pass on torch's `meta` device, which computes shapes alone.

    torch counts the multiply-adds of convolutions, of linear layers, and of products of activations as in attention.

    Raises:
        UserError: the network does not take pictures of this size.
    """
    import torch
    from torch import Tensor
    from torch.utils.flop_counter import FlopCounterMode

    from dist_train.backbones import build_backbone, draw

    pictures = 2  # two pictures, because BatchNorm refuses to train on one
    saved: dict[int, int] = {}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes() // tensor.element_size()
        kept.append(tensor)  # kept alive, so that no two have the same address
        return tensor

    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        network = build_backbone(config, image_size).train()
        draw(network, 0, 0, torch.arange(pictures, device="cpu"))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counter:
            network(torch.empty(pictures, 3, image_size, image_size))
    for tensor in [*network.parameters(), *network.buffers()]:
        saved.pop(tensor.untyped_storage()._cdata, None)
    sizes = list(saved.values())  # in the order of the forward pass
    return BackboneCost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        buffers=sum(buffer.numel() for buffer in network.buffers()),
        macs=counter.get_total_flops() // 2 // pictures,
        saved=sum(sizes) // pictures,
        peak=round(max(below + IN_FLIGHT * size for below, size in zip(accumulate(sizes), sizes, strict=True))) // pictures,
    )
