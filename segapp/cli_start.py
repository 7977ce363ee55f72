"""What commands do before their work: the log on the screen, what was typed, a quick start."""

from __future__ import annotations

import gc
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from segapp.parsing import at_home


def with_home(command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose paths may begin with ~."""

    @wraps(command)
    def run(**given: Any) -> None:
        command(**{name: at_home(value) for name, value in given.items()})

    return run


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


def quiet_torch() -> None:
    """Before torch is imported by one of several processes: what it says about their exchange, once
    in each of them, is for its developers."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
