import threading
import time

import pytest

from segapp.ahead import in_order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads):
    def slow_at_first(n):
        time.sleep(0.02 if n == 0 else 0)
        return n * n

    assert list(in_order(slow_at_first, range(20), threads)) == [n * n for n in range(20)]
    assert list(in_order(slow_at_first, [], threads)) == []


def test_threads_work_at_the_same_time():
    together = threading.Barrier(3, timeout=10)
    assert len(list(in_order(lambda _: together.wait(), range(9), 3))) == 9


def test_items_are_taken_a_few_ahead_only():
    taken = []
    results = in_order(lambda n: n, (taken.append(n) or n for n in range(100)), 2)
    for n in range(50):
        assert next(results) == n
        assert len(taken) <= n + 4
    results.close()
    assert len(taken) < 60


def test_who_stops_early_waits_for_what_has_begun_and_no_more():
    go, begun, ended = threading.Event(), [], []

    def wait(n):
        begun.append(n)
        assert go.wait(10)
        ended.append(n)

    results = in_order(wait, range(100), 2)
    threading.Timer(0.3, go.set).start()
    next(results)
    go.clear()
    threading.Timer(0.3, go.set).start()
    results.close()
    assert sorted(ended) == sorted(begun)
    assert len(begun) <= 6


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_in_the_place_of_its_result(threads):
    results = in_order(lambda n: 10 // (5 - n), range(10), threads)
    assert [next(results) for _ in range(5)] == [2, 2, 3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)
