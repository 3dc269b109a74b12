"""Processes of a test."""

import contextlib

import psutil


def data_workers() -> list[psutil.Process]:
    """Data workers of this process; one that has just ended and is not waited for yet is none."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if "dist_train.data.worker" in " ".join(process.cmdline()):
                found.append(process)
    return found
