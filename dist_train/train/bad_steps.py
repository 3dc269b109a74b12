"""Steps without a finite loss or gradient: counted, and after too many in a row a diagnosis."""

import logging

from dist_train.data.batch import Batch
from dist_train.errors import NonFiniteError, WorkError
from dist_train.runtime.ranks import Ranks
from dist_train.train.program import Program

logger = logging.getLogger(__name__)


class BadSteps:
    """Counts skipped steps; the same on every rank, since all ranks skip together.

    Args:
        limit: bad steps in a row after which the run stops.
        ranks: this process among the job's.

    Attributes:
        count: bad steps so far.
    """

    def __init__(self, limit: int, ranks: Ranks) -> None:
        self._limit, self._ranks = limit, ranks
        self.count = 0
        self._in_a_row = 0

    def good(self) -> None:
        """A step went through."""
        self._in_a_row = 0

    def bad(self, error: NonFiniteError, step: int, program: Program, micro_batches: list[Batch]) -> None:
        """A step was skipped. A collective when it was one too many.

        Raises:
            WorkError: `limit` in a row, with rank, layer and samples where the numbers were lost.
        """
        self.count += 1
        self._in_a_row += 1
        if self._ranks.rank == 0:
            logger.warning("step %d skipped on all ranks (%d in a row): %s", step, self._in_a_row, error)
        if self._in_a_row < self._limit:
            return
        program.discard()  # what the step after it has begun, where the verdict was late
        found = self._ranks.gather(program.diagnose(micro_batches))
        if self._ranks.rank != 0:
            raise SystemExit(1)  # rank 0 speaks for all
        lines = [f"\n  rank {rank}: {text}" for rank, text in enumerate(found) if text]
        raise WorkError(
            f"{self._in_a_row} steps in a row without finite numbers (train.max_bad_steps); stopped at step "
            f"{step}, older checkpoints are intact: {error}"
            + ("".join(lines) or "\n  the same batch gives finite numbers in float32: the loss scale was too high")
            + "\nlower optimizer.lr or set optimizer.clip_norm, look at these samples, or try train.precision=float32"
        )
