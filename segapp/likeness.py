"""Whether a scan is like those that a model was trained on, and what to say where it is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from segapp.fingerprint import CaseFacts, percentiles
from segapp.modality import UNKNOWN
from segapp.preprocess import Prepared, Preprocessing, SliceAxis, slice_spacing, thickest_axis

# A scan is unlike the training scans where …
_FACTOR, _FACTOR_RESAMPLED = 1.5, 3.0  # its spacing is so many times beyond theirs
_BEYOND = 0.5  # its intensities go beyond theirs by more than this share of their range
_RAISED = 0.3  # they begin higher than all of theirs, by more than this share of their range
_NARROW = 0.3  # their range is less than this share of the narrowest training scan's


class TrainingRange(BaseModel):
    """What the training scans were like, kept in the model file to tell a scan unlike them.

    Pairs are (lowest, highest) over the cases; None where no case says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtypes: tuple[str, ...]
    pixel_mm: tuple[float, float] | None  # between rows, between columns
    slice_mm: tuple[float, float] | None  # between the slices of volumes
    thickest: tuple[SliceAxis, ...]  # directions in which volumes had clearly thicker voxels
    intensities: tuple[tuple[float, float], ...]  # per channel, see `fingerprint.percentiles`
    narrowest: tuple[float, ...]  # per channel, the smallest range of a single case
    highest_low: tuple[float, ...]  # per channel, the highest of the cases' lower ends
    modality: str = UNKNOWN  # what took them, see `modality`

    def __str__(self) -> str:
        ranges = ", ".join(low_high(pair, "…") for pair in self.intensities)
        said = [] if self.modality == UNKNOWN else [self.modality]
        said += [", ".join(self.dtypes), f"intensities {ranges}"]
        said += [f"pixels of {low_high(self.pixel_mm)} mm"] if self.pixel_mm else []
        said += [f"slices {low_high(self.slice_mm)} mm apart"] if self.slice_mm else []
        return "; ".join(said)


def training_range(
    facts: Sequence[CaseFacts], preprocessing: Preprocessing, modality: str = UNKNOWN
) -> TrainingRange:
    """The ranges over the training cases that `preprocessing` was fitted to."""
    axis = preprocessing.slice_axis
    known = [(f, mm) for f in facts if (mm := f.slice_spacings[axis])]
    pixels = [v for _, mm in known for v in mm[1:]]
    between = [mm[0] for f, mm in known if 1 not in f.shape]
    clear: set[SliceAxis] = {
        f.thickest for f in facts if 1 not in f.shape and _clearly_thickest(f.spacing_mm)
    }
    ranges = np.array([f.percentiles for f in facts if f.channels == preprocessing.channels])
    return TrainingRange(
        dtypes=tuple(sorted({f.dtype for f in facts})),
        pixel_mm=(min(pixels), max(pixels)) if pixels else None,
        slice_mm=(min(between), max(between)) if between else None,
        thickest=tuple(sorted(clear)),
        intensities=tuple(zip(ranges[..., 0].min(0), ranges[..., 1].max(0), strict=True)),
        narrowest=tuple((ranges[..., 1] - ranges[..., 0]).min(0)),
        highest_low=tuple(ranges[..., 0].max(0)),
        modality=modality,
    )


def unlike(prepared: Prepared, known: TrainingRange) -> tuple[str, ...]:
    """Warnings where a scan is unlike the training scans, or says less; () where it is like them.

    The tolerances are wide, so that the variation within one data set is not reported.
    """
    if prepared.scan.affine is not None:
        found = _unlike_geometry(prepared, known)
    elif prepared.preprocessing.spacing_mm:
        found = []  # preparing it said so
    elif known.pixel_mm is None:
        found = []  # as with every training scan: nothing that this one lacks
    else:
        found = ["spacing unknown: no areas or volumes"]
    return (*found, *_unlike_intensities(prepared, known))


def _unlike_geometry(prepared: Prepared, known: TrainingRange) -> list[str]:
    scan, prep = prepared.scan, prepared.preprocessing
    between, row, column = slice_spacing(scan, prepared.axis)
    volume = 1 not in scan.shape
    thickest = thickest_axis(scan)
    expected = (prep.slice_axis, *known.thickest)
    if volume and _clearly_thickest(scan.spacing_mm) and thickest not in expected:
        return [f"its thickest direction is {thickest}; the model cuts {prep.slice_axis} slices"]
    found = []
    factor = _FACTOR_RESAMPLED if prep.spacing_mm else _FACTOR
    if known.pixel_mm and not _within((row, column), known.pixel_mm, factor):
        own = low_high((row, column), " × ")
        found += [f"pixels of {own} mm; the training scans had {low_high(known.pixel_mm)} mm"]
    if volume and known.slice_mm and not _within((between,), known.slice_mm, _FACTOR):
        theirs = low_high(known.slice_mm)
        found += [f"slices {_figure(between)} mm apart; the training scans had {theirs} mm"]
    return found


def _unlike_intensities(prepared: Prepared, known: TrainingRange) -> list[str]:
    scan, prep = prepared.scan, prepared.preprocessing
    flat = [channel.min() == channel.max() for channel in scan.voxels]
    if all(flat):
        return []  # its reader said so
    # ImageNet's constants follow the depth of the image, and so do the training scans' ranges
    own = float(prepared.scale.flat[0]) / prep.scale[0] if prep.normalisation == "imagenet" else 1.0
    found = []
    for n, (low, high) in enumerate(percentiles(scan)):
        lowest, highest = (own * v for v in known.intensities[n])
        room, share = _BEYOND * (highest - lowest), known.narrowest[n] * own
        where = f"channel {n}: " if scan.channels > 1 else ""
        what = f"{where}intensities {low_high((low, high), '…')}"
        if flat[n]:
            found += [f"{where}all voxels have the same value"]
        elif low < lowest - room or high > highest + room:
            theirs = low_high((lowest, highest), "…")
            found += [f"{what} reach beyond the training scans' {theirs}"]
        elif low > own * known.highest_low[n] + _RAISED * (highest - lowest):
            theirs = _figure(own * known.highest_low[n])
            found += [f"{what} begin higher than the training scans', at most at {theirs}"]
        elif high - low < _NARROW * share:
            percent = f"{100 * (high - low) / share:.0f} %"
            found += [f"{what} span only {percent} of the narrowest training scan's"]
    return found


def _clearly_thickest(spacing_mm: tuple[float, float, float] | None) -> bool:
    ordered = sorted(spacing_mm or (1, 1, 1))
    return ordered[2] > _FACTOR * ordered[1]


def _within(values: tuple[float, ...], known: tuple[float, float], factor: float) -> bool:
    return known[0] / factor <= min(values) and max(values) <= known[1] * factor


def low_high(pair: tuple[float, float], between: str = "–") -> str:
    """(0.45, 0.55) → "0.45–0.55"; (1, 1) → "1"."""
    return between.join(dict.fromkeys(map(_figure, pair)))


def _figure(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
