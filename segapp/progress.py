"""What people see while they wait: bars on a terminal, plain lines in a pipe, all on stderr."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from segapp.errors import SegappError
from segapp.ranks import spoken_by, this_process

console = Console(stderr=True)
log = logging.getLogger("segapp")
T = TypeVar("T")
_FIRST_S, _LINE_S = 5.0, 30.0  # until the first line of progress, and between, without a bar
_GO_ON = "with the same command and --skip-existing"


class _ThroughConsole(logging.Handler):
    """Log lines appear above a running bar, and are never wrapped or cut."""

    def __init__(self) -> None:
        super().__init__()
        self.speaker = spoken_by()

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        said = self.speaker + prefix + record.getMessage()
        console.print(said, markup=False, highlight=False, soft_wrap=True)


def log_to_console() -> None:
    """Send segapp's log lines to stderr."""
    log.handlers = [h for h in log.handlers if not isinstance(h, _ThroughConsole)]
    log.addHandler(_ThroughConsole())
    log.setLevel(logging.INFO)
    log.propagate = False


@contextmanager
def inessential(what: str) -> Iterator[None]:
    """A picture or a page that can't be made is an error in the log, with the cause, and the work
    goes on."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        if not isinstance(error, SegappError):  # such as KeyError, whose text alone says little
            said = f"{type(error).__name__}: {said}" if said else type(error).__name__
        log.error("%s could not be made (%s)", what, said, exc_info=error)


def log_bug(doing: str, error: BaseException) -> None:
    """Where an unexpected error came up. Its message may name a file, and that a patient, so it
    stays out of the log."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("unexpected %s while %s\n%s", type(error).__name__, doing, frames)


def track(items: Iterable[T], what: str) -> Iterator[T]:
    """Go through `items` behind a bar with count and ETA, named `what`."""
    total = len(items) if isinstance(items, Sized) else None
    with _bar(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        yield from bar.track(items, total=total, description=what)


@contextmanager
def training_bar() -> Iterator[Callable[[int, float, str], None]]:
    """Yields show(epoch, share of the run that is done, figures of the moment)."""
    with _bar(TaskProgressColumn(), TextColumn("{task.fields[figures]}")) as bar:
        task = bar.add_task("starting", total=1.0, figures="")

        def show(epoch: int, done: float, figures: str) -> None:
            bar.update(task, completed=done, description=f"epoch {epoch}", figures=figures)

        yield show


@contextmanager
def batch_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Yields step(failed so far), to be called after each of `total` scans; shows their pace and
    the time left. Without a terminal a line says so now and then. Of a batch that was stopped, a
    line says how far it came."""
    columns = (MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    with _bar(*columns) as bar:
        task = bar.add_task("segmenting", total=total, said="")
        began, done = time.perf_counter(), 0
        told = began - _LINE_S + _FIRST_S

        def step(failed: int) -> None:
            nonlocal done, told
            done += 1
            now = time.perf_counter()
            rate = done / (now - began)
            said = f"{rate:.3g}/s"
            ending = f", {failed} failed" if failed else ""
            bar.update(task, advance=1, said=f"{said}{ending}")
            if now - told >= _LINE_S and done < total and bar.disable and not spoken_by():
                told = now
                left = clock_text((total - done) / rate)
                log.info("%d of %d done, %s, %s left%s", done, total, said, left, ending)

        try:
            yield step
        except KeyboardInterrupt:
            how = "with the same command" if this_process().count > 1 else _GO_ON
            log.info("%d of %d done; go on %s", done, max(done, total), how)
            raise


def _bar(*columns: ProgressColumn) -> Progress:
    named = (TextColumn("{task.description}"), BarColumn(), *columns)
    shown = console.is_terminal and not spoken_by()  # one bar on a screen
    return Progress(*named, console=console, transient=True, disable=not shown)


def clock_text(seconds: float) -> str:
    """90.4 → "1:30"; more than an hour → "1:02:05"."""
    whole = int(max(0, seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
