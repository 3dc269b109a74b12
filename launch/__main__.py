"""The entry of `headcount` and `python -m launch`; both import nothing from the working directory."""

import os
import sys
from pathlib import Path

if not sys.flags.safe_path and sys.path[0] == os.getcwd() != str(Path(__file__).parents[1]):
    del sys.path[0]

from launch.interrupt import end_at_once  # with the path as it is now


def main() -> None:
    """Run the command line. A signal during its imports, which may take seconds, ends it with one line."""
    end_at_once()
    from launch.cli import main

    main()


if __name__ == "__main__":
    main()
