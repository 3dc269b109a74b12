"""Figures of a service, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one service; nothing in them tells who was seen."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "headcount_requests", "answers by path and status", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "headcount_request_seconds",
            "from a request's head to its answer",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batches = Histogram(
            "headcount_batch_photos", "photos in a pass", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry
        )
        self._waiting = Gauge("headcount_waiting_photos", "photos that wait for the model", registry=self._registry)
        self._known = Gauge("headcount_known_faces", "faces that can be found", registry=self._registry)

    def follow(self, waiting: Callable[[], int], known: Callable[[], int]) -> None:
        """Read two numbers whenever figures are asked for."""
        self._waiting.set_function(waiting)
        self._known.set_function(known)

    def text(self) -> bytes:
        """All figures in Prometheus' text form."""
        return generate_latest(self._registry)
