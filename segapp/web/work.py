"""Long work for a visitor, in a thread of its own, which stops when nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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


def watched(
    work: Callable[[Report, threading.Event], None], stop: threading.Event
) -> Iterator[State]:
    """Runs work(report, stop) in a thread and yields how far it is four times a second, and once
    more at its end.

    Whoever closes the iterator, as Gradio does when a visitor cancels or is gone, stops the work
    before its next batch, and so does setting `stop`. The thread has ended when the iterator has.
    What the work raises is raised here; Stopped only marks the last state.
    """
    state = State()
    raised: list[BaseException] = []

    def report(share: float, said: str) -> None:
        if stop.is_set():
            raise Stopped
        state.share, state.said = share, said

    def run() -> None:
        try:
            work(report, stop)
        except Stopped:
            state.stopped = True
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="segapp-work", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_PACE)
            state.seconds = time.perf_counter() - state.began
            yield state
    finally:
        if thread.is_alive():
            stop.set()
            thread.join()
    if raised:
        raise raised[0]
    yield state
