"""What commands do before their work: the log on the screen, what was typed, a quick start."""

from __future__ import annotations

import gc
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_start() -> Iterator[None]:
    """Nobody looks for garbage among what imports make, now or later: it stays, and the looking
    takes a sixth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def outlive_save_requests() -> None:
    """SIGUSR1 asks a training to save (see machine.catch_signals); while there is nothing to save
    it must not end the process either."""
    if hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def command_line() -> str:
    """What was typed, to be shown where its result is."""
    return shlex.join(["segapp", *sys.argv[1:]])


def start_logging() -> None:
    from segapp.progress import log_to_console

    log_to_console()
