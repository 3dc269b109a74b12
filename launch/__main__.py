"""`python -m launch` is `headcount`: it does not look for modules in the working directory either."""

import os
import sys
from pathlib import Path

if not sys.flags.safe_path and sys.path[0] == os.getcwd() != str(Path(__file__).parents[1]):
    del sys.path[0]

from launch.cli import main  # with the path as it is now

main()
