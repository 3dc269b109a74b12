"""What nearly every rank of a test needs, imported by the server of tests/ranks.py before it forks one.

A process would otherwise look through a million objects, and copy the pages that they share.
"""

from dist_train.runtime.imports import quick_imports

with quick_imports():
    import pytest  # noqa: F401
    import torch._dynamo  # noqa: F401 - torch loads it when it makes its first optimizer

    import launch.cli  # noqa: F401
