"""How far `headcount launch plan` is from what is measured, and from published figures.

    python benchmarks/plan.py                  # all cases
    python benchmarks/plan.py --case memory

memory: what a head adds to a process on this machine (one rank, CPU), planned and measured. traffic: bytes that the
operations of a head's step touch, planned and counted. published: images/s of arcface_torch's table for 8 V100, R50,
128 pictures a GPU, planned for our head, and for an ordinary head with dense gradients whose traffic is counted on
`dense_head.py`. `ours` is what is planned, `baseline` what it is held against, `ratio` the quotient ours/baseline.
"""

import argparse
import math
import multiprocessing as mp
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from dense_head import DenseHead
from line import print_line
from traffic import Traffic

from dist_train.backbones import BackboneConfig
from dist_train.head import Head, HeadConfig
from launch.plan_hardware import GPUS, backbone_cost
from launch.plan_head import HeadShape, head_flops, head_memory, head_traffic, staged_rows
from launch.plan_model import Setup
from launch.plan_seconds import BANDWIDTH_SHARE, HEAD_FLOPS_SHARE, images_per_second, step_seconds

DIM, CPU = 512, torch.device("cpu")

# Identities, sample rate, images/s: arcface_torch's published table, 8 x V100-32GB, R50.
PUBLISHED = (
    (125_000, 0.1, 5004),
    (1_400_000, 0.1, 4738),
    (5_500_000, 0.1, 3975),
    (8_000_000, 0.1, 3565),
    (16_000_000, 0.1, 2679),
    (29_000_000, 0.1, 1855),
    (125_000, 1.0, 4824),
    (1_400_000, 1.0, 3043),
    (5_500_000, 1.0, 1389),
)

# Classes, samples of a forward pass, forward passes of a step, head.
MEMORY: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
    (1_000_000, 128, 1, {"sample_rate": 0.1}),
    (400_000, 128, 1, {"sample_rate": 1.0}),
    (2_000_000, 128, 1, {"sample_rate": 0.1, "dtype": "bfloat16", "optimizer": "rowwise_adagrad"}),
    (500_000, 512, 1, {"sample_rate": 0.3, "optimizer": "adamw"}),
    (1_000_000, 128, 2, {"sample_rate": 0.1}),
    (1_000_000, 128, 1, {"sample_rate": 0.1, "storage": "host"}),
    (1_000_000, 128, 2, {"sample_rate": 0.1, "storage": "host"}),
)

TRAFFIC: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {}),
    (1, {"sample_rate": 0.3}),
    (1, {"sample_rate": 0.3, "dtype": "bfloat16", "optimizer": "rowwise_adagrad"}),
    (1, {"sample_rate": 0.3, "optimizer": "adamw"}),
    (3, {"sample_rate": 0.3, "logits_budget_mb": 4}),
)


# Owned rows, samples, D, sample rate: where the ordinary head's traffic is counted.
COUNTED = (
    (20_000, 32, 64, 0.2),
    (20_000, 96, 64, 0.2),
    (40_000, 32, 64, 0.1),
    (20_000, 32, 192, 0.2),
    (20_000, 64, 64, 0.5),
    (30_000, 48, 128, 0.3),
)


def build(config: HeadConfig, classes: int) -> Head:
    """A head on this rank alone."""
    return Head(config, classes, DIM, group=None, rank=0, world_size=1, device=CPU, seed=1)


def run_step(head: Head, classes: int, samples: int, passes: int) -> None:
    """One step of random embeddings."""
    for _ in range(passes):
        embeddings = torch.randn(samples, DIM).requires_grad_()
        head(embeddings, torch.randint(0, classes, (samples,))).backward()
    head.step(0.1)


def private_mb(field: str) -> float:
    """This process's memory by /proc, without pages of files, in MB of 10**6 bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return (int(fields[field].split()[0]) - int(fields["RssFile"].split()[0])) * 1024 / 1e6


def measure(results: Any, classes: int, samples: int, passes: int, settings: dict[str, Any]) -> None:
    """What a head and its steps add to this process's memory."""
    torch.set_num_threads(1)
    run_step(build(HeadConfig(**settings | {"storage": "device"}), 1000), 1000, samples, passes)  # what libraries need
    before = private_mb("VmRSS")
    head = build(HeadConfig(**settings), classes)
    for _ in range(4):
        run_step(head, classes, samples, passes)
    results.put(private_mb("VmHWM") - before)
    head.close()


def memory(case: str) -> None:
    """Planned and measured memory of the head."""
    context = mp.get_context("spawn")
    for classes, samples, passes, settings in MEMORY:
        results = context.Queue()
        process = context.Process(target=measure, args=(results, classes, samples, passes, settings))
        process.start()
        measured = results.get()
        process.join()
        shape = HeadShape(HeadConfig(**settings), classes, DIM, samples, passes, cpu=True)
        parts = head_memory(shape)
        if shape.staged:  # host memory, here the same as the device's
            parts["class centers and state"] = classes * shape.class_bytes
            parts["copies of chosen rows"] = staged_rows(shape) * shape.class_bytes
        planned = sum(parts.values()) / 1e6
        run = {"classes": classes, "samples": samples, "forward_passes": passes, **settings}
        emit(case, planned, measured, "MB", run, parts={name: round(part / 1e6, 1) for name, part in parts.items()})


def traffic(case: str) -> None:
    """Planned and counted bytes of the head's operations."""
    classes, samples = 40_000, 128
    for passes, settings in TRAFFIC:
        # Blocks as large as on a GPU, where the batch's embeddings are not read again for every 1,024 rows.
        config = HeadConfig(**settings | {"block_rows": 16_384})
        head = build(config, classes)
        run_step(head, classes, samples, passes)
        with Traffic() as counted:
            run_step(head, classes, samples, passes)
        shape = HeadShape(config, classes, DIM, samples, passes, cpu=True)
        run = {"classes": classes, "samples": samples, "forward_passes": passes, **settings}
        flops = {"planned_flops": head_flops(shape), "counted_flops": counted.flops}
        emit(case, head_traffic(shape) / 1e6, counted.bytes / 1e6, "MB/step", run, **flops)


def dense_coefficients() -> np.ndarray:
    """Bytes of the ordinary head's step per (chosen row x sample, chosen row x D, owned row x D, owned row).

    Counted at sizes small enough for this machine; bytes are linear in these four.
    """
    sizes, counted = [], []
    for rows, samples, dim, rate in COUNTED:
        head = DenseHead(rows, dim, rate, 0, 1)
        embeddings, labels = torch.randn(samples, dim), torch.randint(0, rows, (samples,))
        head.step(embeddings, labels)
        with Traffic() as found:
            head.step(embeddings, labels)
        chosen = rate * rows
        sizes.append([chosen * samples, chosen * dim, rows * dim, rows])
        counted.append(found.bytes)
    coefficients: np.ndarray = np.linalg.lstsq(np.array(sizes, float), np.array(counted, float), rcond=None)[0]
    return coefficients


def published(case: str) -> None:
    """Planned and published images/s."""
    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=f"file://{directory}/ranks", rank=0, world_size=1)
        coefficients = dense_coefficients()
        dist.destroy_process_group()
    gpu, backbone = GPUS["v100"], backbone_cost(BackboneConfig(name="iresnet50", embedding_dim=DIM), 112)
    for identities, rate, images_s in PUBLISHED:
        setup = Setup(
            identities=identities,
            gpus=8,
            gpus_per_node=8,
            gpu=gpu,
            memory_gib=gpu.memory_gib,
            network_gb_s=12.5,
            backbone=backbone,
            embedding_dim=DIM,
            image_size=112,
            batch=128,
            accumulation=1,
            half=True,
            strategy="ddp",
            moments=1,
            head=HeadConfig(sample_rate=rate),
        )
        seconds = step_seconds(setup)
        rows, chosen = setup.rows, rate * setup.rows
        moved = float(coefficients @ [chosen * setup.samples, chosen * DIM, rows * DIM, rows])
        dense = moved / (BANDWIDTH_SHARE * gpu.memory_gb_s * 1e9)
        dense += 6 * chosen * DIM * setup.samples / (HEAD_FLOPS_SHARE * gpu.float32_tflops * 1e12)
        ours = ("head", "draw of classes")  # that program's GPUs draw
        rest = math.fsum(value for name, value in seconds.items() if not name.startswith(ours))
        ordinary = setup.samples / (rest + dense)
        run = {"identities": identities, "sample_rate": rate, "gpus": "8 x V100-32GB", "backbone": "R50", "batch": 128}
        more = {
            "off_percent": round(100 * (images_per_second(setup) / images_s - 1), 1),
            "ordinary_head": round(ordinary),
            "ordinary_head_off_percent": round(100 * (ordinary / images_s - 1), 1),
        }
        emit(case, images_per_second(setup), images_s, "images/s", run, **more)


def emit(case: str, ours: float, baseline: float, unit: str, run: dict[str, Any], **more: Any) -> None:
    """Print a case's line."""
    ratio = round(ours / baseline, 3)
    line = {"benchmark": "plan", "case": case, "ours": round(ours, 1), "baseline": round(baseline, 1), "ratio": ratio}
    print_line(line | {"unit": unit, **more, "run": run | {"torch": torch.__version__}})


CASES: dict[str, Callable[[str], None]] = {"memory": memory, "traffic": traffic, "published": published}


def main() -> None:
    """Run one case or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    chosen = parser.parse_args().case
    for name in [chosen] if chosen else CASES:
        CASES[name](name)


if __name__ == "__main__":
    main()
