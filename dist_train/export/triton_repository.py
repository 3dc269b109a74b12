"""A model repository for NVIDIA's Triton Inference Server: pictures in, embeddings of unit length out."""

import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import onnx

from dist_train.errors import UserError
from dist_train.export.convention import Convention
from dist_train.export.onnx import save_onnx
from dist_train.export.runtime import OnnxModel
from dist_train.export.unit_onnx import with_unit_output
from dist_train.runtime.written import write_failures, write_text, written_directory

MAX_BATCH = 64  # pictures in one pass of the network, which computes their mirror images too
PREFERRED_BATCHES = (16, 32, 64)
QUEUE_DELAY_US = 2000  # how long a request waits for others
_BESIDE_PIXELS_BYTES = 1 << 16  # what a file may hold beside its pixels: colour profiles, notes of cameras
DECODERS = 2  # processes that decode
_VERSION = "1"
_TRITON_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


class _Tensor(NamedTuple):
    """An input or output in a configuration; the batch axis is not among its sides."""

    name: str
    kind: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{{ name: {_quoted(self.name)} data_type: {self.kind} dims: {list(self.dims)} }}"


def write_repository(model_path: Path, directory: Path) -> None:
    """Write three models, `headcount` (an ensemble), `decode` and `embed`, by rename of the whole directory.

    Args:
        model_path: a float, float16 or int8 file of `headcount export`, with a free batch axis.
        directory: of the repository; may be there if it is empty.

    Raises:
        UserError: a file of others, or one with a fixed batch; a directory with something in it.
        WorkError: the disk refuses.
    """
    check_repository(directory)
    model = OnnxModel(model_path, as_written=True)
    if model.foreign:
        raise UserError(
            f"--triton: model {model_path} states no convention of its pictures, so it is not of `headcount export`; "
            "give a run, or a file that was exported from one"
        )
    if "batch" in model.metadata:
        raise UserError(
            f"--triton: model {model_path} takes {model.metadata['batch']} pictures and no other number, but Triton "
            "makes batches of any; export it without --batch"
        )
    convention = model.convention
    proto = with_unit_output(onnx.load(model_path), convention)
    about = model.metadata | {"output": "unit-length embeddings of the picture and its mirror image together"}
    onnx.helper.set_model_props(proto, about)
    with write_failures(f"--triton {directory}"), written_directory(directory) as place:
        for name in ("headcount", "decode", "embed"):
            (place / name / _VERSION).mkdir(parents=True)
        save_onnx(proto, place / "embed" / _VERSION / "model.onnx")
        for source, target in (
            (files("dist_train.export") / "triton_decode.py", "model.py"),
            (files("dist_train.data") / "picture_header.py", "picture_header.py"),
        ):
            write_text(place / "decode" / _VERSION / target, source.read_text(encoding="utf-8"))
        write_text(place / "embed" / "config.pbtxt", _embed(convention))
        write_text(place / "decode" / "config.pbtxt", _decode(convention))
        write_text(place / "headcount" / "config.pbtxt", _ensemble(convention))


def check_repository(directory: Path) -> None:
    """Refuse a place that something is in, or that cannot be made.

    Raises:
        UserError: a file, or a directory that is not empty.
        WorkError: the disk refuses the directory that it is to lie in.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--triton {directory}: is a file; expected the name of a new directory")
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(
            f"--triton {directory}: is not empty, and a server may be using it; name a new directory, or remove it"
        )
    with write_failures(f"--triton {directory}"):
        directory.parent.mkdir(parents=True, exist_ok=True)


def _images(convention: Convention) -> _Tensor:
    side = convention.image_size
    dims = (3, side, side) if convention.layout == "NCHW" else (side, side, 3)
    return _Tensor("images", _TRITON_TYPES[convention.input_type], dims)


def _embeddings(convention: Convention, name: str) -> _Tensor:
    return _Tensor(name, "TYPE_FP32", (convention.embedding_dim,))


_PICTURE = _Tensor("picture", "TYPE_STRING", (1,))


def _embed(convention: Convention) -> str:
    return _lines(
        "# Pictures as the network takes them -> embeddings of unit length; the mirrored picture is added inside.",
        'name: "embed"',
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {MAX_BATCH}",
        f"input [ {_images(convention)} ]",
        f"output [ {_embeddings(convention, 'embeddings')} ]",
        "dynamic_batching {",
        f"  preferred_batch_size: {list(PREFERRED_BATCHES)}",
        f"  max_queue_delay_microseconds: {QUEUE_DELAY_US}",
        "}",
    )


def _decode(convention: Convention) -> str:
    metadata = convention.to_metadata()
    said = {key: metadata[key] for key in ("image_size", "input_type", "input_layout", "input_color")}
    said |= {key: metadata[key] for key in ("input_mean", "input_std")}
    # No encoder makes twice the size of the plain pixels; what is longer was made to keep a decoder busy.
    said["max_picture_bytes"] = str(2 * 3 * convention.image_size**2 + _BESIDE_PIXELS_BYTES)
    return _lines(
        "# An aligned face as JPEG, PNG or WebP -> what `embed` takes. The server's Python needs numpy and cv2.",
        'name: "decode"',
        'backend: "python"',
        f"max_batch_size: {MAX_BATCH}",
        f"input [ {_PICTURE} ]",
        f"output [ {_images(convention)} ]",
        f"instance_group [ {{ kind: KIND_CPU count: {DECODERS} }} ]",
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}"
            for key, text in said.items()
        ),
    )


def _ensemble(convention: Convention) -> str:
    def step(model: str, taken: tuple[str, str], given: tuple[str, str]) -> str:
        maps = (
            f"{kind}_map {{ key: {_quoted(key)} value: {_quoted(value)} }}"
            for kind, (key, value) in (("input", taken), ("output", given))
        )
        return f"    {{ model_name: {_quoted(model)} model_version: -1 {' '.join(maps)} }}"

    return _lines(
        "# What clients ask: the bytes of an aligned face -> its embedding, of unit length.",
        'name: "headcount"',
        'platform: "ensemble"',
        f"max_batch_size: {MAX_BATCH}",
        f"input [ {_PICTURE} ]",
        f"output [ {_embeddings(convention, 'embedding')} ]",
        "ensemble_scheduling {",
        "  step [",
        step("decode", ("picture", "picture"), ("images", "images")) + ",",
        step("embed", ("images", "images"), ("embeddings", "embedding")),
        "  ]",
        "}",
    )


def _quoted(text: str) -> str:
    """A string of protobuf's text format; JSON's escapes are among its own."""
    return json.dumps(text)


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"
