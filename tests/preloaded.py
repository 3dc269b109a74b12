"""What nearly every rank of a test needs, imported by the server of tests/ranks.py before it forks one.

The collector is quiet meanwhile, and never looks at what is there by then: each process would go through a million
objects, and copy the pages that they share.
"""

import gc

gc.disable()

import pytest  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401  # torch loads it when it makes its first optimizer

import dist_train.train.run  # noqa: E402, F401
import launch.cli  # noqa: E402, F401

gc.freeze()
gc.enable()
