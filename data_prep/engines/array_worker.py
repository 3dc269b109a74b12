"""A task of a Slurm array: `python -m data_prep.engines.array_worker QUEUE`, started by `SlurmEngine`."""

import logging
import os
import sys
from pathlib import Path

from data_prep.engines.engine import attempt
from data_prep.engines.queue import UnitQueue

logger = logging.getLogger(__name__)


def main() -> None:
    """Do units until the queue is empty."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    queue = UnitQueue(Path(sys.argv[1]))
    worker = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    logger.info("task %s on %s", worker, os.uname().nodename)
    task = queue.task()
    for unit in queue.take(worker):
        outcome = attempt(task, unit)
        logger.info("unit %d: %s", unit, outcome.error or "done")
        queue.end(worker, outcome)


if __name__ == "__main__":
    main()
