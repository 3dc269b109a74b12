"""On the path of the workers of an array: they import nothing that a plan names, so stand-ins are loaded before."""

import tests.prep.standin  # noqa: F401
