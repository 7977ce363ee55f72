"""Affines out of the directions, spacings and units that file headers give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segapp.errors import ScanError

LPS = (-1, -1, 1)  # DICOM's and ITK's axes (left, posterior, superior) as seen from RAS+
ASSUMED = "the file gives no orientation; it is assumed to be axial, as DICOM stores slices"
_MICROMETRE = ("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre")
_MM = {
    **{"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0},
    **dict.fromkeys(_MICROMETRE, 0.001),
    **{"nm": 1e-6, "cm": 10.0, "m": 1000.0, "inch": 25.4, "in": 25.4},
}


def mm_per(unit: str) -> float | None:
    """Millimetres in a unit of length; None for a name that is none ("pixel", "")."""
    return _MM.get(unit.strip().lower())


def scaled_to_mm(units: Sequence[str], count: int) -> tuple[np.ndarray, list[str]]:
    """(count,) mm in the unit of each axis, and what is to be said of it; no units mean mm."""
    known = [mm_per(unit) for unit in units]
    if len(known) != count or None in known:
        return np.ones(count), ["its unit of length is not known; taken as mm"] if units else []
    factors = np.array(known, float)
    if (factors == 1).all():
        return factors, []
    return factors, ["lengths are stored in another unit and were converted to mm"]


def from_directions(
    path: Path, directions: np.ndarray, origin: np.ndarray, signs: Sequence[int]
) -> np.ndarray:
    """The (4, 4) affine of axes that step by `directions` in mm; raises ScanError if singular.

    directions: (2 or 3 axes, 2 or 3 coordinates); origin: the centre of the first voxel; signs:
    what turns the file's coordinates into RAS+. A plane is given a normal of length 1.
    """
    axes, coordinates = directions.shape
    if origin.shape != (coordinates,) or not 2 <= axes <= coordinates <= 3:
        raise ScanError(path, "its header gives directions and an origin that do not fit together")
    affine = np.eye(4)
    affine[:coordinates, :axes] = directions.T
    affine[:coordinates, 3] = origin
    affine[:3] *= np.reshape(signs, (3, 1))
    if axes == 2 and coordinates == 3:
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1)
    affine[:3] += 0.0  # no -0.0
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0
    if not volume > 1e-6 * lengths.prod():
        raise ScanError(path, f"its header gives no place in space: {affine.round(4).tolist()}")
    return affine


def from_spacing(path: Path, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """The affine of 2 or 3 spacings alone, see ASSUMED. Raises ScanError for zero or NaN."""
    return from_directions(path, np.diag(spacing_mm), np.zeros(len(spacing_mm)), LPS)
