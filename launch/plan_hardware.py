"""The planner's basic figures: data sheets of GPUs, and the costs of a network."""

from dataclasses import dataclass
from itertools import accumulate

from dist_train.backbones.config import BackboneConfig

GIB = 2**30
IN_FLIGHT = 2.0  # gradients into and out of a layer of the backward pass


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peak figures of a GPU, from its vendor's data sheet (the form that stands on a board of eight, no sparsity).

    Attributes:
        memory_gib: size of its memory, GiB.
        half_tflops: matrix products in bfloat16 or float16 on tensor cores, 10**12 operations/s.
        float32_tflops: arithmetic in float32 without TF32, 10**12 operations/s.
        memory_gb_s: bandwidth of its memory, 10**9 bytes/s.
        link_gb_s: bandwidth to the GPUs of the same node in one direction, 10**9 bytes/s.
        tf32_tflops: matrix products in TF32 on tensor cores, 10**12 operations/s; None where it has none.
        bfloat16: whether its 16 bits may be bfloat16.
        link: name of what joins the GPUs of a node.
    """

    memory_gib: float
    half_tflops: float
    float32_tflops: float
    memory_gb_s: float
    link_gb_s: float
    tf32_tflops: float | None = None
    bfloat16: bool = True
    link: str = "NVLink"

    def tflops(self, arithmetic: str) -> float:
        """Peak of matrix products with operands of a type, 10**12 operations/s.

        Raises:
            ValueError: the GPU does not have it.
        """
        known = {
            "float32": self.float32_tflops,
            "tf32": self.tf32_tflops,
            "bfloat16": self.half_tflops if self.bfloat16 else None,
        }
        rate = known[arithmetic]
        if rate is None:
            raise ValueError(f"this GPU has no {arithmetic}; expected {', '.join(k for k, v in known.items() if v)}")
        return rate

    def in_half(self, precision: str) -> bool:
        """Whether a backbone computes in 16 bits on it, under a `train.precision`."""
        return self.bfloat16 if precision == "auto" else precision != "float32"


# Data sheets: NVIDIA "V100 Tensor Core GPU" (2020), "A100 80GB" (2021), "H100 Tensor Core GPU" (2023), "H200" (2024),
# "HGX B200" (2025: 2.25 and 1.1 PFLOPS dense, 180 GB, 8 TB/s, NVLink 5 with 1.8 TB/s in both directions); AMD
# "Instinct MI300X" (2023: 1,307, 654 and 163 TFLOPS, 192 GB, 5.3 TB/s, 7 xGMI links of 64 GB/s in one direction).
# NVLink of the others in both directions: 300, 600 and 900 GB/s.
GPUS = {
    "v100": Gpu(32, 125, 15.7, 900, 150, bfloat16=False),
    "a100": Gpu(80, 312, 19.5, 2039, 300, 156),
    "h100": Gpu(80, 989, 67, 3350, 450, 494.5),
    "h200": Gpu(141, 989, 67, 4800, 450, 494.5),
    "b200": Gpu(180, 2250, 80, 8000, 900, 1100),
    "mi300x": Gpu(192, 1307.4, 163.4, 5300, 448, 653.7, link="xGMI"),
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
    alive = max(below + IN_FLIGHT * size for below, size in zip(accumulate(sizes), sizes, strict=True))
    return BackboneCost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        buffers=sum(buffer.numel() for buffer in network.buffers()),
        macs=counter.get_total_flops() // 2 // pictures,
        saved=sum(sizes) // pictures,
        peak=round(alive) // pictures,
    )
