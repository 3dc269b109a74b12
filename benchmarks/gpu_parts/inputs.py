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

            def decode(pictures: list[torch.Tensor]) -> list[torch.Tensor]:
                found: list[torch.Tensor] = decode_jpeg(pictures, mode=ImageReadMode.RGB, device=bench.device)
                return found

            tensors = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in (smooth_jpeg(), *packed)]
            # A file has colours in half the resolution. What decoders put between them differs where they change from
            # pixel to pixel, as in the pictures of noise that are timed, which says nothing about right or wrong.
            off, noise_off = map(off_levels, (smooth_jpeg(), packed[0]), decode(tensors[:2]))
            ms = bench.ms(lambda: decode(tensors[1:]), seconds)
            figures = {"mean_off_levels": off, "noise_off_levels": noise_off}
            bench.line(case, ok=off < 3, images_s=1e3 * len(packed) / ms, **figures, side=SIDE)
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


def smooth_jpeg() -> bytes:
    """A picture whose colours change slowly."""
    coarse = np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))[1])


def off_levels(packed: bytes, found: torch.Tensor) -> float:
    """Mean difference of a decoded picture, [3, height, width], red first, from OpenCV's, in levels of 255."""
    expected = cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    return float(np.abs(found.cpu().permute(1, 2, 0).numpy().astype(int) - expected).mean())


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
