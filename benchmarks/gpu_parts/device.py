"""What the card does: matrix products by type, bandwidth of its memory and to the host. Floors for the other parts."""

import platform

import torch

from benchmarks.gpu_parts.bench import Bench

TYPES = {
    "bfloat16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}


def run(bench: Bench) -> None:
    """Measure each."""
    with bench.case("machine"):
        more = {}
        if bench.cuda:
            card = torch.cuda.get_device_properties(0)
            more = {
                "memory_gb": card.total_memory / 1e9,
                "multiprocessors": card.multi_processor_count,
                "capability": f"{card.major}.{card.minor}",
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        bench.line("machine", python=platform.python_version(), **more)
    side = 256 if bench.small else 8192
    for name, (dtype, precision) in TYPES.items():
        with bench.case(f"product {name}"):
            torch.set_float32_matmul_precision(precision)
            left, right = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
            out = torch.empty_like(left)
            ms = bench.device_ms(lambda left=left, right=right, out=out: torch.mm(left, right, out=out))
            bench.line(f"product {name}", ms=ms, tflops=2 * side**3 / ms / 1e9, side=side)
            del left, right, out
    torch.set_float32_matmul_precision("highest")
    count = 1 << (20 if bench.small else 30)
    with bench.case("copy"):
        source = torch.randint(256, (count,), dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)
        ms = bench.device_ms(lambda: target.copy_(source))
        bench.line("copy", ms=ms, gb_s=2 * count / ms / 1e6, mb=count / 1e6)
    with bench.case("from host"):
        near = torch.empty(count // 4, dtype=torch.uint8, device=bench.device)
        far = torch.ones(count // 4, dtype=torch.uint8, pin_memory=bench.cuda)
        there = bench.device_ms(lambda: near.copy_(far, non_blocking=True))
        back = bench.device_ms(lambda: far.copy_(near, non_blocking=True))
        bench.line("from host", to_device_gb_s=count / 4 / there / 1e6, to_host_gb_s=count / 4 / back / 1e6)


def floor_ms(bench: Bench, arithmetic: str, flops: float, moved: float) -> dict[str, float]:
    """Least milliseconds for `flops` operations of products and for `moved` bytes; empty where not measured."""
    product, copy = bench.measured("device", f"product {arithmetic}"), bench.measured("device", "copy")
    found = {}
    if "tflops" in product:
        found["product_floor_ms"] = flops / product["tflops"] / 1e9
    if "gb_s" in copy:
        found["bandwidth_floor_ms"] = moved / copy["gb_s"] / 1e6
    return found
