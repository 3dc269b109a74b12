"""int8 forms of an ONNX model by onnxruntime's quantiser."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from dist_train.errors import UserError, WorkError
from dist_train.evaluate.calibration import THRESHOLDS_KEY, WEIGHTS_KEY
from dist_train.export.convention import Convention
from dist_train.export.onnx import save_onnx
from dist_train.export.pictures import batches
from dist_train.export.runtime import INPUT_NAME

logger = logging.getLogger(__name__)

# Scales for each channel came with opset 13; onnxruntime's own operators know no newer one than 23.
OPSETS = range(13, 24)
MIN_PICTURES = 32
STATIC_OPS = ["Conv", "Gemm", "MatMul"]


def quantize_static(
    source: Path,
    target: Path,
    convention: Convention,
    images: Tensor,
    *,
    left_float: Sequence[str] = (),
    batch: int | None = None,
) -> None:
    """Write `source` with int8 weights and uint8 activations whose ranges come from real pictures.

    QDQ form: scales for each channel of the weights, one for each tensor of activations (the smallest and largest value
    seen). Convolutions, products of matrices and, in networks of convolutions, additions compute in integers; what lies
    between stays in float32. uint8 activations, since onnxruntime has no fast path for int8 ones on x86. Weights take 7
    of their 8 bits: on x86 without VNNI its kernels add two products in 16 bits, which overflow with 8 (onnxruntime,
    "Quantize ONNX models").

    Args:
        source: float32 ONNX file; the exporter has folded its BatchNorms.
        target: of the int8 file.
        convention: what the model takes.
        images: real pictures to calibrate with, float32 [N, 3, S, S] in [-1, 1].
        left_float: names of nodes that stay in float32.
        batch: number of pictures that the file takes; None for any.

    Raises:
        UserError: an opset that int8 does not go with, or too few pictures.
        WorkError: onnxruntime's quantiser failed, or the file cannot be written.
    """
    with static_quantizer(source, convention, images, batch) as quantizer:
        model = quantizer.quantized(exclude=left_float)
    more = {"quantization": "int8 static", "calibration_pictures": str(len(images))}
    _save(model, source, target, more | ({"float_layers": " ".join(left_float)} if left_float else {}))


class StaticQuantizer:
    """A float32 file, ready to be quantised in one way and another by the same pictures; made by `static_quantizer`.

    Args:
        prepared: the file with its shapes, in a folder that takes more files.
        batches: makes the arrays to calibrate with.

    Attributes:
        path: of the prepared file.
    """

    def __init__(self, prepared: Path, batches: Callable[[], Iterator[np.ndarray]]) -> None:
        self.path, self._batches = prepared, batches
        self._ops = _static_ops(prepared)

    def layers(self) -> list[onnx.NodeProto]:
        """The nodes that would compute in integers, in the order of the graph."""
        graph = onnx.load(self.path, load_external_data=False).graph
        return [node for node in graph.node if node.op_type in self._ops]

    def quantized(self, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> onnx.ModelProto:
        """The model in int8.

        Args:
            only: names of the nodes that are quantised; empty for all.
            exclude: names of those that are not.
        """
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
        from onnxruntime.quantization import quantize_static as quantize

        left = self._batches()

        class Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
            """Hands out the batches one by one."""

            def get_next(self) -> dict[str, np.ndarray] | None:
                batch = next(left, None)
                return None if batch is None else {INPUT_NAME: batch}

        made = self.path.with_name("int8.onnx")
        # Ranges of activations are the same whatever is quantised; versions before 1.30 cannot keep them.
        kept = "calibration_cache_path" in signature(quantize).parameters
        cache = {"calibration_cache_path": self.path.with_name("ranges.json")} if kept else {}
        quantize(
            self.path,
            made,
            Pictures(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=self._ops,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_quantize=list(only) or None,
            nodes_to_exclude=list(exclude) or None,
            **cache,
        )
        return onnx.load(made)


@contextmanager
def static_quantizer(
    source: Path, convention: Convention, images: Tensor, batch: int | None = None
) -> Iterator[StaticQuantizer]:
    """A quantiser of `source`, whose files are gone after the block; see `quantize_static`."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if len(images) < MIN_PICTURES:
        raise UserError(f"{len(images)} pictures to calibrate int8 with, expected at least {MIN_PICTURES}")
    check_opset(source)
    whole = images
    if batch is not None:  # the last batch is filled with its last picture
        whole = images[torch.arange(-(-len(images) // batch) * batch).clamp(max=len(images) - 1)]
    with tempfile.TemporaryDirectory() as name, _quantizing(source):
        prepared = Path(name) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        yield StaticQuantizer(prepared, lambda: batches(whole, convention, batch or 16))


def _static_ops(path: Path) -> list[str]:
    """What computes in integers.

    With Add in integers too, blocks of a residual network meet without a way over float32. Those of a transformer meet
    at a LayerNormalization, which is in float32; their sums would lose precision for nothing.
    """
    nodes = onnx.load(path, load_external_data=False).graph.node
    return STATIC_OPS + ([] if any(node.op_type == "LayerNormalization" for node in nodes) else ["Add"])


def quantize_dynamic(source: Path, target: Path) -> None:
    """Write `source` with 8-bit weights; the ranges of activations are found anew for each batch.

    It needs no pictures and is as small as the static form, but slower than float32 on
    the CPU it was measured on (benchmarks/export.py).

    Raises:
        UserError: an opset that int8 does not go with.
        WorkError: onnxruntime's quantiser failed, or the file cannot be written.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    check_opset(source)
    with tempfile.TemporaryDirectory() as name, _quantizing(source):
        made = Path(name) / "int8.onnx"
        # onnxruntime's integer convolution takes unsigned weights with one scale only.
        quantize(source, made, weight_type=QuantType.QUInt8)
        model = onnx.load(made)
    _save(model, source, target, {"quantization": "int8 dynamic"})


def check_opset(path: Path) -> None:
    """Look whether a model's operator set can be quantised.

    Raises:
        UserError: it cannot.
    """
    model = onnx.load(path, load_external_data=False)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise UserError(
            f"int8 of {path}: opset {opset}, expected {OPSETS[0]} to {OPSETS[-1]}; export it with --opset 18"
        )


def _save(model: onnx.ModelProto, source: Path, target: Path, more: dict[str, str]) -> None:
    stated = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    for key in (WEIGHTS_KEY, THRESHOLDS_KEY):  # other embeddings, whose errors are to be measured anew
        stated.pop(key, None)
    del model.metadata_props[:]  # the quantiser's own marks among them
    onnx.helper.set_model_props(model, stated | more)
    save_onnx(model, target)
    logger.info("wrote %s: %.1f MB", target, target.stat().st_size / 1e6)


@contextmanager
def _quantizing(source: Path) -> Iterator[None]:
    """Keep the quantiser's reports out of our log, and say in one line what it could not do."""
    import onnxruntime

    level = logging.root.level
    onnxruntime.set_default_logger_severity(3)
    logging.root.setLevel(logging.ERROR)  # the quantiser logs advice on the root logger
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, WorkError):
        raise
    except Exception as error:  # the quantiser and onnxruntime raise kinds without a common base
        reason = str(error).strip().splitlines()
        raise WorkError(f"int8 of {source}: {reason[0] if reason else type(error).__name__}") from error
    finally:
        logging.root.setLevel(level)
        onnxruntime.set_default_logger_severity(2)
