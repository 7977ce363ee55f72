"""A result beside somebody's own mask of the same scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segapp import metrics
from segapp.cases import labels_to_indices
from segapp.check import require_same_grid
from segapp.errors import ScanError
from segapp.formats import find_scans, read_labels, read_scan
from segapp.formats.listing import file_kind
from segapp.formats.source import is_zip
from segapp.preprocess import from_slices, ordering, to_slices
from segapp.scan import Scan, SegClass


def read_reference(path: Path) -> Scan:
    """A mask file, or an archive that holds nothing but one: see `read_labels`. In an archive it
    may be a DICOM series of whole numbers. Raises ScanError."""
    if not is_zip(path):
        return read_labels(path)
    found = find_scans(path)
    if len(found) != 1:
        raise ScanError(path, f"is an archive of {len(found)} scans; expected one mask in it")
    (entry,) = found
    if file_kind(entry.paths[0]) != "dicom":
        return read_labels(entry.paths[0])
    mask = read_scan(entry.paths)
    if mask.channels > 1 or (mask.voxels != np.rint(mask.voxels)).any():
        raise ScanError(path, "its DICOM series holds no whole numbers in one channel, so no mask")
    return replace(mask, voxels=mask.voxels.astype(np.int32))


def reference_labels(
    mask: Scan | Path,
    scan: Scan,
    classes: Sequence[SegClass],
    ignore: int | None = None,
    merged: tuple[int, ...] = (),
) -> np.ndarray:
    """(I, J, K) uint8 class indices of a mask on the scan's grid, IGNORE_INDEX (255) where it holds
    `ignore`. merged: its values that count as background. A mask whose axes run otherwise over the
    same place is turned, which changes no value.

    Raises ScanError for what is no mask, for one of another size or place, and for values that
    belong to no class.
    """
    mask = read_reference(mask) if isinstance(mask, Path) else mask
    turned = _turned(mask, scan)
    try:
        require_same_grid(scan, turned, scan.source.name)
    except ScanError:
        require_same_grid(scan, mask, scan.source.name)  # in the words of the mask as it is
        raise
    mask, path = turned, mask.source
    try:
        return labels_to_indices(mask.voxels[0], tuple(classes), ignore, merged)
    except ValueError as error:
        known = ", ".join(f"{c.value} {c.name}" for c in classes)
        raise ScanError(path, str(error), "classes", f"expected are the values {known}") from error


def _turned(mask: Scan, scan: Scan) -> Scan:
    """The mask with its axes in the order and the directions of the scan's."""
    if mask.affine is None or scan.affine is None:
        return mask
    voxels = from_slices(to_slices(mask.voxels, mask.affine, "axial"), scan.affine, "axial")
    to_mask = _from_axial(mask.affine, mask.shape)
    to_scan = _from_axial(scan.affine, voxels.shape[1:])
    affine = mask.affine @ to_mask @ np.linalg.inv(to_scan)
    return Scan(np.ascontiguousarray(voxels), affine, mask.source, mask.warnings)


def _from_axial(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(4, 4): index (slice, row, column) of `to_slices` → voxel (i, j, k)."""
    order, flips = ordering(affine, "axial")
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for n, v in enumerate(order):
        matrix[v, n] = -1 if n in flips else 1
        matrix[v, 3] = shape[v] - 1 if n in flips else 0
    return matrix


def taken_for(mask: Scan, classes: Sequence[SegClass]) -> str:
    """Which class a mask of one value is compared as, in words; "" for any other mask, and where
    there is only one class."""
    values = [int(v) for v in np.unique(mask.voxels) if v]
    named = [c.name for c in classes[1:] if [c.value] == values]
    if not named or len(classes) < 3:
        return ""
    return (
        f"the mask holds one value, {values[0]}: it is compared as {named[0]}, and the other "
        "classes as if it had none of them"
    )


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
