"""What the app's events call, and the scans it offers to try."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr

from segapp.formats import Entry
from segapp.predict import Predictor
from segapp.report.overlay import save_png
from segapp.web.session import Result, Session, SessionClosed, private_root
from segapp.web.view import EMPTY_VIEW, draw, facts_html, failures_html, view_html

log = logging.getLogger("segapp")


class Handlers:
    """Holds the predictor, the examples and, for `unload`, the open session of each tab."""

    def __init__(self, predictor: Predictor, examples: Sequence[Entry]):
        self.predictor = predictor
        self.examples = list(examples)
        self.open: WeakValueDictionary[str, Session] = WeakValueDictionary()

    def segment(
        self,
        files: list[str] | None,
        session: Session | None,
        request: gr.Request,
        progress=gr.Progress(),
    ):
        """Uploaded paths → paths of the label files, a summary, the new session."""
        uploads = [Path(file) for file in files or []]
        return self._segment(uploads, [], session, request, progress)

    def segment_example(
        self,
        index: int,
        session: Session | None,
        request: gr.Request,
        progress=gr.Progress(),
    ):
        return self._segment([], [self.examples[index]], session, request, progress)

    def _segment(
        self,
        uploads: list[Path],
        examples: list[Entry],
        previous: Session | None,
        request: gr.Request,
        progress: gr.Progress,
    ) -> tuple[list[str], dict[str, Any], Session]:
        close(previous)
        try:
            session = self.open[request.session_hash or ""] = Session(private_root())
            channel_files = self.predictor.preprocessing.channel_files
            entries = session.gather(uploads, channel_files) + examples
            session.segment(self.predictor, entries, lambda part, what: progress(part, desc=what))
        except SessionClosed as error:
            raise _error("The page was closed.") from error
        except OSError as error:
            log.error("a session's folder can't be written (%s)", error.strerror)
            raise _error("The server can't store results at the moment.") from error
        summary = {"results": [r.summary(index) for index, r in enumerate(session.results)]}
        return [str(path) for path in session.outputs], summary, session

    def show_all(self, session: Session | None, percent: float) -> tuple[Any, ...]:
        """A new session: the drop zone is free again, failures are listed, the first result shown.

        For the outputs files, failures, download_all and those of `show`.
        """
        results = session.results if session and not session.closed else []
        choices = [(r.name, index) for index, r in enumerate(results) if r.ok]
        first = choices[0][1] if choices else None
        radio = gr.Radio(choices=choices, value=first, visible=len(choices) > 1)
        archive = session.zip if session and results else None
        download_all = gr.DownloadButton(
            f"Download all {len(choices)} (zip)", value=archive, visible=archive is not None
        )
        return (
            None,
            failures_html(results),
            download_all,
            radio,
            *self.show(session, first, percent),
        )

    def show(self, session: Session | None, index: int | None, percent: float) -> tuple[Any, ...]:
        """A result at its busiest slice, for controls, number, view, facts, download."""
        if index is None:
            gone = gr.Row(visible=False), gr.skip(), EMPTY_VIEW, ""
            return *gone, gr.DownloadButton(visible=False)
        result = _result(session, index)
        slices, output = result.size[0], result.outcome.output
        assert output is not None
        return (
            gr.Row(visible=True),
            gr.Slider(
                maximum=max(2, slices),
                value=result.first,
                visible=slices > 1,
                label=f"Slice (1–{slices})",
            ),
            self._picture(result, result.first, percent),
            facts_html(result, self.predictor.classes),
            gr.DownloadButton(f"Download {output.name}", value=output, visible=True),
        )

    def view(self, session: Session | None, index: int | None, number: int, percent: float) -> str:
        """The picture after a slider has moved."""
        if index is None:
            return EMPTY_VIEW
        return self._picture(_result(session, index), number, percent)

    def slice(self, result: int, slice: int, opacity: float, session: Session | None) -> str:
        """The path of a PNG of a slice counted from 1 of a result of the last /segment."""
        found = _result(session, int(result))
        number, opacity = int(slice), round(float(opacity), 3)
        if not 1 <= number <= found.size[0] or not 0 <= opacity <= 1:
            raise _error(f"slice is 1 to {found.size[0]}, opacity 0 to 1")
        path = found.folder / f"slice{number}_opacity{opacity}.png"
        save_png(draw(found, self.predictor.classes, number, opacity), path)
        return str(path)

    def unload(self, request: gr.Request) -> None:
        """The tab was closed or loaded again."""
        close(self.open.pop(request.session_hash or "", None))

    def _picture(self, result: Result, number: int, percent: float) -> str:
        return view_html(result, self.predictor.classes, int(number), percent / 100)


def close(session: Session | None) -> None:
    if session is not None:
        session.close()


def _result(session: Session | None, index: int) -> Result:
    if session is None or session.closed:
        raise _error("This result is no longer kept. Drop the scan again.")
    if not 0 <= index < len(session.results):
        raise _error(f"no result {index}; there are {len(session.results)}, counted from 0")
    result = session.results[index]
    if not result.ok:
        raise _error(f"{result.name}: {result.outcome.reason}")
    return result


def _error(message: str) -> gr.Error:
    return gr.Error(message, duration=15, print_exception=False)
