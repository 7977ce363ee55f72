"""Whether a model still scores what its file says, on the very cases that it was chosen on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segapp.cases import Case, find_cases
from segapp.check import read_case
from segapp.checkpoint import ModelInfo
from segapp.errors import ConfigError, DataError
from segapp.evaluate import evaluate_cases
from segapp.figures import number
from segapp.predict import Predictor
from segapp.progress import track
from segapp.scan import Scan
from segapp.seen import hashes_of
from segapp.validation import every_nth, slice_direction

TOLERANCE = 0.005  # of mIoU, as between the engines


def verify_model(model: Path, device: str = "auto") -> dict[str, Any]:
    """Measure the validation cases again, known by their hashes below the recorded data root, and
    compare mIoU with the recorded one; where that is of every n-th slice or case, so is this.

    Returns recorded, now, difference, tolerance, checksum (whether the file has one of its weights;
    it is compared when they are read), n, n_failed, n_missing (cases that are no longer there) and
    verified. Raises ModelFileError for weights that are not those that were written, ConfigError
    for an ensemble of folds, whose record is that of its members, and DataError where the data or
    all of the cases are gone.
    """
    predictor = Predictor.load(model, device)
    info = predictor.info
    assert info is not None
    if info.architecture.members > 1:
        raise ConfigError(f"{model}: an ensemble of folds; verify its folds, {model}/fold1 …")
    recorded = info.metrics.get("miou")
    if recorded is None or not info.data.images.get("val"):
        raise DataError(f"{model}: holds no validation figures to compare with")
    cases, missing = _validated(info)
    every = info.metrics.get("every", 1)

    def read(case: Case) -> tuple[Scan, Scan]:
        scan, mask = read_case(case)
        along = slice_direction(scan, info.preprocessing.slice_axis)
        if info.preprocessing.context or scan.shape[along] == 1:
            return scan, mask
        return every_nth(scan, along, every), every_nth(mask, along, every)

    result = evaluate_cases(
        predictor, track(cases, "verifying"), info.ignore, info.merged, read=read
    )
    difference = result.miou - recorded
    return {
        "recorded": recorded,
        "now": number(result.miou),
        "difference": number(difference),
        "tolerance": TOLERANCE,
        "checksum": bool(info.weights_sha256),
        "n": len(result.done()),
        "n_failed": len(result.failed()),
        "n_missing": missing,
        "verified": bool(abs(difference) <= TOLERANCE and not result.failed() and not missing),
    }


def _validated(info: ModelInfo) -> tuple[list[Case], int]:
    """The validation cases that are there, in the order of training, and how many are not."""
    root = Path(info.data.root)
    if not root.exists():
        raise DataError(f"{root}: the model's data is not there; run this where it was trained")
    dataset = find_cases(root)
    known = hashes_of(dataset.cases)
    # an image may be there twice: the validation's own copy counts
    there = {known[c.images]: c for c in dataset.cases if c.images in known}
    there |= {known[c.images]: c for c in dataset.split("val") if c.images in known}
    hashes = info.data.images["val"]
    found = [there[h] for h in hashes if h in there]
    if not found:
        raise DataError(f"{root}: holds none of the {len(hashes)} cases that were validated on")
    scan, _ = read_case(found[0])
    whole = scan.shape[slice_direction(scan, info.preprocessing.slice_axis)] == 1
    if info.preprocessing.context or whole:
        hashes = hashes[:: info.metrics.get("every", 1)]
        found = [there[h] for h in hashes if h in there]
    return found, len(hashes) - len(found)
