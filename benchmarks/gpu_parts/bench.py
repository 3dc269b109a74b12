"""What a part is given: the device, the time it has, a clock for work on a device, and a place for its results."""

import gc
import itertools
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class BrokenDeviceError(Exception):
    """The device takes no more work from this process."""


class Bench:
    """The setting of a part.

    Args:
        device: where it computes.
        small: sizes that a CPU works off in seconds.
        out: file of all lines; what else a part writes lies beside it.
        seconds: that it may take.
        emit: takes a line.
        photos: a folder of photos for the detector.
    """

    def __init__(
        self,
        device: torch.device,
        small: bool,
        out: Path,
        seconds: float,
        emit: Callable[[dict[str, Any]], None],
        photos: Path | None = None,
    ) -> None:
        self.device, self.small, self.photos = device, small, photos
        self.cuda = device.type == "cuda"
        self._out, self._emit = out, emit
        self._end = time.monotonic() + seconds

    def path(self, name: str) -> Path:
        """A file for this part, beside the lines."""
        return self._out.with_name(name)

    def line(self, case: str, **figures: Any) -> None:
        """Give a result."""
        self._emit({"case": case} | {name: rounded(value) for name, value in figures.items()})

    def left_s(self) -> float:
        """Seconds that are left of the part's share."""
        return self._end - time.monotonic()

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Around a case: its failure is its line, and the next case goes on.

        Raises:
            BrokenDeviceError: the failure is one after which a device takes no more work.
        """
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.line(name, error=f"{type(error).__name__}: {error}"[:2000])
            traceback.clear_frames(error.__traceback__)
        self.tidy()

    def enough(self, name: str, needed_s: float) -> bool:
        """Whether a case that takes `needed_s` seconds can begin; else its line says that it was left out."""
        if self.left_s() >= needed_s:
            return True
        self.line(name, skipped=f"{self.left_s():.0f} s left, {needed_s:.0f} s needed")
        return False

    def tidy(self) -> None:
        """Give memory back.

        Raises:
            BrokenDeviceError: see `case`.
        """
        gc.collect()
        if self.cuda:
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            except RuntimeError as error:
                traceback.print_exc()
                raise BrokenDeviceError from error

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def once_ms(self, work: Callable[[], Any]) -> float:
        """Milliseconds of `work` until the device has done it, by the clock of the host."""
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        return (time.perf_counter() - begin) * 1e3

    def ms(self, work: Callable[[], Any], seconds: float = 0.5, most: int = 30, warmup: int = 2) -> float:
        """Median milliseconds of `work`, which is repeated for about `seconds`, at least twice.

        By the clock of the host, so that whatever the host does counts too where the device waits for it.
        """
        for _ in range(warmup):
            work()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 2 or (len(times) < most and time.perf_counter() < end):
            times.append(self.once_ms(work))
        return statistics.median(times)

    def device_ms(self, work: Callable[[], Any], repeats: int = 10, warmup: int = 3) -> float:
        """Median milliseconds of `work` by events on the device, several of it in its queue; as `ms` on a CPU."""
        if not self.cuda:
            return self.ms(work, most=repeats, warmup=warmup)
        for _ in range(warmup):
            work()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        self.wait()
        return statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(events))

    def peak_gb(self) -> float | None:
        """Most memory that tensors took on the device since `tidy`, in units of 10**9 bytes; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None

    def measured(self, part: str, case: str) -> dict[str, Any]:
        """The newest line of another part on this kind of device; empty where there is none."""
        name = torch.cuda.get_device_name() if self.cuda else "cpu"
        found: dict[str, Any] = {}
        if self._out.exists():
            for text in self._out.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                if (line.get("part"), line.get("case"), line.get("device")) == (part, case, name):
                    found = line
        return found


def rounded(value: Any) -> Any:
    """A figure to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return value


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖ in float64 on the CPU; infinite where a number is not finite."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if not found.isfinite().all():
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))
