"""The head's kernels compiled for GPUs without a GPU: registers, spills and shared memory of their variants.

    python -m tests.head.compiled            all variants for all chips, in two processes; `make gpu-kernels`
    python -m tests.head.compiled --chip 90

Heads of many settings make a step here, and what they would launch is written down instead of launched. So the
variants are those that the head asks for, with its own tiles, types and alignments. Exit status 1 if a register is
spilled or a chip's memory is exceeded.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dist_train.head import Head, HeadConfig, fused_update, kernel_weights
from dist_train.head.kernels.update import update_kernel
from dist_train.head.kernels.weights import weights_kernel

KERNELS = {"weights": weights_kernel, "update": update_kernel}
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Most shared memory that a block may have on A100, H100 and B200 (CUDA C++ Programming Guide, technical
specifications per compute capability)."""

CLASSES = 64
HEADS: dict[str, dict[str, Any]] = {
    "arcface, momentum": {},
    "arcface, momentum, 3 centers": {"centers_per_class": 3},
    "arcface, momentum, bfloat16, 3 centers": {"centers_per_class": 3, "dtype": "bfloat16", "sample_rate": 0.5},
    "four labels, threshold, sgd": {"labels": 4, "interclass_threshold": 0.3, "momentum": 0.0, "sample_rate": 0.5},
    "eight labels, threshold, 3 centers, sgd, bfloat16": {
        "labels": 8, "interclass_threshold": 0.3, "centers_per_class": 3, "momentum": 0.0, "dtype": "bfloat16",
        "sample_rate": 0.5,
    },
    "scale 100, momentum, bfloat16": {"scale": 100.0, "dtype": "bfloat16", "sample_rate": 0.5},
    "threshold, adamw": {"interclass_threshold": 0.3, "optimizer": "adamw", "sample_rate": 0.5},
    "curricularface, adamw, bfloat16": {
        "margin": "curricularface", "optimizer": "adamw", "dtype": "bfloat16", "sample_rate": 0.5,
    },
    "curricularface, threshold, 3 centers, adamw, bfloat16": {
        "margin": "curricularface", "interclass_threshold": 0.3, "centers_per_class": 3, "optimizer": "adamw",
        "dtype": "bfloat16", "sample_rate": 0.5,
    },
    "softmax, rowwise_adagrad": {"margin": "softmax", "optimizer": "rowwise_adagrad", "sample_rate": 0.5},
    "arcface, rowwise_adagrad, bfloat16": {"optimizer": "rowwise_adagrad", "dtype": "bfloat16", "sample_rate": 0.5},
    "softmax, 16 centers, adamw": {"margin": "softmax", "centers_per_class": 16, "optimizer": "adamw"},
    "64 labels": {"labels": 64},
    "64 labels, 33 samples": {"labels": 64, "samples": 33},
    "64 labels, threshold, 2 centers, 33 samples, 100 numbers": {
        "labels": 64, "interclass_threshold": 0.3, "centers_per_class": 2, "samples": 33, "dim": 100,
    },
    "threshold, 33 samples, 37 rows at a time": {"interclass_threshold": 0.3, "samples": 33, "block_rows": 37},
    "2 centers, 33 samples": {"centers_per_class": 2, "samples": 33},
    "100 numbers, adamw": {"dim": 100, "optimizer": "adamw"},
    "33 samples, 100 numbers": {"samples": 33, "dim": 100},
    "curricularface, 33 samples": {"margin": "curricularface", "samples": 33},
    "curricularface, threshold, 2 centers, 100 numbers": {
        "margin": "curricularface", "interclass_threshold": 0.3, "centers_per_class": 2, "dim": 100,
    },
    "softmax, 2 centers, 33 samples": {"margin": "softmax", "centers_per_class": 2, "samples": 33},
    "4,096 numbers, adamw, bfloat16": {"dim": 4096, "optimizer": "adamw", "dtype": "bfloat16"},
    **{
        f"a large seed, bfloat16, {name}": {"seed": 1 << 30, "dtype": "bfloat16"} | optimizer
        for name, optimizer in {
            "momentum": {}, "sgd": {"momentum": 0.0}, "rowwise_adagrad": {"optimizer": "rowwise_adagrad"},
            "adamw": {"optimizer": "adamw"},
        }.items()
    },
}  # fmt: skip
"""Settings by what is special about them, with those of `launches_of`; each optimizer with tables of either type."""


class Launch(NamedTuple):
    """What the compiler needs to know of a launch.

    Attributes:
        kernel: its name in `KERNELS`.
        signature: each argument's type.
        constants: values of the arguments that are known at compile time.
        aligned: places of the arguments that are multiples of 16.
        options: warps and stages.
    """

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, int], ...]


class Resources(NamedTuple):
    """What a compiled kernel takes.

    Attributes:
        registers: of a thread.
        spilled: bytes of stack and local memory of a thread, where registers go that the chip has not.
        shared: bytes of a block.
        tensor_cores: products in its assembly that tensor cores work off.
    """

    registers: int
    spilled: int
    shared: int
    tensor_cores: int


class _Recorder:
    """Stands in a kernel's place and writes launches down."""

    def __init__(self, name: str, launches: list[Launch]) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._launched

    def _launched(self, *args: Any, **more: Any) -> None:
        kernel = KERNELS[self.name]
        values = dict(zip(kernel.arg_names, args, strict=False)) | more
        options = tuple((name, values.pop(name)) for name in sorted(set(values) - set(kernel.arg_names)))
        constants, signature, aligned = {}, {}, []
        for place, parameter in enumerate(kernel.params):
            value = values[parameter.name]
            special = isinstance(value, int) and not parameter.do_not_specialize
            if parameter.is_constexpr or (special and value == 1):
                constants[parameter.name], signature[parameter.name] = value, "constexpr"
                continue
            signature[parameter.name] = type_of(value)
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if (special or isinstance(value, torch.Tensor)) and number % 16 == 0:
                aligned.append(place)
        self.launches.append(
            Launch(self.name, tuple(signature.items()), tuple(constants.items()), tuple(aligned), options)
        )


TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64", torch.bool: "i1"}


def type_of(value: Any) -> str:
    """Triton's name of an argument's type."""
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def launches_of(
    chip: int, labels: int = 1, samples: int = 32, dim: int = 512, seed: int = 0, **settings: Any
) -> list[Launch]:
    """What a head would launch in a step on a chip of compute capability `chip` / 10.

    Args:
        chip: its capability.
        labels: of a sample.
        samples: G.
        dim: numbers of an embedding.
        seed: of the head; its roundings' key has 64 bits with a large one and 32 with a small one.
        settings: keys of the `head` section.
    """
    found: list[Launch] = []
    weights, update = (_Recorder(name, found) for name in KERNELS)
    with (
        patch("dist_train.head.softmax.kernel_dtype", lambda *_: torch.bfloat16),
        patch("dist_train.head.update.updates_fused", lambda _: True),
        patch.object(kernel_weights, "capability", lambda _: chip),
        patch.object(kernel_weights, "weights_kernel", weights),
        patch.object(fused_update, "update_kernel", update),
    ):
        config = HeadConfig(arithmetic="bfloat16", **settings)
        head = Head(config, CLASSES, dim, group=None, rank=0, world_size=1, device=torch.device("cpu"), seed=seed)
        chosen = torch.arange(samples * labels).view(samples, labels) % CLASSES
        embeddings = torch.randn(samples, dim, requires_grad=True)
        head(embeddings, chosen if labels > 1 else chosen[:, 0]).backward()
        head.step(0.1, measure=True, proceed=torch.tensor(True))
        head.close()
    return found


@cache
def variants(chip: int) -> dict[Launch, str]:
    """Every launch that `HEADS` ask for on a chip, and whose it is."""
    found: dict[Launch, str] = {}
    for name, settings in HEADS.items():
        for launch in launches_of(chip, **settings):
            found.setdefault(launch, name)
    return found


def compiled(launch: Launch, chip: int) -> Resources:
    """The resources of a launch on a chip of compute capability `chip` / 10."""
    source = ASTSource(
        KERNELS[launch.kernel],
        dict(launch.signature),
        dict(launch.constants),
        {(place,): [["tt.divisibility", 16]] for place in launch.aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=dict(launch.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    products = len(
        re.findall(r"^\s*(?:@\S+ )?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", made.asm["ptx"], re.MULTILINE)
    )
    return Resources(usage["REG"], usage["STACK"] + usage["LOCAL"], made.metadata.shared, products)


def faults(launch: Launch, chip: int, found: Resources) -> list[str]:
    """What is wrong with a compiled kernel; nothing, if all is well."""
    wrong = []
    if found.spilled:
        wrong.append(f"{found.spilled} bytes a thread are spilled, expected 0")
    if found.shared > SHARED_BYTES[chip]:
        wrong.append(f"{found.shared} bytes of shared memory, a block has {SHARED_BYTES[chip]}")
    if launch.kernel == "weights" and not found.tensor_cores:
        wrong.append("no product is the tensor cores'")
    return wrong


def line(launch: Launch, name: str, chip: int, found: Resources, seconds: float) -> str:
    """A row of the table, with what is wrong at its end."""
    what = name + (", largest" if dict(launch.constants).get("LARGEST") else "")
    what += "".join(f": {each}" for each in faults(launch, chip, found))
    numbers = f"{found.registers:9} {found.spilled:7} {found.shared:7} {found.tensor_cores:8} {seconds:7.1f}"
    return f"{launch.kernel:8} sm_{chip:<4}{numbers}  {what}\n"


def _timed(launch: Launch, chip: int) -> tuple[Resources, float]:
    start = time.perf_counter()
    return compiled(launch, chip), time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", type=int, action="append", choices=list(SHARED_BYTES), help="only this; repeat")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    chips = arguments.chip or list(SHARED_BYTES)
    every = [(launch, name, chip) for chip in chips for launch, name in variants(chip).items()]
    sys.stdout.write(f"triton {triton.__version__}; spills in bytes a thread, shared memory in bytes a block\n")
    sys.stdout.write("kernel   chip   registers spilled  shared products seconds  head\n")
    failed = 0
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        waiting = [pool.submit(_timed, launch, chip) for launch, _, chip in every]
        for (launch, name, chip), result in zip(every, waiting, strict=True):
            found, seconds = result.result()
            failed += bool(faults(launch, chip, found))
            sys.stdout.write(line(launch, name, chip, found, seconds))
            sys.stdout.flush()
    sys.stdout.write(f"{len(every)} compiled, {failed} of them do not fit\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
