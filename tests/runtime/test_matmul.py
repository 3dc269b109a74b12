"""Matrix products by oneDNN and by torch give what float64 gives, whatever the layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.runtime import matmul as module
from dist_train.runtime.matmul import add_matmul, matmul


@pytest.fixture(params=["onednn", "torch"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose products are under test."""
    if request.param == "torch":
        monkeypatch.setattr(module, "_LINEAR", None)
    elif module._LINEAR is None:
        pytest.skip("this build of torch has no oneDNN")


def matrix(rows: int, columns: int, layout: str) -> torch.Tensor:
    """Random numbers: by rows, by columns, or a part of wider rows."""
    if layout == "columns":
        return torch.randn(columns, rows).T
    return torch.randn(rows, columns + 3)[:, :columns] if layout == "part" else torch.randn(rows, columns)


SIZES, LAYOUTS = st.integers(0, 70), st.sampled_from(["rows", "columns", "part"])


@settings(deadline=None)  # a new shape makes oneDNN write code for it
@given(n=SIZES, k=SIZES, m=SIZES, layouts=st.tuples(LAYOUTS, LAYOUTS, LAYOUTS))
def test_float64_agrees(n: int, k: int, m: int, layouts: tuple[str, str, str]) -> None:
    a, b, total = matrix(n, k, layouts[0]), matrix(k, m, layouts[1]), matrix(n, m, layouts[2])
    out, before, exact = torch.full((n, m), torch.nan), total.double(), a.double() @ b.double()
    assert matmul(a, b, out=out) is out
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    assert add_matmul(total, a, b) is total
    torch.testing.assert_close(total.double(), before + exact, rtol=1e-5, atol=1e-5)


def test_not_a_number_stays() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    a[1, 2] = torch.nan
    assert matmul(a, b, out=torch.empty(3, 5)).isnan().any(dim=1).tolist() == [False, True, False]


def test_float64_is_kept() -> None:
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(matmul(a, b, out=torch.empty(3, 5, dtype=torch.float64)), a @ b, rtol=0, atol=1e-15)
