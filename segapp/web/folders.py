"""The batch tab: many scans at once, uploaded or in a folder on the server, as one archive."""

from __future__ import annotations

import csv
import io
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from segapp.batch import Outcome, list_inputs, predict_batch
from segapp.errors import SegappError
from segapp.files import atomic_path, write_text
from segapp.finding import counted
from segapp.web.browsers import browser_of
from segapp.web.handlers import Handlers, error, instead_of_progress
from segapp.web.inputs import uploads_base
from segapp.web.session import CALL_SECONDS, Report, Session, stoppable
from segapp.web.view import EMPTY, MARKS, note_html, progress_html
from segapp.web.work import State

_ROWS = 200  # of the table on the page; predictions.csv has them all
_ORDER = ("failed", "review", "ok")


@dataclass
class Job:
    """One batch: where its files come from and go, and how its scans went."""

    out: Path
    base: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    total: int = 0
    left_out: int = 0  # files of a folder that are no scans
    zip: Path | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def leave_out(self, *_: object) -> None:
        self.left_out += 1

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.status] += 1
        said = "; ".join(filter(None, (outcome.reason, *outcome.warnings)))
        sure = outcome.mean_confidence
        row = {
            "status": outcome.status,
            "file": shown(outcome.file, self.base),
            "said": said.replace(f"{self.base}/", ""),
            "confidence": "" if sure is None else f"{100 * sure:.1f} %",
            "dice": "" if outcome.estimated_dice is None else f"{outcome.estimated_dice:.2f}",
        }
        self.rows.append(row)


class FolderHandlers:
    """roots: folders on the server that visitors may name, and whatever lies below them."""

    def __init__(self, handlers: Handlers, roots: Sequence[Path]):
        self.handlers = handlers
        self.roots = [root.resolve() for root in roots]
        self.kept = self.roots[0] / "corrections" if self.roots else None  # no scans to segment

    def choices(self) -> list[str]:
        """The roots and the folders in them, as they were when the app was started."""
        found = []
        for root in self.roots:
            inside = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
            found += [str(root), *(str(p) for p in inside if p != self.kept)]
        return found

    def run(self, place: str | None, files: list[str] | None, model: str, request: gr.Request):
        """For the page: (files, status, stop, table, download)."""
        tab, owner = request.session_hash or "", browser_of(request)
        session = self.handlers.sessions.of_tab(tab, owner) or self.handlers.open(request)
        skip, hidden = gr.skip(), gr.Button(visible=False)
        yield skip, progress_html(0, "Looking for scans", 0), skip, skip, hidden
        try:
            for state, job in self._run(session, place, files, model):
                done = sum(job.counts.values())
                rate = f", {done / state.seconds:.1f} a second" if state.seconds > 1 else ""
                said = f"{done} of {job.total}{rate}"
                status = progress_html(state.share, said, state.seconds)
                yield skip, status, skip, table_html(job.rows[-20:][::-1]), skip
        except gr.Error as problem:
            yield skip, note_html(problem.message, "error"), hidden, skip, hidden
            return
        said, after = _final(job, stopped=state.stopped)
        yield None, note_html(said), *after

    def stop(self, request: gr.Request):
        """What is done by now: (status, stopped, stop, table, download)."""
        session = self.handlers.sessions.of_tab(request.session_hash or "", browser_of(request))
        job: Job | None = session.batch if session else None
        if session is None or job is None or job.ended.is_set():  # an earlier one is not this one
            hidden = gr.Button(visible=False)
            return *instead_of_progress("Stopped."), hidden, gr.skip(), hidden
        session.stop("batch")
        job.ended.wait(2)
        said, after = _final(job, stopped=True)
        return *instead_of_progress(said), *after

    def batch(
        self, files: list[str] | None, folder: str, model: str, request: gr.Request
    ) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """For programs: the path of the archive, and counts by status; until then how far it is."""
        session = self.handlers.open(request, CALL_SECONDS)
        finished = False
        try:
            for state, job in self._run(session, folder, files, model):
                if state.stopped:
                    raise error("Stopped.")
                yield [], {"progress": round(state.share, 3), **job.counts}
            finished = True
        finally:
            if not finished:
                self.handlers.sessions.close(request.session_hash or "", browser_of(request))
        yield [str(job.zip)] if job.zip else [], {"scans": job.total, **job.counts}

    def _run(
        self, session: Session, place: str | None, files: list[str] | None, model: str
    ) -> Iterator[tuple[State, Job]]:
        predictor = self.handlers.models.get(model)
        if predictor is None:
            raise error(f"no model {model!r}; there are {', '.join(self.handlers.models)}")
        if bool(place) == bool(files):
            raise error("Choose a folder or drop scans, one of the two.")
        channel_files = predictor.preprocessing.channel_files
        base = self._allowed(place) if place else session.folder
        job = session.batch = Job(session.place("batch") / "out", base)

        def work(report: Report, stop: threading.Event) -> None:
            try:
                if place:
                    entries = list_inputs([base], channel_files, self.kept, job.leave_out)
                else:
                    entries = session.gather([Path(f) for f in files or []], channel_files)
                    job.base = uploads_base(entries[0]) if entries else base
                job.total = len(entries)

                def on_outcome(outcome: Outcome) -> None:
                    job.add(outcome)
                    report(sum(job.counts.values()) / max(1, job.total), "")

                try:
                    predict_batch(
                        stoppable(predictor, stop), entries, job.out, on_outcome=on_outcome
                    )
                finally:
                    if not session.closed:
                        job.zip = pack(job.out, job.base)
            finally:
                job.ended.set()

        try:
            for state in self.handlers.watch(session, "batch", work):
                yield state, job
        except SegappError as problem:
            said = str(problem).replace(str(base), Path(place or "").name)
            raise error(said) from problem

    def _allowed(self, place: str) -> Path:
        """The folder, resolved. Raises gr.Error for anything that is not below a root, whether it
        exists or not."""
        folder = Path(place)
        candidates = [folder] if folder.is_absolute() else [root / folder for root in self.roots]
        for candidate in candidates:
            with suppress(OSError, ValueError, RuntimeError):  # no name, or links in a circle
                found = candidate.resolve()
                kept = self.kept is not None and found.is_relative_to(self.kept)
                inside = any(found.is_relative_to(root) for root in self.roots)
                if inside and not kept and found.is_dir():
                    return found
        raise error("This folder is not below one that the app was started with (--root).")


def _final(job: Job, stopped: bool) -> tuple[str, tuple[Any, ...]]:
    """What to say of a batch that has ended, and (stop, table, download)."""
    words = {"ok": "ok", "review": "to review", "failed": "failed"}
    said = ", ".join(f"{job.counts[s]} {words[s]}" for s in words if job.counts[s])
    left = job.total - sum(job.counts.values())
    if stopped:
        said = f"Stopped with {left} of {job.total} left. {said}"
    if job.left_out:
        said += f"; left out: {counted(job.left_out, 'file')}, no scans"
    rows = sorted(job.rows, key=lambda row: _ORDER.index(row["status"]))
    button = gr.DownloadButton(value=str(job.zip) if job.zip else None, visible=job.zip is not None)
    return said, (gr.Button(visible=False), table_html(rows), button)


def table_html(rows: Sequence[dict[str, str]]) -> str:
    """The first rows as a table."""
    if not rows:
        return EMPTY.format("No results yet.")
    titles = ("", "Scan", "Confidence", "Est. Dice", "What to know")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join(
        f'<tr class="sa-{row["status"]}"><td>{MARKS[row["status"]]} {row["status"]}</td>'
        f'<th scope="row">{escape(row["file"])}</th><td>{row["confidence"]}</td>'
        f"<td>{row['dice']}</td><td>{escape(row['said'])}</td></tr>"
        for row in rows[:_ROWS]
    )
    more = len(rows) - _ROWS
    note = f"<p class='sa-note'>{more} more in predictions.csv.</p>" if more > 0 else ""
    return (
        f'<table class="sa-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}'
    )


def shown(path: Path, base: Path) -> str:
    """A scan's name without the server's folders."""
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name


def pack(out: Path, base: Path) -> Path | None:
    """What predict_batch wrote as an archive beside `out`, its table without the server's folders;
    None where there is nothing. Raises OutputError."""
    table = out / "predictions.csv"
    if not table.exists():
        return None
    rows = list(csv.DictReader(io.StringIO(table.read_text("utf-8", "surrogateescape"))))
    if not rows:
        return None
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    for row in rows:
        row["file"] = shown(Path(row["file"]), base)
        row["output"] = shown(Path(row["output"]), out) if row["output"] else ""
        writer.writerow({key: value.replace(f"{base}/", "") for key, value in row.items()})
    write_text(table, text.getvalue())
    path = out.parent / "segmentations.zip"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in sorted(out.rglob("*")):  # stored: they are compressed already
            if file.is_file():
                archive.write(file, file.relative_to(out).as_posix())
                file.unlink()
    return path
