"""Whether a model still scores what its file says, on the very cases that it was chosen on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segapp.cases import find_cases
from segapp.errors import ConfigError, DataError
from segapp.evaluate import evaluate_cases
from segapp.figures import number
from segapp.predict import Predictor
from segapp.progress import track
from segapp.seen import hashes_of

TOLERANCE = 0.005  # of mIoU, as between the engines
_TOLERANCE_THINNED = 0.03  # where the recorded figure is that of every n-th slice


def verify_model(model: Path, device: str = "auto") -> dict[str, Any]:
    """Measure the validation cases again, known by their hashes below the recorded data root, and
    compare mIoU with the recorded one.

    Returns recorded, now, difference, tolerance, n, n_missing (cases that are no longer there) and
    verified. Raises ConfigError for an ensemble of folds, whose record is that of its members, and
    DataError where the data or all of the cases are gone.
    """
    predictor = Predictor.load(model, device)
    info = predictor.info
    assert info is not None
    if info.architecture.members > 1:
        raise ConfigError(f"{model}: an ensemble of folds; verify its folds, {model}/fold1 …")
    recorded = info.metrics.get("miou")
    hashes = set(info.data.images.get("val", []))
    root = Path(info.data.root)
    if recorded is None or not hashes:
        raise DataError(f"{model}: holds no validation figures to compare with")
    if not root.exists():
        raise DataError(f"{root}: the model's data is not there; run this where it was trained")
    dataset = find_cases(root)
    known = hashes_of(dataset.cases)
    cases = [c for c in dataset.cases if known.get(c.images) in hashes]
    if not cases:
        raise DataError(f"{root}: holds none of the {len(hashes)} cases that were validated on")
    result = evaluate_cases(predictor, track(cases, "verifying"), info.ignore, info.merged)
    tolerance = TOLERANCE if info.metrics.get("every", 1) == 1 else _TOLERANCE_THINNED
    difference = result.miou - recorded
    return {
        "recorded": recorded,
        "now": number(result.miou),
        "difference": number(difference),
        "tolerance": tolerance,
        "n": len(result.done()),
        "n_failed": len(result.failed()),
        "n_missing": len(hashes - set(known.values())),
        "verified": bool(abs(difference) <= tolerance and not result.failed()),
    }
