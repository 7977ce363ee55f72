"""What commands do before their work: the log on the screen, what was typed, a quick start."""

from __future__ import annotations

import gc
import shlex
import sys
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


def command_line() -> str:
    """What was typed, to be shown where its result is."""
    return shlex.join(["segapp", *sys.argv[1:]])


def start_logging() -> None:
    from segapp.progress import log_to_console

    log_to_console()
