"""A result beside somebody's own mask of the same scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segapp import metrics
from segapp.cases import labels_to_indices
from segapp.check import require_same_grid
from segapp.errors import ScanError
from segapp.formats import read_labels
from segapp.scan import Scan, SegClass


def reference_labels(
    path: Path,
    scan: Scan,
    classes: Sequence[SegClass],
    ignore: int | None = None,
    merged: tuple[int, ...] = (),
) -> np.ndarray:
    """(I, J, K) uint8 class indices of a mask file on the scan's grid, IGNORE_INDEX (255) where it
    holds `ignore`. merged: its values that count as background.

    Raises ScanError for what is no mask, for one of another size or place, and for values that
    belong to no class.
    """
    mask = read_labels(path)
    require_same_grid(scan, mask, scan.source.name)
    try:
        return labels_to_indices(mask.voxels[0], tuple(classes), ignore, merged)
    except ValueError as error:
        known = ", ".join(f"{c.value} {c.name}" for c in classes)
        raise ScanError(path, str(error), "classes", f"expected are the values {known}") from error


def compare_labels(
    reference: np.ndarray, labels: np.ndarray, classes: Sequence[SegClass]
) -> dict[str, float | None]:
    """Dice of each foreground class; None for a class that neither of the two holds.

    reference, labels: (I, J, K) class indices. What the reference ignores counts nowhere.
    """
    found = metrics.dice(metrics.confusion(reference, labels, len(classes)))
    return {
        c.name: None if np.isnan(value) else float(value)
        for c, value in zip(classes[1:], found[1:], strict=True)
    }
