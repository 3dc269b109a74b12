"""Threads of a command: on a machine that others use too, those that wait do not keep the others from working."""

import os
import subprocess
import sys

import pytest

LAST = "import atexit, os; atexit.register(lambda: print('spins', os.environ.get('GOMP_SPINCOUNT')))"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_sleep_soon_unless_the_user_says_otherwise(given, spins):
    code = f"{LAST}; import sys; from launch.__main__ import main; sys.argv = ['headcount', '--help']; main()"
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"spins {spins}"


def test_nothing_that_reads_it_is_loaded_before():
    code = "import sys; import launch.__main__; print({'torch', 'numpy', 'cv2'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
