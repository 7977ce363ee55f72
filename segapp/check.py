"""Read every case once before anything is trained: everything that can sink a run is found here.

`segapp train` refuses what is found here; `segapp check` lists it beside what doctor.py looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from segapp.errors import ScanError
from segapp.finding import Finding, finding_of, warning_of
from segapp.fingerprint import CaseFacts, measure
from segapp.formats import NOT_FINITE, read_labels, read_scan
from segapp.layout import Case, Dataset
from segapp.preprocess import orientation
from segapp.scan import Scan

_TOLERANCE = 0.1  # voxels between the corners of two grids that are meant to be one


def survey(
    dataset: Dataset,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
    ignore: int | None = None,
    look: Callable[[Case, Scan, Scan], None] = lambda *_: None,
) -> tuple[list[CaseFacts], list[Finding]]:
    """Read all cases once: the facts of each usable one, and what is wrong with files.

    `ignore` is the mask value that stands for nothing. `look` gets each usable case, its scan and
    its mask as they pass; a case on which it raises ScanError is not usable either.
    """
    facts: list[CaseFacts] = []
    findings: list[Finding] = []
    for case in progress(dataset.cases):
        try:
            scan, mask = read_case(case)
            _require_finite(scan)
            measured = measure(case, scan, mask.voxels, ignore)
            look(case, scan, mask)
        except ScanError as error:
            findings.append(finding_of(error))
            continue
        findings += (warning_of(case.images[0], w) for w in scan.warnings)
        findings += (warning_of(case.mask, w) for w in mask.warnings)
        facts.append(measured)
    return facts, findings


def _require_finite(scan: Scan) -> None:
    """Prediction gets by with a warning, but nothing should be learnt from such voxels."""
    for warning in scan.warnings:
        if NOT_FINITE in warning:
            problem = warning.removesuffix("; read as 0")
            remedy = "replace these voxels by what they should be, e.g. 0"
            raise ScanError(scan.source, problem, "not-finite", remedy)


def read_case(case: Case) -> tuple[Scan, Scan]:
    """The scan (C, I, J, K) and its mask values (1, I, J, K), proven to be on the same grid.

    Raises ScanError where either can't be read, or where they are not.
    """
    scan, mask = read_scan(case.images), read_labels(case.mask)
    require_same_grid(scan, mask, case.images[0].name)
    return scan, mask


def require_same_grid(scan: Scan, mask: Scan, image: str) -> None:
    """Raise ScanError for a mask that differs from its scan in size, or in place where both have
    one. image: what the scan is called in the message."""
    if scan.shape != mask.shape:
        problem = f"is {_size(mask)} but its image {image} is {_size(scan)}"
        remedy = "resample or export the mask again on its image's grid"
        raise ScanError(mask.source, problem, "size-differs", remedy)
    if scan.affine is not None and mask.affine is not None:
        # Two grids agree when their corners do; an affine's entries alone have mixed units.
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
        corners[:, :3] *= np.array(scan.shape) - 1
        apart = np.abs(corners @ (scan.affine - mask.affine).T).max()
        if apart > _TOLERANCE * min(scan.spacing_mm or (0,)):
            kind, how = _difference(scan, mask)
            problem = f"lies elsewhere in space than its image {image}: {how} (corners up to "
            remedy = "resample the mask on its image's grid"
            if kind == "orientation-differs":
                remedy = "save the mask in its image's orientation"
            raise ScanError(mask.source, f"{problem}{apart:.3g} mm apart)", kind, remedy)


def _difference(scan: Scan, mask: Scan) -> tuple[str, str]:
    """The kind of difference between two affines, and words for it."""
    assert scan.affine is not None
    assert mask.affine is not None
    axes, image_axes = _axes(mask.affine), _axes(scan.affine)
    if axes != image_axes:
        return "orientation-differs", f"its axes run to {axes}, the image's to {image_axes}"
    spacing, image_spacing = (np.array(s.spacing_mm, float) for s in (mask, scan))
    drift = np.abs(spacing - image_spacing) * np.array(scan.shape)
    if (drift > _TOLERANCE * image_spacing).any():
        mm, image_mm = ("×".join(f"{v:.4g}" for v in s) for s in (spacing, image_spacing))
        return "spacing-differs", f"its voxels are {mm} mm, the image's {image_mm} mm"
    return "affine-differs", "moved or rotated"


def _axes(affine: np.ndarray) -> str:
    """Where the voxel axes lead, such as "RAS"."""
    return "".join(
        "RAS"[world] if sign > 0 else "LPI"[world]
        for world, sign in zip(*orientation(affine), strict=True)
    )


def _size(scan: Scan) -> str:
    return "×".join(str(n) for n in (scan.shape if scan.shape[2] > 1 else scan.shape[:2]))
