"""Where a step loses finite numbers: which layer, forward or backward, and for which samples."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dist_train.data.batch import Batch
from dist_train.replica.base import Replica

SHOWN = 8  # samples that are listed


Loss = Callable[[Tensor, Batch], Tensor]
"""Of embeddings [B, D] and the batch that they were made from: [], the mean over all ranks' samples."""


Draw = Callable[[Batch], None]
"""Called before each forward pass with its batch, see `draw` in `backbones.conventions`."""


def diagnose(replica: Replica, loss: Loss, draw: Draw, micro_batches: list[Batch]) -> str | None:
    """What is wrong on this rank, None where nothing is. A collective; the run is over afterwards.

    Args:
        replica: the backbone, with the weights that the step began with.
        loss: what embeddings are trained by; a collective.
        draw: lets the backbone draw what the step drew.
        micro_batches: this rank's share of the step.
    """
    found = None
    for batch in micro_batches:
        found = found or _in_input_or_weights(replica.backbone, batch) or _in_forward(replica, draw, batch)
    if replica.ranks.any(found is not None)[0]:
        return found
    # Every rank goes through all of them, since the loss needs all ranks.
    lost = [_in_backward(replica, loss, draw, batch) for batch in micro_batches]
    return next((one for one in lost if one), None)


def _in_input_or_weights(backbone: nn.Module, batch: Batch) -> str | None:
    if rows := _bad_rows(batch.images):
        return f"pictures are not finite: {_samples(batch, rows)}"
    for name, weight in backbone.named_parameters():
        if not weight.isfinite().all():
            return f"weight {name} is not finite"
    return None


@torch.no_grad()
def _in_forward(replica: Replica, draw: Draw, batch: Batch) -> str | None:
    first: list[str] = []

    def look(name: str, output: Tensor) -> None:
        if not first and (rows := _bad_rows(output)):
            first.append(f"layer {name} is the first whose output is not finite: {_samples(batch, rows)}")

    draw(batch)
    with _watched(replica.backbone, look):
        replica.embed(batch.images)
    return first[0] if first else None


def _in_backward(replica: Replica, loss: Loss, draw: Draw, batch: Batch) -> str | None:
    """As in a step; but gradients with respect to what lies between layers, which ranks do not exchange."""
    first: list[str] = []

    def look(name: str, output: Tensor) -> None:
        def look_at_gradient(gradient: Tensor) -> None:
            if not first and (rows := _bad_rows(gradient)):
                first.append(
                    f"layer {name} is the first, from the end, whose output has a gradient that is not finite: "
                    f"{_samples(batch, rows)}"
                )

        output.register_hook(look_at_gradient)

    draw(batch)
    images = batch.images.detach().requires_grad_()
    with _watched(replica.backbone, look):
        embeddings = replica.embed_alone(images)
    border = embeddings.detach().float().requires_grad_()
    gradient = torch.autograd.grad(loss(border, batch), border)[0]
    if rows := _bad_rows(gradient):
        return f"the head's gradient of embeddings is not finite: {_samples(batch, rows)}"
    weights = {name: p for name, p in replica.backbone.named_parameters() if p.numel() and p.requires_grad}
    found = torch.autograd.grad(
        embeddings, [images, *weights.values()], gradient.to(embeddings.dtype), allow_unused=True
    )
    for name, one in reversed(list(zip(weights, found[1:], strict=True))):
        if not first and one is not None and not one.isfinite().all():
            first.append(f"weight {name} is the first, from the end, whose gradient is not finite")
    return first[0] if first else None


@contextmanager
def _watched(backbone: nn.Module, look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While entered, `look` sees each layer's output, in the order in which they are made."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _inputs, output: look(name, output)

    leaves = [(name, module) for name, module in backbone.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _samples(batch: Batch, rows: list[int]) -> str:
    """Places in the sample order, and labels."""
    shown = rows[:SHOWN]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return (
        f"samples at positions {batch.positions[shown].tolist()}, labels {batch.host_labels[shown].tolist()}{more}, "
        f"of {len(batch.labels)}"
    )


def _bad_rows(tensor: Tensor) -> list[int]:
    """Rows of the batch that hold a NaN or infinity."""
    return (~tensor.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
