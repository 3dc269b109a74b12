"""A service: a model with all that its answers need."""

from typing import NamedTuple

from dist_train.data.reject import Reject
from dist_train.evaluate.models import Model
from launch.embed.decision import Decision
from launch.serve.batcher import Batcher
from launch.serve.finder import Finder
from launch.serve.known import Known
from launch.serve.limits import Limits
from launch.serve.metrics import Metrics
from launch.serve.pipeline import Done, Pipeline, Task


class Service(NamedTuple):
    """A model in service.

    Attributes:
        model: it.
        aligned: whether faces are looked for.
        known: who can be found; None without a gallery.
        decision: the threshold; None where there is none.
        limits: of requests.
        metrics: its figures.
        batcher: in front of its pipeline.
    """

    model: Model
    aligned: bool
    known: Known | None
    decision: Decision | None
    limits: Limits
    metrics: Metrics
    batcher: Batcher[Task, Done | Reject]

    @property
    def enrolls(self) -> bool:
        """Whether people may be added and taken out."""
        return self.known is not None and self.known.enrolled is not None and self.known.enrolled.writable

    def close(self) -> None:
        """Answer what was taken, and close everything."""
        self.batcher.close()
        if self.known is not None:
            self.known.close()


def open_service(
    model: Model,
    finder: Finder,
    aligned: bool,
    flip: bool,
    known: Known | None,
    decision: Decision | None,
    limits: Limits,
) -> Service:
    """Start a service.

    Args:
        model: that embeds.
        finder: that finds what is embedded.
        aligned: whether those are faces that it looks for.
        flip: add the embedding of the mirrored face.
        known: who is searched.
        decision: the threshold.
        limits: of requests.
    """
    metrics = Metrics()
    pipeline = Pipeline(finder, model, flip, 64, known)
    batcher = Batcher(pipeline, limits.batch, limits.batch_wait_s, limits.waiting, metrics.batches.observe)
    metrics.follow(lambda: batcher.waiting, lambda: len(known) if known is not None else 0)
    return Service(model, aligned, known, decision, limits, metrics, batcher)
