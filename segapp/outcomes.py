"""What became of each scan of a batch: predictions.csv."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from segapp.errors import OutputError
from segapp.files import write_text
from segapp.scan import SegClass

log = logging.getLogger("segapp")


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
    unwritten: bool = False  # failed because the output could not be written


_JUDGED = ("estimated_dice", "unlikeness", "range_coverage")
_VOUCHING = ("model", "scan_sha256", "output_sha256")
_OWN_COLUMNS = ("file", "output", "status", "reason", "warnings")  # a skipped scan says them anew


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Output, resolved → line of an earlier predictions.csv, and of the lines that a batch which
    was stopped had not come to; empty where there is nothing to read. Left out are a line that was
    cut off by a kill, and those that name no scan or no output."""
    rows: dict[str, dict[str, str]] = {}
    for part in (_waiting(path), path):
        try:
            text = part.read_text(encoding="utf-8", errors="surrogateescape")
            lines = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
            rows |= {os.path.realpath(row["output"]): row for row in lines if _names_files(row)}
        except (FileNotFoundError, NotADirectoryError):
            continue
        except csv.Error as error:
            log.warning("%s: the earlier results can't be read from it (%s)", part, error)
        except OSError as error:  # writing would lose them
            raise OutputError(f"{part}: can't be read ({error.strerror})") from error
    return rows


def _names_files(row: Mapping[str, str]) -> bool:
    names = (row.get("file"), row.get("output"))
    return all(name and "\0" not in name for name in names)  # a loss of power leaves zeros


def _waiting(path: Path) -> Path:
    """The file of the earlier lines that a batch under way has not come to."""
    return path.with_name(f".{path.stem}-earlier.csv")


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
        self.earlier = earlier  # output, resolved → its line; a skipped scan keeps its figures
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
        if self.earlier:
            # a kill may leave this model's result without a line, where another model's was
            unsure = {p: r for p, r in self.earlier.items() if r.get("model") != self.model}
            self._keep(self.earlier | {p: row | {"unsure": "yes"} for p, row in unsure.items()})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "wb", buffering=0, opener=_appending)
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
        try:
            self._append(_csv(self.columns, (), header=True))
        except OutputError:
            self.file.close()
            with suppress(OSError):
                self.path.unlink()  # a table without a header is none
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.file.close()
        if kind is None:
            # results of other scans, which this batch was not about, still are theirs
            others = {p: row for p, row in self.earlier.items() if p not in self.named}
            self._keep({p: row for p, row in others.items() if Path(p).is_file()})

    def _keep(self, rows: Mapping[str, Mapping[str, str]]) -> None:
        """Lines that wait beside the table; without any their file goes."""
        if not rows:
            _waiting(self.path).unlink(missing_ok=True)
            return
        columns = dict.fromkeys(key for row in rows.values() for key in row if key)
        write_text(_waiting(self.path), _csv(list(columns), rows.values(), header=True))

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
        }
        warnings = [*outcome.warnings]
        for column in _JUDGED:
            if (judged := getattr(outcome, column)) is not None:
                row[column] = f"{judged:.4g}"
        if outcome.status == "skipped":
            before = self.earlier.get(os.path.realpath(outcome.output or ""), {})
            kept = {k: before[k] for k in self.columns if before.get(k) and k not in _OWN_COLUMNS}
            row |= kept
            warnings = [before.get("warnings") or "", *warnings]
            if before.get("status") == "review":  # it still is in doubt
                row |= {"status": "review", "reason": before.get("reason") or ""}
        row["warnings"] = "; ".join(filter(None, dict.fromkeys(warnings)))
        for column, value in outcome.sizes.items():
            row[column] = value if isinstance(value, int) else f"{value:.6g}"
        self._append(_csv(self.columns, [row]))

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


def _appending(name: str, flags: int) -> int:
    """Lines go where the file ends, also after another batch in the folder emptied it: not every
    file system has the locks that keep it away."""
    return os.open(name, flags | os.O_APPEND, 0o666)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]], header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
