"""The planner's figures for what a part measures."""

from functools import cache

import torch

from benchmarks.gpu_parts.bench import Bench
from dist_train.backbones.config import BackboneConfig
from dist_train.head import HeadConfig
from launch.plan_hardware import GPUS, BackboneCost, Gpu, backbone_cost
from launch.plan_head import HeadShape, head_memory
from launch.plan_model import Setup
from launch.plan_seconds import step_seconds


def data_sheet(bench: Bench) -> Gpu:
    """The data sheet of the card; that of an H100 where there is none for it."""
    name = torch.cuda.get_device_name().lower() if bench.cuda else ""
    return next((gpu for key, gpu in GPUS.items() if key in name), GPUS["h100"])


@cache
def cost(backbone: str) -> BackboneCost:
    """What a network costs, which takes a forward pass to count."""
    return backbone_cost(BackboneConfig(name=backbone, embedding_dim=512), 112)


def planned_setup(bench: Bench, classes: int, samples: int, head: HeadConfig, backbone: str = "iresnet50") -> Setup:
    """One GPU that trains on `samples` pictures a step."""
    gpu = data_sheet(bench)
    return Setup(
        identities=classes,
        gpus=1,
        gpus_per_node=1,
        gpu=gpu,
        memory_gib=gpu.memory_gib,
        network_gb_s=50,
        backbone=cost(backbone),
        embedding_dim=512,
        image_size=112,
        batch=samples,
        accumulation=1,
        half=True,
        strategy="ddp",
        moments=1,
        head=head,
    )


def planned_head(bench: Bench, classes: int, samples: int, head: HeadConfig) -> dict[str, float]:
    """Planned milliseconds and memory of the head alone."""
    setup = planned_setup(bench, classes, samples, head)
    parts = step_seconds(setup)
    ms = 1e3 * sum(seconds for name, seconds in parts.items() if name.startswith("head"))
    memory = head_memory(HeadShape(head, classes, 512, samples, cpu=not bench.cuda, operands=setup.operands))
    return {"planned_ms": ms, "planned_gb": sum(memory.values()) / 1e9}
