"""`headcount data bench`: what its first figure is made of, by a clock and a reader of the test."""

from types import SimpleNamespace

import pytest

from dist_train.data import bench
from dist_train.data.config import DataConfig
from tests.data.sets import make_set

COLD_S, WARM_S, DECODE_S = 0.010, 0.001, 0.004


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only by reading, slow for the first time, and decoding."""
    clock = SimpleNamespace(now=0.0, seen=set())

    class Reader:
        def read(self, *place):
            clock.now += WARM_S if place in clock.seen else COLD_S
            clock.seen.add(place)
            return SimpleNamespace(image=b"picture")

        def close(self):
            pass

    def decode(_):
        clock.now += DECODE_S

    monkeypatch.setattr(bench, "open_reader", lambda _: Reader())
    monkeypatch.setattr(bench, "decode", decode)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.mark.parametrize("samples", [40, 1000], ids=["read before as a whole", "read before in part"])
def test_decoding_alone_is_measured_on_pictures_that_were_read_before(tmp_path, clock, samples):
    make_set(tmp_path, [samples])
    rate = bench.decode_only(DataConfig(path=str(tmp_path)), 8, 6.0)
    assert rate == pytest.approx(1 / (WARM_S + DECODE_S))
    assert clock.now < 20, "the time for reading before is bounded"
