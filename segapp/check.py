"""Read every case once before anything is trained: everything that can sink a run is found here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from segapp.cases import Case, Dataset
from segapp.errors import DataError, ScanError
from segapp.fingerprint import CaseFacts, measure
from segapp.formats import read_labels, read_scan
from segapp.scan import Scan

_TOLERANCE = 0.1  # voxels between the corners of two grids that are meant to be one


def inspect(
    dataset: Dataset,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
    ignore: int | None = None,
) -> tuple[list[CaseFacts], dict[int, Path], list[str]]:
    """Facts of every case, each mask value with a mask that holds it, and the readers' warnings.

    `ignore` is the mask value that stands for nothing.
    Raises DataError that names the first unusable file and counts the others: an unreadable file,
    an image and a mask of different size or place.
    """
    facts: list[CaseFacts] = []
    first_seen: dict[int, Path] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for case in progress(dataset.cases):
        try:
            scan, mask = read_case(case)
        except ScanError as error:
            problems.append(str(error))
            continue
        warnings += [f"{case.images[0]}: {w}" for w in scan.warnings]
        warnings += [f"{case.mask}: {w}" for w in mask.warnings]
        facts.append(measure(case, scan, mask.voxels, ignore))
        for value in facts[-1].mask_counts:
            first_seen.setdefault(value, case.mask)
    if problems:
        more = f" (and {len(problems) - 1} more that can't be used)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    return facts, first_seen, warnings


def read_case(case: Case) -> tuple[Scan, Scan]:
    """The scan (C, I, J, K) and its mask values (1, I, J, K), proven to be on the same grid.

    Raises ScanError where either can't be read, or where they are not.
    """
    scan, mask = read_scan(case.images), read_labels(case.mask)
    if scan.shape != mask.shape:
        raise ScanError(
            case.mask, f"is {_size(mask)} but its image {case.images[0].name} is {_size(scan)}"
        )
    if scan.affine is not None and mask.affine is not None:
        # Two grids agree when their corners do; an affine's entries alone have mixed units.
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
        corners[:, :3] *= np.array(scan.shape) - 1
        apart = np.abs(corners @ (scan.affine - mask.affine).T).max()
        if apart > _TOLERANCE * min(scan.spacing_mm or (0,)):
            raise ScanError(
                case.mask,
                f"lies elsewhere in space than its image {case.images[0].name} (corners up to "
                f"{apart:.3g} mm apart): flipped, moved or of another spacing",
            )
    return scan, mask


def _size(scan: Scan) -> str:
    return "×".join(str(n) for n in (scan.shape if scan.shape[2] > 1 else scan.shape[:2]))
