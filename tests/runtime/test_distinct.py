import numpy as np
import pytest

from dist_train.runtime.distinct import distinct


@pytest.mark.parametrize("numbers", [[], [0], [3, 3, 3], [5, 0, 2, 5, 1, 0], [1, 4, 9, 0, 4, 9, 9, 10]])
def test_numbers_are_sorted_and_each_is_there_once(numbers):
    found = distinct(np.array(numbers, np.int64))
    assert found.tolist() == sorted(set(numbers))
    assert found.dtype == np.int64
