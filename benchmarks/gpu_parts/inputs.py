"""Pictures from bytes: on the host, by torchvision on the device, and by DALI; images a second."""

import importlib.util
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.gpu_parts.bench import Bench
from benchmarks.pictures import SIDE, jpeg

WITHOUT = "not installed here: "


def run(bench: Bench) -> None:
    """Measure each way that there is."""
    packed = [jpeg(number) for number in range(8 if bench.small else 128)]
    seconds = 0.1 if bench.small else 1.0
    with bench.case("OpenCV, one thread, decode only"):
        cv2.setNumThreads(1)
        arrays = [np.frombuffer(each, np.uint8) for each in packed]
        ms = bench.ms(lambda: [cv2.imdecode(each, cv2.IMREAD_COLOR) for each in arrays], seconds)
        bench.line("OpenCV, one thread, decode only", images_s=1e3 * len(packed) / ms)
    case = "torchvision, decode only"
    if importlib.util.find_spec("torchvision") is None:
        bench.line(case, skipped=f"{WITHOUT}torchvision")
    else:
        with bench.case(case):
            from torchvision.io import ImageReadMode, decode_jpeg

            tensors = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in packed]

            def decode() -> list[torch.Tensor]:
                found: list[torch.Tensor] = decode_jpeg(tensors, mode=ImageReadMode.RGB, device=bench.device)
                return found

            near = decode()[0].cpu().permute(1, 2, 0).numpy().astype(int)
            off = float(np.abs(near - cv2.imdecode(arrays[0], cv2.IMREAD_COLOR)[:, :, ::-1]).mean())
            ms = bench.ms(decode, seconds)
            bench.line(case, ok=off < 3, images_s=1e3 * len(packed) / ms, mean_off_levels=off, side=SIDE)
    for backend in ("opencv", "dali"):
        case = f"batches of training by {backend}"
        missing = [name for name in ("pyarrow", "pydantic", "psutil") if importlib.util.find_spec(name) is None]
        if backend == "dali" and not (bench.cuda and there("nvidia.dali")):
            bench.line(case, skipped=f"{WITHOUT}nvidia.dali" if bench.cuda else "needs a GPU")
        elif missing:
            bench.line(case, skipped=WITHOUT + ", ".join(missing))
        elif bench.enough(case, 0.3 if bench.small else 8):
            with bench.case(case):
                bench.line(case, images_s=rate(bench, backend, seconds), side=SIDE)


def there(module: str) -> bool:
    """Whether a module of a package can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def rate(bench: Bench, backend: str, seconds: float) -> float:
    """Images a second that a loader brings to the device, decoded, augmented and normalised."""
    from data_prep.shards import ShardWriter, write_set
    from dist_train.data.config import DataConfig
    from dist_train.data.loader import build_loader

    count, batch = (64, 8) if bench.small else (2048, 256)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ShardWriter(folder / "input-000000.tar") as writer:
            for number in range(count):
                writer.write(f"{number:06d}", jpeg(number % 64), number % 8)
        write_set(folder, SIDE, [str(number) for number in range(8)], [count // 8] * 8, [writer.shard])
        config = DataConfig.model_validate({"path": name, "backend": backend, "workers": 0 if bench.small else None})
        with build_loader(
            config, batch_size=batch, rank=0, world_size=1, seed=1, start_position=0, device=bench.device,
            bad_samples_path=folder / "bad.jsonl",
        ) as loader:  # fmt: skip
            for _ in range(2 if bench.small else 8):
                next(loader)
            bench.wait()
            begin, batches = time.perf_counter(), 0
            while time.perf_counter() - begin < 2 * seconds:
                next(loader)
                batches += 1
            bench.wait()
            return batches * batch / (time.perf_counter() - begin)
