"""The entry of `headcount` and `python -m launch`; both import nothing from the working directory."""

import os
import sys
from pathlib import Path

if not sys.flags.safe_path and sys.path[0] == os.getcwd() != str(Path(__file__).parents[1]):
    del sys.path[0]

from dist_train.runtime.processes import sleep_while_waiting  # with the path as it is now
from launch.interrupt import end_at_once


def main() -> None:
    """Run the command line. A signal during its imports, which may take seconds, ends it with one line."""
    end_at_once()
    sleep_while_waiting()
    from launch.cli import main

    main()


if __name__ == "__main__":
    main()
