"""Work that threads do ahead of who takes its results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from segapp.ranks import this_process

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
    """Processors that this process may use; where a launcher started several on this machine, its
    share of them."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (here or 1) // this_process().local_count)
