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
_ALONE, _TOGETHER = (fcntl.LOCK_EX, fcntl.LOCK_SH) if fcntl else (0, 0)
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what a lock that is held says
_WAIT = "wait until it ends or stop it, or name another folder"
_held: set[int] = set()  # descriptors of locked folders


@contextmanager
def alone_in(
    folder: Path, left: Callable[[Path], Iterable[Path]], after: bool = False
) -> Iterator[None]:
    """Nobody else works in `folder`, which is made, meanwhile; the files that left(folder) finds
    there are of killed processes, and removed: before the work, or `after` it where it ended well.
    Raises OutputError where another process is at work in it."""

    def sweep() -> None:
        for path in list(left(folder)) if fcntl and descriptor in _held else []:
            with suppress(OSError):
                path.unlink()

    with _opened(folder) as descriptor:
        if not _in_time(descriptor, _ALONE):
            raise OutputError(f"{folder}: another process is at work in it; {_WAIT}")
        if not after:
            sweep()
        yield
        if after:
            sweep()


@contextmanager
def at_work(file: Path, alone: bool = False, patience_s: float = 0) -> Iterator[None]:
    """Hold the lock `file`, which is made, `alone` or together with others. A file is locked on
    network file systems too that lock no folders. Raises OutputError where another process holds it
    alone, or holds it at all."""
    with _opened(file, os.O_RDWR | os.O_CREAT) as descriptor:
        if not _in_time(descriptor, _ALONE if alone else _TOGETHER, patience_s):
            raise OutputError(f"{file}: another process is at work there; {_WAIT}")
        yield


def is_at_work(file: Path) -> bool:
    """Whether a process holds the lock `file`; False where there are no locks."""
    if not file.exists():
        return False
    with _opened(file, os.O_RDWR | os.O_CREAT) as descriptor:
        return not _in_time(descriptor, _ALONE)


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
    return any((folder / mark).exists() for mark in ("predictions.csv", "config.yaml", ".shares"))


@contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A folder, or a file with other flags; it is made."""
    try:
        (path.parent if flags else path).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o666) if fcntl else -1
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror})") from error
    _held.add(descriptor)
    try:
        yield descriptor
    finally:
        _held.discard(descriptor)
        if descriptor >= 0:
            os.close(descriptor)


def _in_time(descriptor: int, kind: int, patience_s: float = 0) -> bool:
    """Lock it, as soon as processes that were killed are gone; False where another one has it."""
    until = time.monotonic() + max(_PATIENCE_S, patience_s)
    while not _locked(descriptor, kind):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _locked(descriptor: int, kind: int) -> bool:
    """Lock a file or folder for this process; False where another one has it."""
    if not fcntl:
        return True
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
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
