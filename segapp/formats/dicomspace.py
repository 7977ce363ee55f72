"""Where DICOM's slices lie: planes in the patient, and the even grid that a stack of them forms.

World coordinates of DICOM are LPS+ mm (PS3.3 C.7.6.2.1.1); affines here are RAS+.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from segapp.errors import ScanError
from segapp.formats.dicomfile import sober

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_EVEN = 0.1  # of a slice distance: how far slices may lie from an even grid
_SLIGHT = 0.02  # of a slice distance: beyond it an uneven grid is mentioned
_TILT = 0.01  # mm aside per mm along the normal: beyond it slices do not lie above each other
_GROUPS = ("PixelMeasures", "PlaneOrientation", "PlanePosition", "PixelValueTransformation")
_TAGS = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")


@dataclass(frozen=True)
class Plane:
    """Where one slice lies. position, row, column: LPS mm and directions in which the column and
    the row index grow; spacing: (between rows, between columns) mm; between: mm from slice to
    slice, thickness: of the slice in mm, both as the header claims, 0 where it does not."""

    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing: tuple[float, float]
    between: float
    thickness: float

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)

    @property
    def step(self) -> np.ndarray:
        """To the next slice, for one without neighbours."""
        return self.normal * (self.between or self.thickness or 1.0)

    def parallel(self, other: Plane) -> bool:
        mine, others = ([p.row, p.column] for p in (self, other))
        return np.allclose(mine, others, atol=1e-3) and np.allclose(
            self.spacing, other.spacing, rtol=1e-3
        )


@dataclass(frozen=True)
class Stack:
    """Slices in order. order: indices into the given planes, without doubles; places: where each
    lies on an even grid of `count` slices, in slice distances; step: mm from slice to slice."""

    order: list[int]
    places: np.ndarray
    count: int
    step: np.ndarray
    warnings: tuple[str, ...]


def arrange(source: Path, planes: Sequence[Plane], allow_gaps: bool, names: Sequence[str]) -> Stack:
    """Order parallel planes along their normal and find the even grid they lie on. names: what the
    images are called in messages.

    Raises ScanError where two planes coincide, where they are not on one line, and (unless
    `allow_gaps`) where they are not evenly spaced.
    """
    if len(planes) == 1:
        return Stack([0], np.zeros(1), 1, planes[0].step, ())
    positions, warnings = np.array([p.position for p in planes]), []
    along = positions @ planes[0].normal
    order = np.argsort(along, kind="stable")
    along, positions = along[order], positions[order]
    gaps = np.diff(along)
    distance = float(np.median(gaps))
    if gaps.min() < 0.01 * max(distance, 1e-3):
        doubles = int((gaps < 0.01 * max(distance, 1e-3)).sum())
        raise ScanError(
            source,
            f"{doubles} of its {len(planes)} slices lie where another one is, with other content "
            "(several time points, echoes or reconstructions?); export one of them",
        )
    even = (along[-1] - along[0]) / (len(planes) - 1)
    off = np.abs(along - (along[0] + even * np.arange(len(planes)))).max() / even
    if off <= _EVEN:
        places, distance = np.arange(len(planes), dtype=float), even
        if off > _SLIGHT:
            warnings.append(f"slices lie up to {off * even:.2g} mm off an even spacing")
    else:
        steps = np.rint(gaps / gaps.min())  # from slice to slice, if some are missing
        places = (along - along[0]) * steps.sum() / (along[-1] - along[0])
        if np.abs(places - np.rint(places)).max() <= _EVEN:
            places = np.rint(places)
            distance = (along[-1] - along[0]) / places[-1]
            missing, count = int(places[-1]) + 1 - len(planes), int(places[-1]) + 1
            widest = int(np.argmax(gaps))
            sides = " and ".join(names[int(order[n])] for n in (widest, widest + 1))
            what = f"{missing} of {count} slices are missing"
            what += f" (between {sides}{', among others' if (steps > 1).sum() > 1 else ''})"
        else:
            places = (along - along[0]) / distance
            what = f"its slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart, not evenly"
        if not allow_gaps:
            remedy = "export the whole series (or let predict --allow-gaps fill it)"
            raise ScanError(source, what, "slices-missing", remedy)
        warnings.append(f"{what}; the gaps were filled by interpolation")
    count = int(np.ceil(places[-1] - 1e-6)) + 1
    step = (positions[-1] - positions[0]) / places[-1]
    normal = planes[0].normal
    apart = positions - (positions[0] + places[:, None] * step)
    aside = np.linalg.norm(apart - np.outer(apart @ normal, normal), axis=1).max()
    if aside > max(1.0, *planes[0].spacing):
        raise ScanError(source, f"its slices do not lie on one line (up to {aside:.3g} mm aside)")
    if aside > 0.5 * min(planes[0].spacing):
        warnings.append(f"slices lie up to {aside:.2g} mm aside of a straight line")
    warnings += _thinned(planes[0], distance)
    slant = np.linalg.norm(step - (step @ normal) * normal) / distance
    if slant > _TILT:
        degrees = float(np.degrees(np.arctan(slant)))
        warnings.append(
            f"the slices are shifted against each other (a gantry tilt of {degrees:.1f}°); they "
            "are kept as they are, on a sheared grid"
        )
    return Stack(order.tolist(), places, count, step, tuple(warnings))


def _thinned(plane: Plane, distance: float) -> list[str]:
    """Slices left out in even steps leave an even grid; only the header knows of them."""
    if plane.between and abs(distance - plane.between) > 0.1 * plane.between:
        claim = f"the header says {plane.between:.4g} mm"
    elif not plane.between and plane.thickness and distance > 1.9 * plane.thickness:
        claim = f"each is {plane.thickness:.4g} mm thick"
    else:
        return []
    return [f"slices lie {distance:.4g} mm apart, but {claim}; some may be missing"]


def on_even_grid(slices: np.ndarray, stack: Stack) -> np.ndarray:
    """(N, rows, columns, C) → (stack.count, rows, columns, C), gaps filled linearly."""
    if np.array_equal(stack.places, np.arange(stack.count)):
        return slices
    volume = np.empty((stack.count, *slices.shape[1:]), slices.dtype)
    for k in range(stack.count):
        above = int(np.searchsorted(stack.places, k - _SLIGHT))
        above = min(above, len(slices) - 1)
        below = max(0, above - 1)
        span = stack.places[above] - stack.places[below]
        share = np.clip((k - stack.places[below]) / span, 0, 1) if span else 1.0
        mixed = slices[below] * (1 - share) + slices[above] * share
        volume[k] = mixed if slices.dtype.kind == "f" else np.rint(mixed)
    return volume


def frame_headers(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    """What a multi-frame header says of each frame's place and units, in the order of storage; []
    where it has no word for each."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    frames = []
    for own in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        frame = pydicom.Dataset()
        for group in _GROUPS:
            items = own.get(f"{group}Sequence") or shared[0].get(f"{group}Sequence")
            frame.update(items[0] if items else {})
        frames.append(frame)
    return frames


def find_plane(path: Path, header: pydicom.Dataset) -> Plane | None:
    """None where the header says no position or no spacing. Raises ScanError where what it says
    is no place in space."""
    with sober(path):
        values = [header.get(tag) for tag in _TAGS]
        if any(value is None or value == "" for value in values):
            return None
        orientation, position, spacing = (np.array(v, np.float64).ravel() for v in values)
        if [len(orientation), len(position), len(spacing)] != [6, 3, 2]:
            raise ScanError(path, f"its {', '.join(_TAGS)} have the wrong number of values")
        row, column = orientation[:3], orientation[3:]
        lengths = np.linalg.norm([row, column], axis=1)
        if not np.isfinite([*orientation, *position, *spacing]).all() or spacing.min() <= 0:
            raise ScanError(path, "its PixelSpacing or position is zero, negative or not a number")
        if np.abs(lengths - 1).max() > 0.02 or abs(row @ column) > 0.02:
            raise ScanError(path, "its ImageOrientationPatient is no orientation")
        row = row / lengths[0]
        column = column - (column @ row) * row
        column /= np.linalg.norm(column)
        between, thickness = (
            _length(header.get(tag)) for tag in ("SpacingBetweenSlices", "SliceThickness")
        )
        pixel_mm = (float(spacing[0]), float(spacing[1]))
        return Plane(position, row, column, pixel_mm, between, thickness)


def _length(value: Any) -> float:
    number = abs(float(value)) if value not in (None, "") else 0.0
    return number if np.isfinite(number) else 0.0


def make_affine(first: Plane, step: np.ndarray) -> np.ndarray:
    """(4, 4) voxel (column, row, slice) → RAS+ mm of a stack that starts at `first`."""
    affine = np.eye(4)
    affine[:3, 0] = first.row * first.spacing[1]  # i counts columns
    affine[:3, 1] = first.column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return _LPS_TO_RAS @ affine


def assumed_affine(path: Path, dataset: pydicom.Dataset) -> tuple[np.ndarray, str]:
    """Of an image that says its pixel spacing but not where it lies; and what to say of it."""
    header = pydicom.Dataset()
    header.PixelSpacing = dataset.PixelSpacing
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.ImagePositionPatient = [0, 0, 0]
    plane = find_plane(path, header)
    assert plane is not None
    return make_affine(
        plane, plane.normal
    ), "no orientation is given; only the pixel spacing is known"
