"""Processes that work in one folder, and what those that were killed have left in it.

The system ends a lock with its process, however that ends. Where there are none (Windows, some
network file systems) nothing is held and nothing is swept.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segapp.errors import OutputError
from segapp.files import PARTIAL, is_partial

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PATIENCE_S = 2.0  # a process that was killed may take a moment to be gone
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what a lock that is held says
_held: set[int] = set()  # descriptors of locked folders


@contextmanager
def alone_in(folder: Path, left: Callable[[Path], Iterable[Path]]) -> Iterator[None]:
    """Nobody else works in `folder`, which is made, meanwhile; the files that left(folder) finds
    there are of killed processes, and removed. Raises OutputError where another process is at work
    in it."""
    with _opened(folder) as descriptor:
        until = time.monotonic() + _PATIENCE_S
        while not _locked(descriptor):
            if time.monotonic() > until:
                raise OutputError(f"{folder}: another process is at work in it")
            time.sleep(0.05)
        for path in list(left(folder)) if fcntl and descriptor in _held else []:
            with suppress(OSError):
                path.unlink()
        yield


def left_of_a_run(folder: Path) -> Iterator[Path]:
    """Half-written files where a training writes, and those that safetensors calls by names of its
    own beside them."""
    for part in (folder, *(folder / name for name in ("last", "overlays", "overlays/progress"))):
        yield from filter(is_partial, part.iterdir() if part.is_dir() else ())


def left_of_a_batch(folder: Path) -> Iterator[Path]:
    """Half-written files in the folder and those below it, but in no folder that another batch or a
    training has."""
    for place, inside, names in os.walk(folder):
        yield from (Path(place, name) for name in names if name.startswith(PARTIAL))
        inside[:] = [name for name in inside if not _is_anothers(Path(place, name))]


def _is_anothers(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in ("predictions.csv", "config.yaml"))


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


def _locked(descriptor: int) -> bool:
    """Lock a folder for this process; False where another one has it."""
    if not fcntl:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        _held.discard(descriptor)  # there are no locks on this file system
    return True


def _leave() -> None:
    """In a forked worker: it must not hold on to its parent's folder when that is killed."""
    for descriptor in _held:
        if descriptor >= 0:
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)
