"""The process that trains: its memory, its signals, its log file."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("segapp")


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: giving pages back and faulting them in again costs a
    quarter of a CPU training step. Does nothing elsewhere."""
    if sys.platform != "linux":
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of mallopt(3)
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):  # another C library
        log.debug("no glibc; its allocator is left as it is")


@contextmanager
def catch_interrupt() -> Iterator[list[int]]:
    """A list that fills on the first Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        log.info("stopping after this step; once more stops without saving")

    if threading.current_thread() is not threading.main_thread():
        yield caught  # signals can only be caught in the main thread
        return
    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def end_cleanly() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that its clean-up runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)  # the file tells all, also of a run that Python code started
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()
