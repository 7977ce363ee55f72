"""Many scans → segmentations beside a predictions.csv that says how each one went."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segapp.errors import DataError, OutputError, ScanError, SegappError
from segapp.formats import (
    Entry,
    Format,
    find_scans,
    output_suffix,
    read_scan,
    stem,
    write_segmentation,
)
from segapp.formats.listing import FORMATS, is_readable_zip
from segapp.predict import Predictor
from segapp.report.overlay import write_overlay
from segapp.scan import SegClass, Segmentation

log = logging.getLogger("segapp")


@dataclass
class Outcome:
    """One line of predictions.csv. `sizes` holds voxels and, where known, ml or mm² by column."""

    file: Path
    output: Path | None = None
    status: str = "ok"  # ok | failed | skipped
    reason: str = ""
    seconds: float = 0.0
    mean_confidence: float | None = None
    warnings: tuple[str, ...] = ()
    sizes: dict[str, float] = field(default_factory=dict)


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
) -> list[Outcome]:
    """Segment every entry into `out`, mirroring names, and write out/predictions.csv.

    A scan that fails is recorded, and the others go on. Never writes over an input, or over the
    result of another scan: a clash of names gets a numbered suffix and a warning. The CSV is
    complete after each scan, also when the run is interrupted. Raises OutputError only where the
    CSV itself can't be written. allow_gaps: see read_scan.
    """
    options = (output_format, overlay, skip_existing, allow_gaps)
    entries = list(entries)
    taken = {path.resolve() for entry in entries for path in entry.paths}
    outcomes: list[Outcome] = []
    table_path = out / "predictions.csv"
    earlier = _read_rows(table_path)
    owners = {Path(output): Path(row["file"]) for output, row in earlier.items()}
    names = _Names(out, taken, owners, kept=skip_existing)
    with _CsvFile(table_path, predictor.classes, earlier) as table:
        for entry in entries:
            outcome = _predict_safely(predictor, entry, names, *options)
            outcomes.append(outcome)
            table.write(outcome)
            on_outcome(outcome)
    return outcomes


def _predict_safely(
    predictor: Predictor,
    entry: Entry,
    names: _Names,
    output_format: Format,
    overlay: bool,
    skip_existing: bool,
    allow_gaps: bool,
) -> Outcome:
    """The outcome of one entry, whatever happens to it."""
    try:
        suffix = output_suffix(entry.paths[0], output_format)
        output, clashes = names.take(entry.name, suffix, entry.source)
        picture = None
        if overlay:
            name = output.relative_to(names.out).with_name(f"{stem(output)}_overlay").as_posix()
            picture, more = names.take(name, ".png", entry.source)
            clashes += more
        if skip_existing and output.exists():
            return Outcome(entry.source, output, "skipped", "output exists", warnings=clashes)
        segmentation, outcome = predict_entry(predictor, entry, output, allow_gaps=allow_gaps)
        outcome.warnings = (*outcome.warnings, *clashes)
        if picture:
            write_overlay(segmentation, predictor.preprocessing.slice_axis, picture)
        return outcome
    except SegappError as error:
        reason = error.reason if isinstance(error, ScanError) else str(error)
        return Outcome(entry.source, status="failed", reason=reason)
    except MemoryError:
        return Outcome(entry.source, status="failed", reason="not enough memory for this scan")
    except Exception as error:  # a bug of ours must not stop the other 9,999 files
        log.exception("%s: unexpected error", entry.source)
        reason = f"unexpected {type(error).__name__}: {error}"
        return Outcome(entry.source, status="failed", reason=reason)


class _Names:
    """Which names below `out` are free.

    taken: resolved paths of all inputs, and of what has been written for them. owners: output →
    its scan, by an earlier predictions.csv; with `kept` these results stay, so their names are
    another scan's. Where inputs lie below `out`, files that no table knows are somebody's too.
    """

    def __init__(self, out: Path, taken: set[Path], owners: dict[Path, Path], kept: bool):
        self.out, self.taken, self.kept = out, taken, kept
        self.owners = {output.resolve(): file.resolve() for output, file in owners.items()}
        self.shared = any(out.resolve() in path.parents for path in taken)

    def take(self, name: str, suffix: str, source: Path) -> tuple[Path, tuple[str, ...]]:
        """A free path for a result of `source`, which is then taken, and a warning if it is not
        the first choice."""
        first = candidate = self.out / f"{name}{suffix}"
        number = 1
        while not self._is_free(candidate.resolve(), source.resolve()):
            number += 1
            candidate = self.out / f"{name}_{number}{suffix}"
        self.taken.add(candidate.resolve())
        if candidate == first:
            return first, ()
        return candidate, (f"{first.name} is taken; written as {candidate.name}",)

    def _is_free(self, path: Path, source: Path) -> bool:
        owner = self.owners.get(path, source if self.kept else None)
        if path in self.taken or (self.kept and owner != source):
            return False
        listed = owner is not None or path.name.endswith("_overlay.png")  # pictures are in no table
        return listed or not (self.shared and path.exists())


def mean_confidence(segmentation: Segmentation) -> float | None:
    """Mean probability of the chosen class over the foreground; if there is none, everywhere."""
    if segmentation.confidence is None:
        return None
    inside = segmentation.labels > 0
    values = segmentation.confidence[inside] if inside.any() else segmentation.confidence
    return float(values.mean(dtype=np.float64))


def class_sizes(segmentation: Segmentation) -> dict[str, float]:
    """Column → value: voxels of each class, and its ml (volumes) or mm² (slices) where known."""
    sizes: dict[str, float] = {
        f"{name}_voxels": count for name, count in segmentation.voxel_counts().items()
    }
    if segmentation.scan.affine is not None:
        volume = segmentation.scan.shape[2] > 1
        unit = "ml" if volume else "mm2"
        measured = segmentation.volumes_ml() if volume else segmentation.areas_mm2()
        sizes |= {f"{name}_{unit}": value for name, value in measured.items()}
    return sizes


_OWN_COLUMNS = ("file", "output", "status", "reason")  # what a skipped scan says anew


def _read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Output → line of an earlier predictions.csv; empty where there is none to read."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return {}
    return {row["output"]: row for row in csv.DictReader(io.StringIO(text)) if row.get("output")}


class _CsvFile:
    """predictions.csv, complete after each line, so that an interrupted batch keeps its record."""

    def __init__(
        self, path: Path, classes: tuple[SegClass, ...], earlier: dict[str, dict[str, str]]
    ):
        self.path = path
        self.earlier = earlier  # output → its line; a skipped scan keeps its figures
        self.columns = ["file", "output", "status", "reason", "seconds", "mean_confidence"]
        self.columns += ["warnings"]
        for unit in ("voxels", "ml", "mm2"):
            self.columns += [f"{c.name}_{unit}" for c in classes]

    def __enter__(self) -> _CsvFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # File names need not be UTF-8; surrogateescape writes the bytes they came with.
            self.file = self.path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
        self.writer = csv.DictWriter(self.file, self.columns)
        self.writer.writeheader()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, outcome: Outcome) -> None:
        confidence = outcome.mean_confidence
        row: dict[str, object] = {
            "file": outcome.file,
            "output": str(outcome.output or ""),
            "status": outcome.status,
            "reason": outcome.reason,
            "seconds": f"{outcome.seconds:.3f}",
            "mean_confidence": "" if confidence is None else f"{confidence:.4f}",
            "warnings": "; ".join(outcome.warnings),
        }
        if outcome.status == "skipped":
            before = self.earlier.get(str(outcome.output), {})
            kept = {k: before[k] for k in self.columns if before.get(k) and k not in _OWN_COLUMNS}
            row |= kept
        for column, value in outcome.sizes.items():
            row[column] = value if column.endswith("_voxels") else f"{value:.6g}"
        try:
            self.writer.writerow(row)
            self.file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
