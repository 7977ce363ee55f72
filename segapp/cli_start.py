"""What commands do before their work: the log on the screen, what was typed, a quick start."""

from __future__ import annotations

import gc
import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


class _Screen(io.RawIOBase):
    """A stream whose lines are lost where nothing can be written: the disk that stderr goes to is
    full, or who read it is gone. Work must not end because of that."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        left = memoryview(data)
        with suppress(OSError):
            while left:
                left = left[os.write(self.descriptor, left) :]
        return len(data)


def forgiving(stream: Any) -> Any:
    """The stream, losing what can't be written, and names that are no UTF-8 with their bytes; one
    that is no file stays as it is."""
    try:
        screen = _Screen(stream.fileno())
    except (OSError, AttributeError):  # of a test, or closed
        return stream
    options = {"encoding": stream.encoding, "errors": "surrogateescape", "write_through": True}
    return io.TextIOWrapper(io.BufferedWriter(screen), line_buffering=True, **options)


def command_line() -> str:
    """What was typed, to be shown where its result is."""
    return shlex.join(["segapp", *sys.argv[1:]])


def start_logging() -> None:
    from segapp.progress import log_to_console

    log_to_console()


def torch_trouble(error: BaseException) -> str:
    """For the user: what an error means that says that PyTorch is not installed as it should be; ""
    for any other."""
    said = " ".join(str(error).split())
    if "torchvision::" not in said:
        return ""
    return (
        f"torch and torchvision are of different builds ({said}); install both from one place: "
        "pip install --force-reinstall torch torchvision, with the --index-url that "
        "pytorch.org/get-started names for this machine"
    )


def quiet_torch() -> None:
    """Before torch is imported by one of several processes: what it says about their exchange, once
    in each of them, is for its developers."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
