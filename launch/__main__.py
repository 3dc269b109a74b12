"""The command `headcount`, and `python -m launch`."""

from launch.interrupt import end_at_once


def main() -> None:
    """Run the command line; a signal during its imports, which may take seconds, ends it by one line."""
    end_at_once()
    from launch.cli import main

    main()


if __name__ == "__main__":
    main()
