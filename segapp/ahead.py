"""Work that threads do ahead of who takes its results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """function(item) for each item, in their order, computed by `threads` threads at once.

    `items` is gone through by the caller's thread, at most `threads` + 1 items ahead of the result
    it takes, so that memory doesn't grow with their number. What a call raises is raised in its
    place. Who stops early waits for the calls that have begun; the others never begin. One thread:
    the caller's own.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    begun: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, "segapp") as pool:
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) > threads + 1:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for waiting in begun:
                waiting.cancel()


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
