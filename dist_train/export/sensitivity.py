"""What each layer costs in int8: the embeddings with that layer alone in int8, beside those in float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from dist_train.errors import WorkError
from dist_train.evaluate.tables import Cell, Table
from dist_train.export.convention import Convention
from dist_train.export.pictures import batches
from dist_train.export.quantize import StaticQuantizer, static_quantizer
from dist_train.export.runtime import INPUT_NAME
from dist_train.runtime.progress import progress_bar

MEASURED = 64
"""Pictures that the embeddings are compared on."""
_SHOWN = 10


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs.

    Attributes:
        node: its name in the graph.
        operation: e.g. `Conv`.
        weights: name of its weights; empty where it has none.
        cost: 1 - cosine of the embeddings, in the mean over pictures.
    """

    node: str
    operation: str
    weights: str
    cost: float


def rank_layers(
    source: Path, convention: Convention, images: Tensor, batch: int | None = None, *, quiet: bool = False
) -> list[LayerCost]:
    """What each layer costs in int8, the dearest first.

    The layers are quantised one at a time, by the same ranges of activations. Costs of layers together are not the sum
    of these; what comes of leaving some in float is measured afterwards.

    Args:
        source: float32 ONNX file.
        convention: what it takes.
        images: real pictures, float32 [N, 3, S, S] in [-1, 1], to calibrate with; some of them, evenly spread, are
            those that embeddings are compared on.
        batch: number of pictures that the file takes; None for any.
        quiet: show no bar.

    Raises:
        UserError, WorkError: as `quantize_static`.
    """
    step = max(1, len(images) // MEASURED)
    seen = images[::step][: MEASURED if batch is None else max(1, MEASURED // batch) * batch]
    if batch is not None and len(seen) < batch:
        seen = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
    with static_quantizer(source, convention, images, batch) as quantizer:
        whole = [*batches(seen[: len(seen) // (batch or 1) * (batch or 1)], convention, batch or 16)]
        plain = _unit(onnx.load(quantizer.path).SerializeToString(), whole)
        layers = quantizer.layers()
        weights = {each.name for each in onnx.load(quantizer.path, load_external_data=False).graph.initializer}
        costs = [
            LayerCost(
                node.name,
                node.op_type,
                next((name for name in node.input if name in weights), ""),
                _cost(quantizer, node.name, whole, plain),
            )
            for node in progress_bar(layers, unit=" layers", desc="sensitivity", disable=quiet)
        ]
    return sorted(costs, key=lambda each: -each.cost)


def _cost(
    quantizer: StaticQuantizer, node: str, whole: Sequence[NDArray[np.float32]], plain: NDArray[np.float64]
) -> float:
    rows = _unit(quantizer.quantized(only=[node]).SerializeToString(), whole)
    cost = float(np.mean(1 - np.sum(rows * plain, axis=1)))
    if not np.isfinite(cost):
        raise WorkError(f"layer {node} in int8 gives embeddings that are not finite or zero; the model is damaged")
    return cost


def _unit(model: bytes, whole: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Unit embeddings [N, D] of batches by a model in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rows = np.concatenate([session.run(None, {INPUT_NAME: batch})[0] for batch in whole]).astype(np.float64)
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def costs_table(costs: Sequence[LayerCost], left_float: Sequence[str]) -> Table:
    """The dearest layers; those that stay in float are marked."""
    shown = costs[: max(_SHOWN, len(left_float))]
    total = sum(each.cost for each in costs)
    rows = [
        [
            Cell(each.weights or each.node),
            Cell(each.operation),
            Cell(f"{each.cost:.2e}"),
            Cell(f"{100 * each.cost / total:.0f} %" if total else ""),
            Cell("float32" if each.node in left_float else "int8"),
        ]
        for each in shown
    ]
    rest = f"{len(costs) - len(shown)} further layers cost less each." if len(costs) > len(shown) else ""
    heads = ["layer", "operation", "1 - cosine", "share", "stays"]
    return Table("What each layer alone costs in int8", heads, rows, [rest] if rest else [])
