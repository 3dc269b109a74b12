"""A backbone as a program with a free batch axis: what every deployable form starts from."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn


class Scaling(nn.Module):
    """A backbone that takes pictures as decoders give them: uint8 [B, S, S, 3]."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> [B, D]."""
        scaled = images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1  # [B, S, S, 3] -> [B, 3, S, S]
        return cast(Tensor, self.backbone(scaled))


class HalfInside(nn.Module):
    """A backbone whose weights and arithmetic are float16, between float32 pictures and float32 embeddings."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, 3, S, S] -> float32 [B, D]."""
        return cast(Tensor, self.backbone(images.to(torch.float16))).to(torch.float32)


def example_input(backbone: nn.Module, image_size: int, uint8: bool, batch: int | None = None) -> Tensor:
    """Pictures to trace with, where the weights are; without a `batch` two, as one would be taken for a constant."""
    count = batch or 2
    where = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    if uint8:
        return torch.zeros(count, image_size, image_size, 3, dtype=torch.uint8, device=where)
    return torch.zeros(count, 3, image_size, image_size, device=where)


def free_batch() -> tuple[dict[int, object]]:
    """The `dynamic_shapes` of a function of one tensor whose first axis is free."""
    return ({0: torch.export.Dim("batch", min=1)},)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporters' reports about their own passes out of our log."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx", "torch.export")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)
