"""The command `headcount` where modules are hidden."""

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


def run(command):
    """In a process of its own: the first word names modules, apart by commas, the others are the command line."""
    name, hidden, *arguments = command
    hidden = frozenset(hidden.split(","))
    if loaded := hidden & sys.modules.keys():  # by what every command imports
        raise AssertionError(f"{', '.join(loaded)} cannot be hidden any more")
    sys.meta_path[:] = [Hiding(hidden, tuple(sys.meta_path))]
    sys.argv = [name, *arguments]

    from launch.__main__ import main

    main()
