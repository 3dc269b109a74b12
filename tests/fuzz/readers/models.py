"""ONNX files."""

import random
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from dist_train.evaluate.models import load_model
from tests.embed.models import write_model
from tests.evaluate.models import write_color_model
from tests.fuzz.mutations import BYTES
from tests.fuzz.reader import Reader, Scene


@lru_cache
def _models() -> list[Scene]:
    with tempfile.TemporaryDirectory() as scratch:
        first = write_color_model(Path(scratch) / "color.onnx").read_bytes()
        second = write_model(Path(scratch) / "cells.onnx").read_bytes()
    return [Scene({"m.onnx": data}, "m.onnx") for data in (first, second)]


def change_model(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """A model of other shapes, types, operators and versions."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # protobuf's own kinds
        return content
    graph = model.graph
    match chance.randrange(6):
        case 0 if graph.input:
            shape = chance.choice([*graph.input, *graph.output]).type.tensor_type.shape
            if shape.dim:
                chance.choice(list(shape.dim)).dim_value = chance.choice((0, -1, 1, 2, 2**31, 2**62))
        case 1 if graph.input:
            chance.choice(list(graph.input)).type.tensor_type.elem_type = chance.randrange(24)
        case 2 if graph.initializer:
            tensor = chance.choice(list(graph.initializer))
            tensor.dims[:] = chance.choice(([], [2**31, 2**31], [-1], [0], [1, 1, 1]))
        case 3 if graph.node:
            chance.choice(list(graph.node)).op_type = chance.choice(("Loop", "Sqrt", "Nothing", "Expand", "Pad", ""))
        case 4:
            model.opset_import[0].version = chance.choice((0, 1, 7, 999, -1))
        case _:
            entry = model.metadata_props.add()
            entry.key = chance.choice(("image_size", "embedding_dim", "input_type", "input_mean", "input_std"))
            entry.value = chance.choice(("-1", "x", "1e999", "nan", "0", "9" * 30, "\x1b[2J", "uint8"))
    return model.SerializeToString()


def _embed(home: Path) -> None:
    model = load_model(home / "m.onnx", torch.device("cpu"))
    if model.image_size <= 1024:
        model.embed(torch.zeros(2, 3, model.image_size, model.image_size))
        model.embed(torch.zeros(1, 3, model.image_size, model.image_size))


READERS = (Reader("model .onnx", _models, _embed, (change_model,) * 6 + BYTES),)
