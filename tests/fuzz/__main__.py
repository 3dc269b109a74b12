"""Changed inputs for every reader of the product: no traceback, no hang, no memory without end.

    python -m tests.fuzz --inputs 20000 --jobs 2
    python -m tests.fuzz --reader manifest.json --reader recipe --inputs 1000 --seed 7
    python -m tests.fuzz --again runs/fuzz/recipe.0.0.17

Prints a table of counts and each kind of fault with the command that shows it again. Exit status 1 if there is any.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import campaign, file_name
from tests.fuzz.reader import FIXED, Reader
from tests.fuzz.readers import READERS
from tests.fuzz.worker import lay_out, make_input

MODULE = "tests.fuzz.readers"


def again(file: Path) -> None:
    """Read a saved input here, so that a traceback is seen whole and a debugger may be used."""
    short, place, seed, number = file.name.split(".")
    reader = next(each for each in READERS.values() if file_name(each.name) == short)
    # Where a child died, it did not say which scene it was at; it is drawn again.
    at = int(place) if place else make_input(reader, int(seed), int(number))[0]
    with tempfile.TemporaryDirectory() as scratch:
        lay_out(reader.scenes()[at], file.read_bytes(), Path(scratch))
        reader.read(Path(scratch))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="for all readers together")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="only this one; repeat")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same inputs")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--saved", type=Path, default=Path("runs/fuzz"), help="where inputs that fail are kept")
    parser.add_argument("--again", type=Path, help="a kept input: read it once more, here")
    options = parser.parse_args()
    if options.again:
        again(options.again)
        sys.stdout.write("accepted\n")
        return 0
    chosen: dict[str, Reader] = {name: READERS[name] for name in options.reader or READERS}
    try:
        outcome = campaign(chosen, MODULE, options.inputs, options.seed, options.jobs, options.saved)
    finally:
        shutil.rmtree(FIXED, ignore_errors=True)
    sys.stdout.write(outcome.table() + "\n")
    return 0 if outcome.sound else 1


if __name__ == "__main__":
    sys.exit(main())
