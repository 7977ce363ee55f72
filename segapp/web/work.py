"""Long work for a visitor, in another thread, which stops when nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from segapp.web.session import Report, Stopped

_PACE = 0.25  # seconds between two signs of life


@dataclass
class State:
    """How far work is: the share done, what is being done, the seconds since it began."""

    share: float = 0.0
    said: str = ""
    seconds: float = 0.0
    stopped: bool = False
    began: float = field(default_factory=time.perf_counter)


def one_worker() -> Executor:
    """What runs the jobs of an app, one after another: always the same thread, as each new one
    that computes costs memory which is not given back."""
    return ThreadPoolExecutor(1, "segapp-work")


def watched(
    work: Callable[[Report, threading.Event], None], stop: threading.Event, worker: Executor
) -> Iterator[State]:
    """Runs work(report, stop) in a thread of `worker` and yields how far it is four times a second,
    and once more at its end.

    Whoever closes the iterator, as Gradio does when a visitor cancels or is gone, stops the work
    before its next batch, and so does setting `stop`; nobody waits for it then, since Gradio would
    let all visitors wait. What the work raises is raised here; Stopped only marks the last state.
    """
    state = State()

    def report(share: float, said: str) -> None:
        if stop.is_set():
            raise Stopped
        state.share, state.said = share, said

    job = worker.submit(work, report, stop)
    try:
        while not job.done():
            wait([job], _PACE)
            state.seconds = time.perf_counter() - state.began
            yield state
        try:
            job.result()
        except Stopped:
            state.stopped = True
    finally:
        job.cancel()
        stop.set()
    yield state
