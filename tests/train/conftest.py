"""What the tests of waits share, on one rank and on two."""

import pytest

from tests.sets import write_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with two small sets."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("set", "other"):
        write_set(folder / name)
    return folder
