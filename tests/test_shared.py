import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest

from segapp.engines.shared import SharedBatches


class Doubling:
    """Twice the input; waits for `go`, and knows the shapes it was called with."""

    batch_size, calls_at_once, precision = 4, 1, "fp32"

    def __init__(self):
        self.shapes = []
        self.begun, self.go = Event(), Event()

    def __call__(self, batch):
        self.shapes.append(batch.shape)
        self.begun.set()
        assert self.go.wait(10)
        if np.isnan(batch).any():
            raise ValueError("not a number")
        return 2 * batch


def slices(value, count=1, side=64):
    return np.full((count, 1, side, side), value, np.float32)


def test_what_waits_at_the_same_moment_shares_a_batch():
    engine = Doubling()
    shared = SharedBatches(engine)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(shared, slices(0))
        assert engine.begun.wait(10)
        others = [pool.submit(shared, slices(n)) for n in range(1, 6)]
        large = pool.submit(shared, slices(9, side=1024))
        until = time.monotonic() + 10
        while len(shared._waiting) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        engine.go.set()
        for n, result in enumerate([first, *others]):
            assert np.array_equal(result.result(10), slices(2 * n))
        assert np.array_equal(large.result(10), slices(18, side=1024))
    sizes = sorted(shape[0] for shape in engine.shapes)
    assert sizes[0] == 1
    assert sum(sizes) == 7
    assert max(sizes) == 4, "no more than the engine takes"
    assert len(sizes) <= 5
    assert {shape[2] for shape in engine.shapes} == {64, 1024}
    assert all(shape[0] == 1 for shape in engine.shapes if shape[2] == 1024), "sizes don't mix"


def test_an_error_reaches_those_it_befell_and_the_engine_goes_on():
    engine = Doubling()
    engine.go.set()
    shared = SharedBatches(engine)
    with pytest.raises(ValueError, match="not a number"):
        shared(slices(np.nan))
    assert np.array_equal(shared(slices(3, count=4)), slices(6, count=4))
