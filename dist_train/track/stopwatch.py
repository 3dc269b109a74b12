"""A stopwatch for the parts of a step that does not make the host wait for a GPU."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by named part since the last reading.

    On a CUDA device a part is bracketed by events that are read later; on the CPU by the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the enclosed block as `part`."""
        if self._cuda:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            yield
            after.record()
            self._events.append((part, before, after))
        else:
            started = time.perf_counter()
            yield
            self._seconds[part] += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Seconds by part; resets the stopwatch. Waits for the GPU to pass the last event."""
        if self._events:
            torch.cuda.synchronize()
        for part, before, after in self._events:
            self._seconds[part] += before.elapsed_time(after) / 1000
        seconds, self._seconds, self._events = dict(self._seconds), defaultdict(float), []
        return seconds
