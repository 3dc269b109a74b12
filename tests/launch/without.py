"""The command `headcount` where modules are hidden: `python -m tests.launch.without MODULE,MODULE ARGUMENT...`."""

import importlib.abc
import sys


class Hiding(importlib.abc.MetaPathFinder):
    """Finders as they are, except that some modules are found by none of them."""

    def __init__(self, hidden, finders):
        self.hidden, self.finders = hidden, finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)


if __name__ == "__main__":
    hidden, *arguments = sys.argv[1:]
    sys.meta_path[:] = [Hiding(frozenset(hidden.split(",")), tuple(sys.meta_path))]
    sys.argv = ["headcount", *arguments]

    from launch.__main__ import main

    main()
