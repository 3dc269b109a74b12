"""The meter of a run: loss and speed since the last report."""

import resource
import time

import torch
from torch import Tensor

from dist_train.track.stopwatch import Stopwatch


class Meter:
    """Collects what a step yields and reports it as figures for the trackers.

    Args:
        images_per_step: over all ranks.
        device: where the steps run.

    Attributes:
        time: stopwatch of the step's parts.
    """

    def __init__(self, images_per_step: int, device: torch.device) -> None:
        self._images_per_step, self._device = images_per_step, device
        self.time = Stopwatch(device)
        self._started, self._losses = time.perf_counter(), list[Tensor]()

    def add(self, loss: Tensor) -> None:
        """Count a step. The loss is not read here, which would make the host wait for a GPU."""
        self._losses.append(loss)

    def figures(self, waited_s: float) -> dict[str, float]:
        """Mean loss, images per second over all ranks, shares of the time by part and memory; resets the meter.

        Args:
            waited_s: seconds spent waiting for data meanwhile.
        """
        # A bad step has no loss; it is counted elsewhere.
        figures = {"loss": float(torch.stack(self._losses).nanmean())}
        seconds = time.perf_counter() - self._started
        figures["images_per_s"] = len(self._losses) * self._images_per_step / seconds
        figures["data_wait"] = waited_s / seconds
        figures |= {f"{part}_time": spent / seconds for part, spent in self.time.read().items()}
        figures["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if self._device.type == "cuda":
            figures["gpu_memory_mb"] = torch.cuda.max_memory_allocated(self._device) / 2**20
        self._started, self._losses = time.perf_counter(), []
        return figures
