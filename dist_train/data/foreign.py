"""Shards that others wrote: indexes for tars that have none."""

import logging
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from dist_train.data.index import format_index
from dist_train.data.reject import counted
from dist_train.data.tar_samples import Sample, walk_samples
from dist_train.data.tars import LeftOut
from dist_train.runtime.text import shown_name
from dist_train.runtime.written import write_text

log = logging.getLogger(__name__)


class Scan(NamedTuple):
    """What is in a tar.

    Attributes:
        samples: in the order of the tar.
        left_out: what is in no sample.
    """

    samples: list[Sample]
    left_out: list[LeftOut]

    def __str__(self) -> str:
        """What is left out, in one line."""
        reasons = Counter(each.reason for each in self.left_out)
        return f"left out: {counted(reasons)}, e.g. {shown_name(self.left_out[0].name)}: {self.left_out[0].detail}"


def scan_tar(path: Path) -> Scan:
    """Read through a tar.

    Raises:
        UserError: not a tar.
    """
    scan = Scan([], [])
    for found in walk_samples(path):
        if isinstance(found, LeftOut):
            scan.left_out.append(found)
        else:
            scan.samples.append(found)
    return scan


def write_index(tar: Path, index: Path) -> Scan:
    """Index a tar; the file appears by rename, so that several processes may do it at once.

    What is left out is logged.

    Returns:
        What was found.

    Raises:
        UserError: not a tar.
    """
    scan = scan_tar(tar)
    if scan.left_out:
        log.warning("shard %s: %s", tar, scan)
    index.parent.mkdir(parents=True, exist_ok=True)
    write_text(index, format_index(sample.members for sample in scan.samples))
    return scan
