"""Results of an earlier batch: which of them are what segmenting the scan again would give."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from segapp.errors import DataError
from segapp.files import sha256
from segapp.formats import Entry, read_labels, read_scan
from segapp.predict import Predictor


def model_key(predictor: Predictor, allow_gaps: bool = False) -> str:
    """16 hex digits that stand for all that a result depends on but the scan: what the model file
    says (the checksum of its weights too), the engine, what it was exported to and its precision.
    "" for a predictor that is of no file."""
    if predictor.info is None:
        return ""
    engine = predictor.engine
    exported = getattr(engine, "exported", "")
    parts = (predictor.info.model_dump_json(), type(engine).__name__, exported, engine.precision)
    return hashlib.sha256("\n".join((*parts, str(allow_gaps))).encode()).hexdigest()[:16]


def info_key(predictor: Predictor) -> str:
    """As `model_key`, of the model file alone: the same whatever runs it."""
    said = predictor.info.model_dump_json() if predictor.info else ""
    return hashlib.sha256(said.encode()).hexdigest()[:16] if said else ""


def engine_text(predictor: Predictor) -> str:
    return f"{type(predictor.engine).__name__} in {predictor.engine.precision}"


def still_good(
    entry: Entry, output: Path, line: Mapping[str, str] | None, model: str, scan: str
) -> tuple[bool, str]:
    """Whether the result of `entry` that is at `output` can stay, and a warning or "".

    line: of predictions.csv for it; without one nobody knows what it is. model and scan: the key of
    the model, and the checksum of the scan's files. A result that somebody edited stays; but where
    the line is `unsure`, because another model's batch was stopped, it may be that model's.
    """
    if line is None:
        return False, ""
    if line.get("model") not in (None, model):
        return False, "the earlier result is of another model; written again"
    if not scan or line.get("scan_sha256") not in (None, scan):
        return False, "the scan changed since the earlier result; written again"
    if not line.get("output_sha256"):
        return False, ""
    with suppress(DataError, OSError, ValueError):
        if sha256(output) == line["output_sha256"]:
            return True, ""
        if line.get("unsure"):
            return False, "the result may be of another model's stopped batch; written again"
        if read_labels(output).shape == read_scan(entry.paths, allow_gaps=True).shape:
            return True, "changed since it was written; left as it is"
    return False, "the earlier result was damaged; written again"
