"""Results of an earlier batch: which of them are what segmenting the scan again would give."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from segapp.checkpoint import ModelInfo
from segapp.errors import DataError, OutputError
from segapp.files import sha256
from segapp.formats import Entry, read_labels, read_scan
from segapp.predict import Predictor
from segapp.rows import waiting_rows
from segapp.scan import SegClass

log = logging.getLogger("segapp")

_EDITED = "changed since it was written; left as it is, the figures here are of before"


def model_key(predictor: Predictor, allow_gaps: bool = False) -> str:
    """What stands for all that a result depends on but the scan: the key of the model file, a dash,
    and 8 hex digits for the engine, what it was exported to, its precision and `allow_gaps`. "" for
    a predictor that is of no file."""
    if predictor.info is None:
        return ""
    engine = predictor.engine
    exported = getattr(engine, "exported", "")
    parts = (type(engine).__name__, exported, engine.precision, str(allow_gaps))
    return f"{file_key(predictor.info)}-{_digits(parts, 8)}"


def file_key(info: ModelInfo) -> str:
    """16 hex digits for what a model file says of itself, the checksum of its weights too: those of
    its exports are the same."""
    return _digits((info.model_dump_json(),), 16)


def _digits(parts: Iterable[str], count: int) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:count]


def engine_text(predictor: Predictor) -> str:
    return f"{type(predictor.engine).__name__} in {predictor.engine.precision}"


def still_good(
    entry: Entry,
    output: Path,
    line: Mapping[str, str] | None,
    model: str,
    scan: str,
    classes: Sequence[SegClass],
) -> tuple[bool, str, bool]:
    """Whether the result of `entry` that is at `output` can stay, a warning or "", and whether it
    is the very file that `line` tells of. One that isn't may be somebody's work.

    line: of predictions.csv for it; without one nobody knows what it is. model and scan: the key of
    the model, and the checksum of the scan's files. A result that somebody edited stays, whatever
    the model; but where the line is `unsure`, because another model's batch was stopped, it may be
    that model's. classes: the model's; a result that holds other values stays with a warning.
    """
    if line is None or not (told := line.get("output_sha256")):
        return False, "", False
    same_model = line.get("model") in (None, model)
    same_scan = bool(scan) and line.get("scan_sha256") in (None, scan)
    with suppress(DataError, OSError, ValueError):
        if sha256(output) == told:
            if not same_model:
                return False, "the earlier result is of another model; written again", True
            if not same_scan:
                return False, "the scan changed since the earlier result; written again", True
            return True, "", True
        if line.get("unsure"):
            doubt = "the result may be of another model's stopped batch; written again"
            return False, doubt, False
        labels = read_labels(output)
        if labels.shape == read_scan(entry.paths, allow_gaps=True).shape:
            strange = sorted({*np.unique(labels.voxels).tolist()} - {c.value for c in classes})
            odd = f", and holds {strange[0]}, which is no class's value" if strange else ""
            if same_model and same_scan:
                return True, f"{_EDITED}{odd}", False
            other = "the scan changed too" if same_model else "that was by another model"
            doubt = f"{output.name} changed since it was written, and {other}; left as it is: "
            return True, f"{doubt}remove it to have it made again{odd}", False
    return False, "the earlier result was damaged; written again", False


def is_edited(output: Path, line: Mapping[str, str] | None) -> bool:
    """Whether what is at `output` is not what `line` says was written there; False where no line
    says, or where another batch that was stopped may have written it. A damaged file is one too."""
    told = line.get("output_sha256") if line and not line.get("unsure") else None
    with suppress(OSError):
        return bool(told) and output.is_file() and sha256(output) != told
    return False


def warn_of_stale(path: Path) -> None:
    """Say, after the batch whose table is at `path`, which results are there of scans that are no
    longer, or that now failed: they lie among the others as if they were of today."""
    rows = waiting_rows(path)
    if not rows:
        return
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = csv.DictReader(file)
        failed = {os.path.realpath(row["file"]) for row in lines if row["status"] == "failed"}
    stale: dict[str, list[str]] = {"failed this time": [], "are no longer there": []}
    for output, row in rows.items():
        scan = os.path.realpath(row["file"])
        if scan in failed:
            stale["failed this time"].append(output)
        elif not is_there(scan):
            stale["are no longer there"].append(output)
    for what, outputs in stale.items():
        if outputs:
            names = ", ".join(
                os.path.relpath(o, os.path.realpath(path.parent)) for o in outputs[:3]
            )
            names += ", …" if len(outputs) > 3 else ""
            said = "%s: %d earlier results are of scans that %s; they stay: %s"
            log.warning(said, path.parent, len(outputs), what, names)


def is_there(scan: str) -> bool:
    """Whether a scan that a table names is still there, or the archive that holds it."""
    place = Path(scan)
    return any(p.exists() if p == place else p.is_file() for p in (place, *place.parents))


def set_aside(output: Path) -> Path:
    """What is at `output` has a second name, NAME.bak or with a number, when it is written over.
    Raises OutputError."""
    number = 1
    while True:
        copy = output.with_name(f"{output.name}.bak{number if number > 1 else ''}")
        if not copy.exists():
            break
        number += 1
    try:
        try:
            os.link(output, copy)
        except OSError:  # there are no second names on this file system
            shutil.copy2(output, copy)
    except OSError as error:
        raise OutputError(f"{copy}: can't be written ({error.strerror})") from error
    return copy


def keep_if_other(copy: Path, output: Path, edited: bool) -> tuple[str, ...]:
    """Remove what `set_aside` made where the same was written again; else a warning."""
    if sha256(copy) == sha256(output):
        copy.unlink()
        return ()
    if edited:
        return (f"what was there had changed since it was written; kept as {copy.name}",)
    return (f"what was there was not of the earlier batch; kept as {copy.name}",)


def warn_of_unknown(out: Path, rows: Iterable[str], outputs: Iterable[Path]) -> None:
    """Say, before a batch, how many results are there though the table tells of none in `out`, but
    at most of such as lie elsewhere. rows: outputs that it tells of, resolved."""
    below = f"{os.path.realpath(out)}{os.sep}"
    if any(row.startswith(below) for row in rows):
        return
    if count := sum(output.is_file() for output in outputs):
        log.warning(
            "%s: %d results are there that no predictions.csv tells of by this name (was it "
            "removed, or the folder moved?); they are made again, and where that gives something "
            "else, what was there is kept as NAME.bak",
            *(out, count),
        )
