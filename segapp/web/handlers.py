"""What the app's events call."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from segapp.errors import OutputError, SegappError
from segapp.formats import Entry
from segapp.predict import Predictor
from segapp.progress import log_bug
from segapp.report.overlay import save_png
from segapp.web.browsers import browser_of
from segapp.web.result import Result
from segapp.web.session import CALL_SECONDS, PAGE_SECONDS, Report, Session, Sessions, Stopped
from segapp.web.view import choices, draw, note_html, progress_html, reader_html
from segapp.web.work import State, one_worker, watched

log = logging.getLogger("segapp")

_TOLD = 2  # failed scans of a drop, with their reasons below it
_SOON_S = 3.0


class Handlers:
    """Holds the models by name, the examples (a model's name and a scan) and the sessions."""

    def __init__(
        self,
        models: Mapping[str, Predictor],
        examples: Sequence[tuple[str, Entry]],
        sessions: Sessions,
    ):
        self.models = dict(models)
        self.examples = list(examples)
        self.sessions = sessions
        self.worker = one_worker()

    # -- what programs call ----------------------------------------------------------------------

    def segment(
        self, files: list[str] | None, model: str | None, request: gr.Request
    ) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """Uploaded paths → paths of the label files and a summary; until then how far it is."""
        if not self.models:
            raise error("The app was started without a model.")
        session = self.open(request, CALL_SECONDS)
        finished = False
        try:
            for state in self._run(session, files or [], [], model):
                if state.stopped:
                    raise error("Stopped.")
                yield [], {"progress": round(state.share, 3), "doing": state.said}
            finished = True
        finally:
            if not finished:  # nobody can ask for what it has
                self.sessions.close(request.session_hash or "", browser_of(request))
        results = session.results
        outputs: list[str] = []
        summaries = []
        for index, result in enumerate(results):
            label = None  # the place of its file in the list
            if result.outcome.output:
                label = len(outputs)
                outputs.append(str(result.outcome.output))
            summaries.append({**result.summary(index), "label": label})
        yield outputs, {"results": summaries}

    def slice(self, result: int, slice: int, opacity: float, request: gr.Request) -> str:
        """The path of a PNG of a slice counted from 1 of a result of the last /segment."""
        session = self._session(request)
        if session is None:
            raise error("This result is no longer kept. Send the scan again.")
        number, level, index = int(slice), round(float(opacity), 2), int(result)
        if not 0 <= index < len(session.results):
            raise error(f"no result {index}; there are {len(session.results)}, counted from 0")
        found = session.results[index]
        if not found.ok:
            raise error(f"{found.name}: {found.outcome.reason}")
        if not 1 <= number <= found.facts["slices"] or not 0 <= level <= 1:
            raise error(f"slice is 1 to {found.facts['slices']}, opacity 0 to 1")
        folder = session.folder / "slices"
        path = folder / f"result{index}_slice{number}_opacity{level}.png"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            save_png(draw(found, number, level), path)
        except (OSError, OutputError):
            raise error("This result is no longer kept. Send the scan again.") from None
        return str(path)

    # -- what the page calls ---------------------------------------------------------------------

    def read(self, files: list[str] | str | None, model: str | None, request: gr.Request):
        """Uploaded paths join the worklist: (files, folder, status, stop, clear, worklist, view)"""
        uploads = [files] if isinstance(files, str) else files or []
        yield from self._read(uploads, [], model, request)

    def read_example(self, index: int, request: gr.Request):
        model, entry = self.examples[index]
        yield from self._read([], [entry], model, request)

    def _read(
        self, files: Sequence[str], entries: list[Entry], model: str | None, request: gr.Request
    ):
        session = self._session(request) or self.open(request)
        before = listed = len(session.results)
        shown = None  # the number of the one that is opened of these, as soon as it can be read
        skip = gr.skip()
        reading, stop = progress_html(0, "Reading", 0), gr.Button(visible=True)
        yield None, None, reading, stop, skip, skip, skip
        try:
            for state in self._run(session, files, entries, model):
                changed = (skip, skip)
                if len(session.results) > listed:
                    listed = len(session.results)
                    changed = _worklist(session), skip
                    # the first one that can be read; later somebody may be in the middle of
                    # another one, which a scan that has failed never takes away
                    if shown is None and (before == 0 or state.seconds < _SOON_S):
                        good = (n for n in range(before, listed) if session.results[n].ok)
                        shown = next(good, None)
                        if shown is not None or before == 0:
                            number = before if shown is None else shown
                            session.chosen = number
                            changed = _worklist(session), reader_html(session, number)
                status = progress_html(state.share, state.said, state.seconds)
                if session.closed:  # the list was cleared meanwhile
                    return
                yield skip, skip, status, skip, skip, *changed
            status = note_html(_said(session.results, before, state.stopped))
        except gr.Error as problem:
            status = note_html(problem.message, "error")
        some = gr.Button(visible=listed > 0)
        # the list once more: a page draws the last of what comes at once, and may miss the others
        listing = _worklist(session) if listed > before else skip
        yield skip, skip, status, gr.Button(visible=False), some, listing, skip

    def stop(self, request: gr.Request):
        """The visitor wants no more of a reading: (files, folder, status, stopped, stop, clear,
        worklist)."""
        hidden, session = gr.Button(visible=False), self._session(request)
        after = (None, None, *instead_of_progress("Stopped."), hidden)
        if session is None:
            return *after, hidden, gr.skip()
        session.stop("read")
        some = bool(session.results)
        listed = _worklist(session) if some else gr.skip()
        return *after, gr.Button(visible=some), listed

    def clear(self, request: gr.Request):
        """The worklist is emptied, and its files deleted: (status, stopped, stop, clear, worklist,
        view)."""
        self.sessions.close(request.session_hash or "", browser_of(request))
        hidden = gr.Button(visible=False)
        return (
            *instead_of_progress(""),
            hidden,
            hidden,
            gr.Radio(choices=[], value=None, visible=False),
            self.reader_html(None, None),
        )

    def show(self, index: int | None, request: gr.Request) -> str:
        """A scan of the worklist."""
        session = self._session(request)
        if session is None and index is not None:
            raise error("This result is no longer kept. Drop the scan again.")
        if session is not None:
            session.chosen = index
        return self.reader_html(session, index)

    def reader_html(self, session: Session | None, index: int | None) -> str:
        return reader_html(session, index, bool(self.examples))

    def relist(self, request: gr.Request):
        """The worklist, after a scan in it was corrected."""
        session = self._session(request)
        return gr.skip() if session is None else _worklist(session)

    def _run(
        self, session: Session, files: Sequence[str], entries: list[Entry], model: str | None
    ) -> Iterator[State]:
        predictor = self.models.get(model or "")
        if self.models and predictor is None:
            raise error(f"no model {model!r}; there are {', '.join(self.models)}")
        channel_files = predictor.preprocessing.channel_files if predictor else 1

        def work(report: Report, stop: threading.Event) -> None:
            found = [*session.gather([Path(f) for f in files], channel_files), *entries]
            session.segment(predictor, model or "", found, report, stop)

        yield from self.watch(session, "read", work)

    def watch(
        self, session: Session, job: str, work: Callable[[Report, threading.Event], None]
    ) -> Iterator[State]:
        """See `watched`; what the disk refuses is told to the visitor without places."""
        try:
            for state in watched(work, session.begin(job), self.worker):
                session.used = time.monotonic()
                yield state
        except Stopped:
            raise error("The list was cleared meanwhile.") from None
        except OSError as problem:
            log.error("a session's folder can't be written (%s)", problem.strerror)
            raise error("The server can't store results at the moment.") from problem
        except (SegappError, gr.Error):
            raise
        except Exception as bug:
            log_bug("segmenting", bug)
            raise error(f"This went wrong (unexpected {type(bug).__name__}).") from None

    def open(self, request: gr.Request, kept_s: float = PAGE_SECONDS) -> Session:
        """A new session for who calls."""
        try:
            return self.sessions.open(request.session_hash or "", browser_of(request), kept_s)
        except OSError as problem:
            log.error("a session's folder can't be made (%s)", problem.strerror)
            raise error("The server can't store results at the moment.") from problem

    def _session(self, request: gr.Request) -> Session | None:
        return self.sessions.of_tab(request.session_hash or "", browser_of(request))


def _worklist(session: Session) -> gr.Radio:
    """The list as it is now. What is chosen goes with it: choices that come without are none."""
    found = choices(session)
    return gr.Radio(choices=found, value=session.chosen, visible=bool(found))


def instead_of_progress(said: str) -> tuple[gr.HTML, gr.HTML]:
    """(status, stopped): a word in a place of its own. The last line of progress may reach the page
    after the answer to a click on Stop, and must not be what stays."""
    return gr.HTML(visible=False), gr.HTML(note_html(said), visible=True)


def _said(results: Sequence[Result], before: int, stopped: bool) -> str:
    """What is in the list, in a few words. before: how many were in it before this drop."""
    counts = Counter(result.outcome.status for result in results)
    words = {"ok": "ready", "review": "to review", "failed": "failed"}
    said = ", ".join(f"{counts[s]} {words[s]}" for s in words if counts[s])
    said = f"{said} in the list" if before and said else said
    if stopped:
        return f"Stopped. {said}"
    if len(results) > before:
        failed = [r for r in results[before:] if not r.ok]
        why = [f"{r.name}: {r.outcome.reason}" for r in failed[:_TOLD]]
        more = [f"and {len(failed) - _TOLD} more"] if len(failed) > _TOLD else []
        return ". ".join([said, *why, *more])
    return f"No scans in it. {said}".strip()


def error(message: str) -> gr.Error:
    return gr.Error(message, duration=15, print_exception=False)
