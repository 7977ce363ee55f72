"""Many scans → segmentations beside a predictions.csv that says how each one went."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from segapp.ahead import in_order
from segapp.cases import files_hash
from segapp.earlier import (
    engine_text,
    is_edited,
    keep_if_other,
    model_key,
    set_aside,
    still_good,
    warn_of_stale,
    warn_of_unknown,
)
from segapp.errors import DataError, OutputError
from segapp.files import sha256
from segapp.formats import Entry, Format, read_scan, write_segmentation
from segapp.formats.listing import is_small
from segapp.formats.source import share_memory
from segapp.intake import list_inputs as list_inputs
from segapp.intake import write_left_out
from segapp.locks import alone_in, at_work, left_of_a_batch
from segapp.merging import merge_parts
from segapp.naming import Job, name_jobs
from segapp.outcomes import Outcome, OutcomeTable, Part, class_sizes, failure, mean_confidence
from segapp.predict import Predictor
from segapp.report.overlay import write_overlay
from segapp.rows import TABLE, keep_others, part_rows, put_aside, read_rows, waiting_rows
from segapp.scan import Segmentation
from segapp.shares import LEASE_S, Listed, Seat, read_jobs, refuse_shared, remove_shares

log = logging.getLogger("segapp")

_SEEN = "the model was trained on this very scan; the result says little about new ones"
_MOST_UNWRITTEN = 3  # results in a row, after which nobody waits for the other 9,997


def predict_entry(
    predictor: Predictor,
    entry: Entry,
    output: Path,
    on_slab: Callable[[int, int, np.ndarray], None] = lambda *_: None,
    allow_gaps: bool = False,
    scan_hash: str | None = None,
) -> tuple[Segmentation, Outcome]:
    """Segment one scan and write the result to `output`. Raises ScanError, OutputError.

    on_slab: see Predictor. allow_gaps: see read_scan. scan_hash: of its files, where it is known.
    """
    began = time.perf_counter()
    scan_hash = _scan_hash(entry) if scan_hash is None else scan_hash
    scan = read_scan(entry.paths, allow_gaps)
    segmentation = predictor(scan, on_slab)
    write_segmentation(segmentation, output)
    seen = (_SEEN,) if scan_hash in predictor.learned else ()
    outcome = Outcome(
        file=entry.source,
        output=output,
        warnings=(*entry.doubts, *segmentation.warnings, *seen),
        scan_sha256=scan_hash,
        mean_confidence=mean_confidence(segmentation),
        sizes=class_sizes(segmentation),
    )
    if judged := segmentation.assessment:
        outcome.estimated_dice, outcome.unlikeness = judged.estimated_dice, judged.unlikeness
        outcome.range_coverage = judged.promised or None
        if judged.review:
            outcome.status, outcome.reason = "review", "; ".join(judged.review)
    outcome.seconds = time.perf_counter() - began
    return segmentation, outcome


def predict_batch(
    predictor: Predictor,
    entries: Iterable[Entry],
    out: Path,
    *,
    output_format: Format = "same",
    overlay: bool = False,
    skip_existing: bool = False,
    allow_gaps: bool = False,
    left_out: Sequence[tuple[Path, str]] = (),
    on_outcome: Callable[[Outcome], None] = lambda _: None,
    seat: Seat | None = None,
) -> Counter[str]:
    """Segment every entry into `out`, mirroring names, and write out/predictions.csv.

    A scan that fails is recorded, and the others go on. Never writes over an input, or over the
    result of another scan: a clash of names gets a numbered suffix and a warning. The CSV is
    complete after each scan, also when the run is interrupted or killed. skip_existing: leave the
    results of an earlier run that still are what it would give (see `earlier.still_good`). What
    somebody edited is never lost. left_out: files among the scans that are none, for left-out.csv.
    on_outcome gets each outcome, in the order of the entries; none is kept. Returns the number of
    scans by status, `review_kept` being those skipped whose result is in doubt. Raises OutputError
    where the CSV can't be written, or three results in a row. allow_gaps: see read_scan. seat: this
    process's in a batch that several share (see `shares`); the entries are rank 0's, on_outcome
    gets those of its share, and the CSV is there at the end; to the others nothing is returned.
    """
    entries = list(entries)
    path, model = out / TABLE, model_key(predictor, allow_gaps)
    judged = bool(predictor.info and predictor.info.quality)

    def name(earlier: Mapping[str, Mapping[str, str]]) -> Iterator[Job]:
        how: Any = {"output_format": output_format, "overlay": overlay, "kept": skip_existing}
        return name_jobs(entries, out, earlier, **how)

    def work(jobs: Iterable[Job], table: OutcomeTable, earlier: dict[str, dict[str, str]]) -> None:
        def tell(outcome: Outcome) -> None:
            counts[outcome.counts_as] += 1
            on_outcome(outcome)

        how = {"model": model, "allow_gaps": allow_gaps, "kept": skip_existing}
        _work(predictor, jobs, table, earlier, tell, **how)

    def share(seat: Seat, listed: Listed) -> None:
        part = listed.part(seat.ranks.rank)
        jobs = read_jobs(listed, seat.ranks)
        own_lock = at_work(part.with_suffix(".lock"), alone=True, patience_s=LEASE_S)
        with at_work(seat.lock), own_lock:
            own = {os.path.realpath(job.output) for job in jobs}
            earlier = {output: row for output, row in waiting_rows(path).items() if output in own}
            with Part(part, predictor.classes, judged) as table:
                work(jobs, table, earlier | part_rows(part))

    counts: Counter[str] = Counter()
    if seat is None:
        refuse_shared(out)
        with alone_in(out, left_of_a_batch):
            write_left_out(out, left_out)
            earlier = read_rows(path)
            if skip_existing:
                warn_of_unknown(out, earlier, (job.output for job in name(earlier)))
            with OutcomeTable(path, predictor.classes, earlier, judged, model) as table:
                remove_shares(out)  # its lines are among the earlier ones
                work(name(earlier), table, earlier)
            warn_of_stale(path)
        return counts
    header = {"processes": seat.ranks.count, "inputs": seat.inputs}
    header |= {"model": model.partition("-")[0]}  # of the file, whatever runs it
    header |= {"format": output_format, "overlay": overlay, "allow_gaps": allow_gaps}
    header |= {"skip_existing": skip_existing}
    mark = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:16]
    seat.engine = engine_text(predictor)
    if not seat.ranks.first:
        _share_until_done(seat, header, share)
        return Counter()
    with alone_in(out, left_of_a_batch, after=True):
        write_left_out(out, left_out)
        listed = seat.joined(header)
        if listed is None:
            put_aside(path, earlier := read_rows(path), model, mark)
            if skip_existing:
                warn_of_unknown(out, earlier, (job.output for job in name(earlier)))
            path.unlink(missing_ok=True)
            listed = seat.publish(header, name(earlier))
        before = seat.marks(listed)
        with at_work(seat.lock):
            share(seat, listed)
            seat.await_others(listed, before)
            header_line = OutcomeTable(path, predictor.classes, {}, judged).header()
            counts = merge_parts(listed, seat.ranks.count, header_line, path)
            keep_others(path, mark)
            warn_of_stale(path)
        seat.leave()
        remove_shares(out)
    return counts


def _work(
    predictor: Predictor,
    jobs: Iterable[Job],
    table: OutcomeTable,
    earlier: Mapping[str, dict[str, str]],
    tell: Callable[[Outcome], None],
    **how: Any,
) -> None:
    """Do the jobs; each gets its line in the table, in their order, and is told of. how: see
    `_predict_safely`."""
    done: dict[int, Outcome] = {}  # by their ids: those that have no line yet

    def predict(job: Job) -> Outcome:
        if job.reason:
            outcome = Outcome(job.entry.source, status="failed", reason=job.reason)
        else:
            line = earlier.get(os.path.realpath(job.output))
            outcome = _predict_safely(predictor, job, line, **how)
        outcome.number = job.number
        done[id(outcome)] = outcome
        return outcome

    engine = predictor.engine
    threads = engine.calls_at_once * engine.batch_size + 1  # one reads or writes meanwhile
    threads = threads if engine.calls_at_once > 1 else 1
    unwritten = 0  # in a row
    try:
        # volumes go one by one, each through all that the engine computes at once
        for small, group in groupby(jobs, lambda job: is_small(job.entry.paths)):
            share_memory(threads if small else 1)
            for outcome in in_order(predict, group, threads if small else 1):
                del done[id(outcome)]
                table.write(outcome)
                tell(outcome)
                unwritten = unwritten + 1 if outcome.unwritten else 0
                if unwritten >= _MOST_UNWRITTEN:
                    raise OutputError(
                        f"{outcome.reason}; so it was {unwritten} times in a row: make "
                        "sure it can, then go on with the same command and --skip-existing"
                    )
    finally:
        left = list(done.values())  # interrupted: what was written has its line
        for outcome in left:
            table.write(outcome)
        for outcome in left:
            tell(outcome)


def _share_until_done(
    seat: Seat, header: dict[str, Any], share: Callable[[Seat, Listed], None]
) -> None:
    """Do this process's share, and where the list changed meanwhile, that of the new one."""
    while True:
        listed = seat.await_list(header)
        try:
            share(seat, listed)
        except OutputError:  # its part may have gone with its list
            if seat.is_current(listed):
                raise
        if seat.is_current(listed):
            return seat.say_done(listed)
        log.warning("the list of scans changed; starting with the new one")


def _predict_safely(
    predictor: Predictor,
    job: Job,
    line: dict[str, str] | None,
    *,
    model: str,
    allow_gaps: bool,
    kept: bool,
) -> Outcome:
    """The outcome of one entry, whatever happens to it. line: that of an earlier result, which may
    stay. kept: it stays where it still is good, and what no line vouches for is not lost either.
    What somebody edited never is."""
    entry, output = job.entry, job.output
    goes_on = kept or bool(line and line.get("stopped"))
    try:
        scan = _scan_hash(entry)
        stays, doubt, ours = False, "", True
        if goes_on and output.is_file():
            stays, doubt, ours = still_good(entry, output, line, model, scan, predictor.classes)
        warnings = (*job.clashes, doubt) if doubt else job.clashes
        # an edited result (the doubt) is not written over for the sake of its picture either
        if stays and (doubt or job.picture is None or job.picture.is_file()):
            outcome = Outcome(entry.source, output, "skipped", "output exists", before=line)
            if line and line.get("stopped"):  # this very batch did it
                status = line.get("counts_as") or line.get("status") or "ok"
                outcome.status = "skipped" if status == "review_kept" else status
                outcome.reason = line.get("reason") or ""
            outcome.warnings = warnings
            return outcome
        edited = is_edited(output, line)
        aside = set_aside(output) if edited or (kept and not ours) else None
        try:
            how = {"allow_gaps": allow_gaps, "scan_hash": scan}
            segmentation, outcome = predict_entry(predictor, entry, output, **how)
        finally:
            if aside:
                warnings += keep_if_other(aside, output, edited)
        outcome.warnings = (*outcome.warnings, *warnings)
        outcome.model, outcome.output_sha256 = model, sha256(output)
        if job.picture:
            try:
                write_overlay(segmentation, predictor.preprocessing.slice_axis, job.picture)
            except (OutputError, OSError) as error:  # the result is good without it
                outcome.warnings = (*outcome.warnings, f"no picture: {error}")
        return outcome
    except Exception as error:  # a bug of ours must not stop the other 9,999 files
        return failure(entry.source, error)


def _scan_hash(entry: Entry) -> str:
    try:
        return files_hash(entry.paths)
    except (DataError, ValueError):  # reading it will say what is wrong
        return ""
