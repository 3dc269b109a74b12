"""`python -m launch` is `headcount`."""

from launch.cli import main

main()
