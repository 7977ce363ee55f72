"""What became of each scan of a batch: predictions.csv."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segapp.errors import OutputError, ScanError, SegappError
from segapp.progress import log_bug
from segapp.rows import csv_text, keep_rows_of_others, put_aside, whole_rows
from segapp.scan import SegClass, Segmentation, planes


@dataclass
class Outcome:
    """One line of predictions.csv.

    status: ok, or review where the model itself doubts the result, for the reason given; failed or
    skipped. sizes: voxels and, where known, ml or mm² by column, each class's range among them.
    """

    file: Path
    output: Path | None = None
    status: str = "ok"
    reason: str = ""
    seconds: float = 0.0
    mean_confidence: float | None = None
    warnings: tuple[str, ...] = ()
    sizes: dict[str, float] = field(default_factory=dict)
    estimated_dice: float | None = None
    unlikeness: float | None = None
    range_coverage: float | None = None  # share of scans in which a range holds the true size
    model: str = ""  # see `earlier.model_key`
    scan_sha256: str = ""
    output_sha256: str = ""
    unwritten: bool = False  # failed because the disk refused the output
    before: Mapping[str, str] | None = None  # the earlier line of a result that stays
    number: int = -1  # its place in the list of a batch that several processes share

    @property
    def counts_as(self) -> str:
        """What it is in the number of scans by status: review_kept, if skipped and in doubt."""
        kept = self.status == "skipped" and (self.before or {}).get("status") == "review"
        return "review_kept" if kept else self.status


def failure(file: Path, error: Exception) -> Outcome:
    """The outcome of a scan whose segmentation raised `error`."""
    # not where the format asked for can't hold the result, which says nothing of the next one
    unwritten = isinstance(error, OutputError) and isinstance(error.__cause__, OSError)
    return Outcome(file, status="failed", reason=reason_of(error), unwritten=unwritten)


def reason_of(error: Exception) -> str:
    if isinstance(error, SegappError):
        return error.reason if isinstance(error, ScanError) else str(error)
    if isinstance(error, MemoryError):
        return "not enough memory for this scan"
    if isinstance(error, OSError):
        return f"can't be read ({error.strerror or error})"
    log_bug("segmenting a scan", error)
    return f"unexpected {type(error).__name__}: {error}"


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


_JUDGED = ("estimated_dice", "unlikeness", "range_coverage")
_VOUCHING = ("model", "scan_sha256", "output_sha256")
# a scan whose result stays says them anew
_OWN_COLUMNS = ("number", "counts_as", "file", "output", "status", "reason", "warnings")


class OutcomeTable:
    """predictions.csv, complete after each line, so that a batch that is stopped keeps its record.

    The lines of an earlier batch stand in a file beside it until this one has gone through all its
    scans; those of other scans' results stay there. A context; raises OutputError where the table
    can't be written or was taken away.
    """

    def __init__(
        self,
        path: Path,
        classes: tuple[SegClass, ...],
        earlier: dict[str, dict[str, str]],
        judged: bool = False,
        model: str = "",
    ):
        """judged: whether the model judges its results. model: its key."""
        self.path = path
        self.model = model
        self.earlier = earlier  # output, resolved → its line
        self.named: set[str] = set()  # outputs of this batch, resolved
        self.columns = ["file", "output", "status", "reason", "seconds", "mean_confidence"]
        self.columns += ["warnings"]
        for unit in ("voxels", "ml", "mm2"):
            self.columns += [f"{c.name}_{unit}" for c in classes]
        if judged:
            self.columns += [*_JUDGED]
            sizes = [f"{c.name}_{unit}" for unit in ("voxels", "ml", "mm2") for c in classes]
            self.columns += [f"{size}_{end}" for size in sizes for end in ("low", "high")]
        self.columns += _VOUCHING

    def __enter__(self) -> OutcomeTable:
        put_aside(self.path, self.earlier, self.model)
        self._open("wb")
        return self

    def _open(self, mode: str) -> None:
        """Open the file, with a header where it is empty."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, mode, buffering=0, opener=_appending)  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
        try:
            if not os.fstat(self.file.fileno()).st_size:
                self._append(self.header())
        except OutputError:
            self.file.close()
            with suppress(OSError):
                self.path.unlink()  # a table without a header is none
            raise

    def header(self) -> str:
        return csv_text(self.columns, (), header=True)

    def __exit__(self, kind: object, *_: object) -> None:
        self.file.close()
        if kind is None:
            # results of other scans, which this batch was not about, still are theirs
            others = {p: row for p, row in self.earlier.items() if p not in self.named}
            keep_rows_of_others(self.path, others)

    def write(self, outcome: Outcome) -> None:
        """Add the line of a scan. Raises OutputError."""
        if outcome.output:
            self.named.add(os.path.realpath(outcome.output))
        confidence = outcome.mean_confidence
        row: dict[str, object] = {
            "file": outcome.file,
            "output": str(outcome.output or ""),
            "status": outcome.status,
            "reason": outcome.reason,
            "seconds": f"{outcome.seconds:.3f}",
            "mean_confidence": "" if confidence is None else f"{confidence:.4f}",
            **{column: getattr(outcome, column) for column in _VOUCHING},
            "number": outcome.number,
            "counts_as": outcome.counts_as,
        }
        warnings = [*outcome.warnings]
        for column in _JUDGED:
            if (judged := getattr(outcome, column)) is not None:
                row[column] = f"{judged:.4g}"
        if (before := outcome.before) is not None:
            if not warnings and before.get("number") == str(outcome.number):
                return  # it is in this part already
            kept = {k: before[k] for k in self.columns if before.get(k) and k not in _OWN_COLUMNS}
            row |= kept
            said = before.get("warnings") or ""
            # warnings may hold a "; " themselves
            warnings = [said, *(w for w in warnings if f"; {w}; " not in f"; {said}; ")]
            if before.get("status") == "review":  # it still is in doubt
                row |= {"status": "review", "reason": before.get("reason") or ""}
        row["warnings"] = "; ".join(filter(None, dict.fromkeys(warnings)))
        for column, value in outcome.sizes.items():
            row[column] = value if isinstance(value, int) else f"{value:.6g}"
        self._append(csv_text(self.columns, [row]))

    def _append(self, text: str) -> None:
        """The whole text or nothing of it. File names need not be UTF-8: surrogateescape writes the
        bytes they came with."""
        data = text.encode("utf-8", "surrogateescape")
        try:
            there, ours = self.path.stat(), os.fstat(self.file.fileno())
            if not os.path.samestat(there, ours):
                raise FileNotFoundError
            try:
                written = 0
                while written < len(data):  # a disk that gets full takes a part first
                    written += self.file.write(data[written:])
            except OSError:
                with suppress(OSError):
                    self.file.truncate(ours.st_size)
                raise
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.path}: is no longer there; was its folder or its disk taken away?"
            ) from error
        except OSError as error:
            raise OutputError(
                f"{self.path}: can't be written ({error.strerror}); make sure it can, then go on "
                "with the same command and --skip-existing"
            ) from error


class Part(OutcomeTable):
    """The lines of one of several processes that share a batch, each with its number in the list
    and the status it counts as. They stay until predictions.csv is made of them; of two with one
    number the last one counts."""

    def __init__(self, path: Path, classes: tuple[SegClass, ...], judged: bool = False):
        super().__init__(path, classes, {}, judged)
        self.columns = ["number", "counts_as", *self.columns]

    def __enter__(self) -> Part:
        try:
            end = max((at + size for at, size, _ in whole_rows(self.path)), default=0)
            os.truncate(self.path, end)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
        self._open("ab")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self.file.fileno())  # what is called done must be there
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
        finally:
            self.file.close()


def _appending(name: str, flags: int) -> int:
    """Lines go where the file ends, also after another batch in the folder emptied it: not every
    file system has the locks that keep it away."""
    return os.open(name, flags | os.O_APPEND, 0o666)
