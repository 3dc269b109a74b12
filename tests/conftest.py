"""One thread in every library, in the tests' own process and in those that it starts: two of them share two cores."""

import os

from dist_train.runtime.processes import ONE_THREAD

os.environ.update(ONE_THREAD)  # before a test module loads torch
