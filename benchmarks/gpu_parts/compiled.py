"""Images a second of whole training steps whose backbone is compiled: the last part, as a compiler takes minutes."""

from benchmarks.gpu_parts.backbone import channels_last, measure
from benchmarks.gpu_parts.bench import Bench

COMPILE_S = {"iresnet50": 45.0, "iresnet100": 90.0}  # that a compiler may take


def run(bench: Bench) -> None:
    """Measure R50 and R100, as far as there is time."""
    for name, seconds in COMPILE_S.items():
        if bench.enough(f"{name}, train.compile", seconds):
            measure(bench, f"{name}, train.compile", name, 100_000, 128, channels_last, compile=True)
