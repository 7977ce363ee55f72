"""The process that trains: its memory, its signals, its log file."""

from __future__ import annotations

import ctypes
import logging
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segapp.errors import Interrupted, OutputError

log = logging.getLogger("segapp")

_ECHO_S = 5.0


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


@dataclass
class Signals:
    """What signals asked for so far."""

    stop: bool = False  # Ctrl-C or SIGTERM: save and stop
    save: bool = False  # SIGUSR1, as schedulers send it before they take the machine back: save

    def check(self, *_: object) -> None:
        """For work between two steps. Raises Interrupted where it should stop."""
        if self.stop:
            raise Interrupted("stopped")


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Ctrl-C, SIGTERM and SIGUSR1 are noted instead of ending the process; a second Ctrl-C stops at
    once, a second SIGTERM if it is not the first one's echo: a scheduler sends it to all processes
    of a job, and their launcher passes its own on to those it started."""
    asked, first = Signals(), 0.0

    def stop(number: int, _: object) -> None:
        nonlocal first
        echo = number == signal.SIGTERM and time.monotonic() - first < _ECHO_S
        if asked.stop and not echo:
            raise KeyboardInterrupt
        if not asked.stop:
            first = time.monotonic()
        asked.stop = True
        log.info("stopping after this step; once more stops without saving")

    def save(*_: object) -> None:
        asked.save = True

    handlers: dict[int, Any] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        handlers[signal.SIGUSR1] = save
    with _handling(handlers):
        yield asked


@contextmanager
def _handling(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Only the main thread can catch signals; in others they are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def processor_name() -> str:
    """As the maker calls it, where the system tells; else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextmanager
def end_cleanly() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that its clean-up runs; SIGUSR1, which asks a
    training to save, does nothing while there is nothing to save."""
    handlers: dict[int, Any] = {signal.SIGTERM: signal.default_int_handler}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = signal.SIG_IGN
    with _handling(handlers):
        yield


class _LogFile(logging.FileHandler):
    """A line that can't be written is lost, and the first time that is said; training goes on."""

    said = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.said:
            self.said = True  # before the warning, which comes here too
            reason = sys.exception()
            log.warning(
                "%s: can't be written (%s); lines of it are lost", self.baseFilename, reason
            )


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """The log goes to `path` too. Raises OutputError where it can't be opened."""
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror or error})") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)  # the file tells all, also of a run that Python code started
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()
