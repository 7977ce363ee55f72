"""Processes that work in one folder, and what those that were killed have left in it.

The system ends a lock with its process, however that ends. Where there are none (Windows, some
network file systems) nothing is held and nothing is swept.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segapp.errors import OutputError
from segapp.files import is_partial

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_OF_A_RUN = ("last", "overlays", "overlays/progress")  # where a training writes
_PATIENCE_S = 2.0  # a process that was killed may take a moment to be gone
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what a lock that is held says
_held: set[int] = set()  # descriptors of locked folders


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else trains in `folder`, which is made, meanwhile. Raises OutputError where another
    process is at work in it."""
    with _opened(folder) as descriptor:
        until = time.monotonic() + _PATIENCE_S
        parts = [folder, *(folder / part for part in _OF_A_RUN)]
        while not _swept(descriptor, parts):
            if time.monotonic() > until:
                raise OutputError(f"{folder}: another process is at work in it")
            time.sleep(0.05)
        yield


@contextmanager
def together_in(folder: Path) -> Iterator[None]:
    """Several processes may write into `folder`, which is made, at once: the files that one of
    them is writing are not taken for those of a killed one."""
    with _opened(folder) as descriptor:
        _swept(descriptor, _without_others(folder))
        until = time.monotonic() + _PATIENCE_S
        while not _shared(descriptor) and time.monotonic() < until:
            time.sleep(0.05)  # another batch sweeps; beside a training we go on without the lock
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY) if fcntl else -1
    except OSError as error:
        raise OutputError(f"{folder}: can't be written ({error.strerror})") from error
    _held.add(descriptor)
    try:
        yield descriptor
    finally:
        _held.discard(descriptor)
        if descriptor >= 0:
            os.close(descriptor)


def _without_others(folder: Path) -> Iterator[Path]:
    """The folder and those below it, but no folder that another batch or a training has."""
    for place, inside, _ in os.walk(folder):
        yield Path(place)
        inside[:] = [
            name
            for name in inside
            if not any(
                Path(place, name, mark).exists() for mark in ("predictions.csv", "config.yaml")
            )
        ]


def _swept(descriptor: int, parts: Iterable[Path]) -> bool:
    """Lock the folder for this process alone and remove the half-written files in its parts; False
    where another process is at work in it."""
    if not fcntl:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # any but these: there are no locks on this file system
        return error.errno not in _TAKEN
    for part in parts:
        with suppress(OSError):  # it is not there, or not ours
            for left in filter(is_partial, list(part.iterdir())):
                left.unlink(missing_ok=True)
    return True


def _shared(descriptor: int) -> bool:
    """Lock the folder together with others; False where another process is alone in it."""
    if not fcntl:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN
    return True


def _leave() -> None:
    """In a forked worker: it must not hold on to its parent's folder when that is killed."""
    for descriptor in _held:
        if descriptor >= 0:
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)
