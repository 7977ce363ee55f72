"""What people see while they wait: bars on a terminal, plain lines in a pipe, all on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
log = logging.getLogger("segapp")
T = TypeVar("T")


class _ThroughConsole(logging.Handler):
    """Log lines appear above a running bar, and are never wrapped or cut."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        console.print(prefix + record.getMessage(), markup=False, highlight=False, soft_wrap=True)


def log_to_console() -> None:
    """Send segapp's log lines to stderr."""
    log.handlers = [h for h in log.handlers if not isinstance(h, _ThroughConsole)]
    log.addHandler(_ThroughConsole())
    log.setLevel(logging.INFO)
    log.propagate = False


def track(items: Iterable[T], what: str) -> Iterator[T]:
    """Go through `items` behind a bar with count and ETA, named `what`."""
    total = len(items) if isinstance(items, Sized) else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=_quiet()) as bar:
        yield from bar.track(items, total=total, description=what)


class TrainingBar:
    """The share of a run that is done, with the figures of the moment."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=_quiet())
        self._task = self._bar.add_task("starting", total=1.0, figures="")

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, epoch: int, done: float, figures: str) -> None:
        self._bar.update(self._task, completed=done, description=f"epoch {epoch}", figures=figures)


class BatchBar:
    """Scans done, how many failed, and the time left."""

    def __init__(self, total: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=_quiet())
        self._task = self._bar.add_task("segmenting", total=total, failed="")
        self._failed = 0

    def __enter__(self) -> BatchBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, failed: bool) -> None:
        self._failed += failed
        text = f"{self._failed} failed" if self._failed else ""
        self._bar.update(self._task, advance=1, failed=text)


def clock_text(seconds: float) -> str:
    """90.4 → "1:30"; more than an hour → "1:02:05"."""
    whole = int(max(0, seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _quiet() -> bool:
    return not console.is_terminal
