"""One thread in every library, as test processes share two cores; a quiet collector; each test's tier, as a marker."""

import gc
import os
import re
import sys
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path

import pytest

from dist_train.runtime.processes import ONE_THREAD

os.environ.update(ONE_THREAD)  # before a test module loads torch
gc.disable()  # while modules are imported: a third of that time goes to looking at what stays

TIERS = ("cluster", "job", "ranks", "unit")
# A test belongs to the heaviest tier whose words its module uses. A helper counts where it starts the processes.
CLUSTER = ("tests/slurm/", "tests/prep/test_ray.py", "tests/serve/test_ray.py", "tests/launch/test_two_hosts.py")
WHOLE = (  # a whole run, export or cascade in the test's own process, or a browser beside it: seconds each
    "tests/browser/",
    "tests/prep/test_mtcnn.py",
    "tests/prep/test_train_detector.py",
    "tests/prep/test_detector_learns.py",
    "tests/prep/test_align_cli.py",
    "tests/prep/test_glyphs.py",
    "tests/embed/test_cli.py",
    "tests/evaluate/test_cli.py",
    "tests/evaluate/test_report.py",
    "tests/train/test_numerics.py",
    "tests/train/test_resume.py",
    "tests/train/test_waits.py",
    "tests/track/test_trackers.py",
    "tests/data/test_bad_samples.py",
    "tests/export/",
    "tests/prune/test_job.py",
    "tests/head/test_snapshot.py",
    "tests/launch/test_plan.py",
    "tests/train/test_kills.py",
    "tests/train/test_lost_results.py",
    "tests/security/test_reports.py",
    "tests/serve/test_server.py",
)
JOB = re.compile(
    r"\b(?:subprocess|headcount|headcount_forked|headcount_without|multiprocessing|Popen|kill_loop|ProcessPoolExecutor|LocalEngine)\b\s*[(.]"
    r"|from tests\.prep\.jobs import|from tests\.docs\.commands import|from tests\.fuzz\.campaign import"
)
RANKS = re.compile(r"\brun_ranks\(")


@cache
def tier(path: Path) -> str:
    """Tier of the tests of one module: cluster, job, ranks or unit."""
    name = path.as_posix()
    if any(part in name for part in CLUSTER):
        return "cluster"
    text = path.read_text(encoding="utf-8")
    if JOB.search(text) or any(part in name for part in WHOLE):
        return "job"
    return "ranks" if RANKS.search(text) else "unit"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave alone the modules of other tiers where one tier is asked for: their imports take seconds."""
    asked = config.option.markexpr
    if asked not in TIERS or not collection_path.match("test_*.py") or tier(collection_path) == asked:
        return None
    return f"mark.{asked}" not in collection_path.read_text(encoding="utf-8")


def pytest_collection_finish() -> None:
    """Start the collector, which never looks at the million objects of the modules that are there by now."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    """One thread again, whatever the test before has set: threads of several processes wait for one another."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Free what a whole job in this process leaves in cycles, up to a gigabyte: the collector alone comes too late."""
    if item.get_closest_marker("job"):
        gc.collect()


def pytest_sessionfinish() -> None:
    """Spare the collections at the end of pytest and of Python, whose objects end with the process."""
    gc.disable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, unless the test states one itself; files of the heaviest tiers come first.

    So the last that processes beside each other take are short, and none is left alone with a long one. Those of the
    first tier mostly wait: each comes between two of the second, which keep the cores busy.
    """
    for item in items:
        if not any(item.get_closest_marker(name) for name in TIERS):
            item.add_marker(tier(item.path))
    files = list(dict.fromkeys(item.path for item in items))
    waiting, busy, *lighter = ([file for file in files if tier(file) == name] for name in TIERS)
    riffled = [file for pair in zip_longest(waiting, busy) for file in pair if file]
    places = {file: place for place, file in enumerate([*riffled, *chain(*lighter)])}
    items.sort(key=lambda item: places[item.path])
