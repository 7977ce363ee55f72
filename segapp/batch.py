"""Many scans → segmentations beside a predictions.csv that says how each one went."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from segapp.ahead import in_order
from segapp.cases import files_hash
from segapp.earlier import model_key, still_good
from segapp.errors import DataError, OutputError, ScanError, SegappError
from segapp.files import sha256
from segapp.formats import (
    Entry,
    Format,
    find_scans,
    output_suffix,
    read_scan,
    stem,
    write_segmentation,
)
from segapp.formats.listing import FORMATS, is_readable_zip, is_small
from segapp.formats.source import share_memory
from segapp.locks import alone_in, left_of_a_batch
from segapp.outcomes import Outcome, OutcomeTable, read_rows
from segapp.predict import Predictor
from segapp.progress import log_bug
from segapp.report.overlay import write_overlay
from segapp.scan import Segmentation, planes

log = logging.getLogger("segapp")

_MOST_UNWRITTEN = 3  # results in a row, after which nobody waits for the other 9,997


def list_inputs(
    inputs: Sequence[Path], channel_files: int = 1, exclude: Path | None = None
) -> list[Entry]:
    """Entries of files, folders and zip archives, in the order given.

    A file named explicitly is one entry (several channel files of one scan, or the slices of a
    DICOM series, must be given as their folder); a folder or archive is searched, but not below
    `exclude` inside it, where the outputs go. Raises DataError for a path that doesn't exist, and
    for a folder without scans.
    """
    entries: list[Entry] = []
    for path in inputs:
        if path.is_dir() or (path.suffix.lower() == ".zip" and is_readable_zip(path)):
            found = find_scans(path, channel_files)
            if exclude is not None and path.resolve() in exclude.resolve().parents:
                found = [e for e in found if not _below(e, exclude)]
            if not found:
                raise DataError(f"{path}: holds no scans; read are {FORMATS}")
            entries += found
        elif path.exists():
            entries.append(Entry(stem(path), (path,)))
        else:
            raise DataError(f"{path}: no such file or folder")
    return entries


def _below(entry: Entry, folder: Path) -> bool:
    return entry.paths[0].resolve().is_relative_to(folder.resolve())


def predict_entry(
    predictor: Predictor,
    entry: Entry,
    output: Path,
    on_slab: Callable[[int, int, np.ndarray], None] = lambda *_: None,
    allow_gaps: bool = False,
) -> tuple[Segmentation, Outcome]:
    """Segment one scan and write the result to `output`. Raises ScanError, OutputError.

    on_slab: see Predictor. allow_gaps: see read_scan.
    """
    began = time.perf_counter()
    scan = read_scan(entry.paths, allow_gaps)
    segmentation = predictor(scan, on_slab)
    write_segmentation(segmentation, output)
    outcome = Outcome(
        file=entry.source,
        output=output,
        warnings=(*entry.doubts, *segmentation.warnings),
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
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> Counter[str]:
    """Segment every entry into `out`, mirroring names, and write out/predictions.csv.

    A scan that fails is recorded, and the others go on. Never writes over an input, or over the
    result of another scan: a clash of names gets a numbered suffix and a warning. The CSV is
    complete after each scan, also when the run is interrupted or killed. skip_existing: leave the
    results of an earlier run that still are what it would give (see `earlier.still_good`).
    on_outcome gets each outcome, in the order of the entries; none is kept. Returns the number of
    scans by status. Raises OutputError where the CSV can't be written, or three results in a row.
    allow_gaps: see read_scan.
    """
    entries = list(entries)
    with alone_in(out, left_of_a_batch):
        taken = {os.path.realpath(path) for entry in entries for path in entry.paths}
        counts: Counter[str] = Counter()
        table_path = out / "predictions.csv"
        earlier = read_rows(table_path)
        owners = {Path(output): Path(row["file"] or "") for output, row in earlier.items()}
        names = _Names(out, taken, owners, kept=skip_existing)
        model = model_key(predictor, allow_gaps)
        done: dict[int, Outcome] = {}  # by their ids: those that have no line yet

        def predict(job: _Job) -> Outcome:
            outcome = job.outcome
            if outcome is None:
                line = earlier.get(os.path.realpath(job.output)) if skip_existing else None
                outcome = _predict_safely(predictor, job, allow_gaps, model, line)
            done[id(outcome)] = outcome
            return outcome

        jobs = (_Job.of(entry, names, output_format, overlay) for entry in entries)
        engine = predictor.engine
        threads = engine.calls_at_once * engine.batch_size + 1  # one reads or writes meanwhile
        threads = threads if engine.calls_at_once > 1 else 1
        judged = bool(predictor.info and predictor.info.quality)
        unwritten = 0  # in a row
        table = OutcomeTable(table_path, predictor.classes, earlier, judged, model)
        with table:
            try:
                # volumes go one by one, each through all that the engine computes at once
                for small, group in groupby(jobs, lambda job: is_small(job.entry.paths)):
                    share_memory(threads if small else 1)
                    for outcome in in_order(predict, group, threads if small else 1):
                        del done[id(outcome)]
                        table.write(outcome)
                        counts[outcome.status] += 1
                        on_outcome(outcome)
                        unwritten = unwritten + 1 if outcome.unwritten else 0
                        if unwritten >= _MOST_UNWRITTEN:
                            raise OutputError(
                                f"{outcome.reason}; so it was {unwritten} times in a row: make "
                                "sure it can, then go on with the same command and --skip-existing"
                            )
            finally:
                for outcome in list(done.values()):  # interrupted: what was written has its line
                    table.write(outcome)
    return counts


@dataclass(frozen=True)
class _Job:
    """An entry, and where its results go; or its outcome, where there is nothing to do."""

    entry: Entry
    output: Path
    picture: Path | None = None
    clashes: tuple[str, ...] = ()
    outcome: Outcome | None = None

    @classmethod
    def of(cls, entry: Entry, names: _Names, output_format: Format, overlay: bool) -> _Job:
        """Names are given in the order of the entries, whichever is segmented first."""
        try:
            suffix = output_suffix(entry.paths[0], output_format)
            output, clashes = names.take(entry.name, suffix, entry.source)
            picture = None
            if overlay:
                name = output.relative_to(names.out).with_name(f"{stem(output)}_overlay").as_posix()
                picture, more = names.take(name, ".png", entry.source)
                clashes += more
            return cls(entry, output, picture, clashes)
        except Exception as error:  # of this entry alone
            return cls(entry, Path(), outcome=_failed(entry, error))


def _predict_safely(
    predictor: Predictor, job: _Job, allow_gaps: bool, model: str, line: dict[str, str] | None
) -> Outcome:
    """The outcome of one entry, whatever happens to it. line: that of an earlier result, which may
    stay."""
    entry, output = job.entry, job.output
    try:
        scan = _scan_hash(entry)
        stays, doubt = False, ""
        if line and output.is_file():
            stays, doubt = still_good(entry, output, line, model, scan)
        warnings = (*job.clashes, doubt) if doubt else job.clashes
        # an edited result (the doubt) is not written over for the sake of its picture either
        if stays and (doubt or job.picture is None or job.picture.is_file()):
            return Outcome(entry.source, output, "skipped", "output exists", warnings=warnings)
        segmentation, outcome = predict_entry(predictor, entry, output, allow_gaps=allow_gaps)
        outcome.warnings = (*outcome.warnings, *warnings)
        outcome.model, outcome.scan_sha256, outcome.output_sha256 = model, scan, sha256(output)
        if job.picture:
            try:
                write_overlay(segmentation, predictor.preprocessing.slice_axis, job.picture)
            except (OutputError, OSError) as error:  # the result is good without it
                outcome.warnings = (*outcome.warnings, f"no picture: {error}")
        return outcome
    except Exception as error:  # a bug of ours must not stop the other 9,999 files
        return _failed(entry, error)


def _scan_hash(entry: Entry) -> str:
    try:
        return files_hash(entry.paths)
    except (DataError, ValueError):  # reading it will say what is wrong
        return ""


def _failed(entry: Entry, error: Exception) -> Outcome:
    if isinstance(error, SegappError):
        reason = error.reason if isinstance(error, ScanError) else str(error)
    elif isinstance(error, MemoryError):
        reason = "not enough memory for this scan"
    elif isinstance(error, OSError):
        reason = f"can't be read ({error.strerror or error})"
    else:
        log_bug("segmenting a scan", error)
        reason = f"unexpected {type(error).__name__}: {error}"
    unwritten = isinstance(error, OutputError)
    return Outcome(entry.source, status="failed", reason=reason, unwritten=unwritten)


class _Names:
    """Which names below `out` are free.

    taken: resolved paths of all inputs, and of what has been written for them. owners: output →
    its scan, by an earlier predictions.csv; with `kept` these results stay, so their names are
    another scan's. Where inputs lie below `out`, files that no table knows are somebody's too.
    Paths are strings here, which take a quarter of the memory.
    """

    def __init__(self, out: Path, taken: set[str], owners: dict[Path, Path], kept: bool):
        self.out, self.taken, self.kept = out, taken, kept
        self.owners = {os.path.realpath(o): os.path.realpath(f) for o, f in owners.items()}
        self.shared = any(path.startswith(f"{out.resolve()}{os.sep}") for path in taken)

    def take(self, name: str, suffix: str, source: Path) -> tuple[Path, tuple[str, ...]]:
        """A free path for a result of `source`, which is then taken, and a warning if it is not
        the first choice."""
        first = candidate = self.out / f"{name}{suffix}"
        number = 1
        while not self._is_free(resolved := os.path.realpath(candidate), source):
            number += 1
            candidate = self.out / f"{name}_{number}{suffix}"
        self.taken.add(resolved)
        if candidate == first:
            return first, ()
        return candidate, (f"{first.name} is taken; written as {candidate.name}",)

    def _is_free(self, path: str, source: Path) -> bool:
        owner = self.owners.get(path)
        if path in self.taken or (self.kept and owner not in (None, os.path.realpath(source))):
            return False
        listed = self.kept or owner is not None
        listed = listed or path.endswith("_overlay.png")  # pictures are in no table
        return listed or not (self.shared and Path(path).exists())


def mean_confidence(segmentation: Segmentation) -> float | None:
    """Mean probability of the chosen class over the foreground; if there is none, everywhere."""
    if segmentation.confidence is None:
        return None
    inside, count = 0.0, 0
    for labels, sure in planes(segmentation.labels, segmentation.confidence):
        chosen = labels > 0
        inside += float((sure.astype(np.float32) * chosen).sum(dtype=np.float64))
        count += int(np.count_nonzero(chosen))
    if count:
        return inside / count
    everywhere = (p.sum(dtype=np.float64) for (p,) in planes(segmentation.confidence))
    return float(sum(everywhere)) / segmentation.labels.size


def class_sizes(segmentation: Segmentation) -> dict[str, float]:
    """Column → value: voxels of each class, and its ml (volumes) or mm² (slices) where known; the
    same with _low and _high for the range that its true size is in, where that is known."""
    sizes: dict[str, float] = {}
    counts, (voxel, unit) = segmentation.voxel_counts(), segmentation.scan.voxel_size()
    for c, ends in zip(segmentation.classes, segmentation.ranges(), strict=True):
        found: dict[str, float] = {"": counts[c.name]}
        if ends:
            found |= {"_low": math.floor(ends[0]), "_high": math.ceil(ends[1])}
        for end, count in found.items():
            sizes[f"{c.name}_voxels{end}"] = count
            if unit != "voxels":
                sizes[f"{c.name}_{unit}{end}"] = count * voxel
    return sizes
