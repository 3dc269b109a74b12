"""One job on one output: a lock that its holder's death lets go."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from data_prep.job.plan import Layout
from dist_train.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the output alone.

    Raises:
        UserError: another job holds it; the message names host and process.
    """
    layout.home.mkdir(parents=True, exist_ok=True)
    path = layout.home / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = os.pread(fd, 4096, 0).decode(errors="replace").strip() or "its holder is not known"
            raise UserError(
                f"{layout.out}: another job is working on it ({found}); wait for it, stop it, or use another OUT"
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): see to it that no other job works on it", path, error.strerror)
        holder = {"host": os.uname().nodename, "process": os.getpid(), "since": time.strftime("%F %T")}
        os.truncate(fd, 0)
        os.pwrite(fd, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(fd)
