"""What became of each scan of a batch: predictions.csv."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from segapp.errors import OutputError
from segapp.scan import SegClass


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


_JUDGED = ("estimated_dice", "unlikeness", "range_coverage")
_OWN_COLUMNS = ("file", "output", "status", "reason")  # what a skipped scan says anew


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Output → line of an earlier predictions.csv; empty where there is none to read."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return {}
    return {row["output"]: row for row in csv.DictReader(io.StringIO(text)) if row.get("output")}


class OutcomeTable:
    """predictions.csv, complete after each line, so that an interrupted batch keeps its record."""

    def __init__(
        self,
        path: Path,
        classes: tuple[SegClass, ...],
        earlier: dict[str, dict[str, str]],
        judged: bool = False,
    ):
        """judged: whether the model judges its results."""
        self.path = path
        self.earlier = earlier  # output → its line; a skipped scan keeps its figures
        self.columns = ["file", "output", "status", "reason", "seconds", "mean_confidence"]
        self.columns += ["warnings"]
        for unit in ("voxels", "ml", "mm2"):
            self.columns += [f"{c.name}_{unit}" for c in classes]
        if judged:
            self.columns += [*_JUDGED]
            sizes = [f"{c.name}_{unit}" for unit in ("voxels", "ml", "mm2") for c in classes]
            self.columns += [f"{size}_{end}" for size in sizes for end in ("low", "high")]

    def __enter__(self) -> OutcomeTable:
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
        for column in _JUDGED:
            if (judged := getattr(outcome, column)) is not None:
                row[column] = f"{judged:.4g}"
        if outcome.status == "skipped":
            before = self.earlier.get(str(outcome.output), {})
            kept = {k: before[k] for k in self.columns if before.get(k) and k not in _OWN_COLUMNS}
            row |= kept
            if before.get("status") == "review":  # it still is in doubt
                row |= {"status": "review", "reason": before["reason"]}
        for column, value in outcome.sizes.items():
            row[column] = value if isinstance(value, int) else f"{value:.6g}"
        try:
            self.writer.writerow(row)
            self.file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
