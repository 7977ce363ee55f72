"""What the training cases look like, and the preprocessing that follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from segapp.cases import Case, Dataset
from segapp.errors import ConfigError, ScanError
from segapp.finding import counted
from segapp.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    SliceAxis,
    slice_spacing,
    thickest_axis,
)
from segapp.scan import Scan
from segapp.selection import hold_every_class
from segapp.settings import Settings
from segapp.shapes import (
    NATIVE_UP_TO,
    RESIZE_TO,
    class_sides,
    class_widths,
    lost_detail,
    slice_size,
)
from segapp.spread import outer_percentiles, spread

_LARGEST = 2048  # what a network should be asked to look at
_LEAST_WIDTH, _LEAST_DETAIL = 6.0, 0.05  # see `_choose_size`
_AIR_HU = -500  # no other modality stores values as low as air in CT
_SAME_SIDE, _OFF_CENTRE = 0.9, 0.15  # share of cases; mean distance from the middle, of half
_SAMPLES = 20_000  # foreground intensities kept per case
_DRAWN = 200_000  # voxels that a scan's range of intensities is taken from


@dataclass(frozen=True)
class CaseFacts:
    """Measurements of one case. `mask_counts`: mask value → voxels; `samples`: (n, C) intensities
    of foreground voxels, drawn with a fixed seed; `shape` is (I, J, K); `slice_sizes`: (rows,
    columns) of the slices that each direction of cutting gives, and `slice_spacings` the mm between
    these slices, rows and columns (None where unknown); `percentiles`: see `percentiles`;
    `spreads`: mean and standard deviation of each channel, over its non-zero voxels (True) or all
    (False); `sides`: where each foreground value lies across the columns, -1 first … 1 last of all
    foreground; `widths` and `detail`: see `class_widths`, `lost_detail`; `modality`: see Scan."""

    case: Case
    shape: tuple[int, int, int]
    channels: int
    dtype: str
    spacing_mm: tuple[float, float, float] | None
    thickest: SliceAxis
    slice_sizes: dict[SliceAxis, tuple[int, ...]]
    slice_spacings: dict[SliceAxis, tuple[float, ...] | None]
    mask_counts: dict[int, int]
    minimum: float
    maximum: float
    percentiles: tuple[tuple[float, float], ...]
    zero_share: float
    spreads: dict[bool, tuple[tuple[float, float], ...]]
    sides: dict[SliceAxis, dict[int, float]]
    widths: dict[SliceAxis, dict[int, float]]
    detail: dict[SliceAxis, float]
    samples: np.ndarray
    modality: str = ""


def measure(case: Case, scan: Scan, mask: np.ndarray, ignore: int | None = None) -> CaseFacts:
    """Facts of a scan (C, I, J, K) and its mask values (1, I, J, K), 0 being the background."""
    values, counts = np.unique(mask, return_counts=True)
    inside = np.flatnonzero((mask != 0) & (mask != (0 if ignore is None else ignore)))
    if inside.size > _SAMPLES:
        inside = np.random.default_rng(0).choice(inside, _SAMPLES, replace=False)
    return CaseFacts(
        case=case,
        shape=scan.shape,
        channels=scan.channels,
        dtype=str(scan.voxels.dtype),
        spacing_mm=scan.spacing_mm,
        thickest=thickest_axis(scan),
        slice_sizes={axis: slice_size(scan, axis) for axis in get_args(SliceAxis)},
        slice_spacings={
            axis: None if scan.affine is None else slice_spacing(scan, axis)
            for axis in get_args(SliceAxis)
        },
        mask_counts={int(v): int(n) for v, n in zip(values, counts, strict=True)},
        minimum=float(scan.voxels.min()),
        maximum=float(scan.voxels.max()),
        percentiles=percentiles(scan),
        zero_share=float(np.mean(scan.voxels == 0)),
        spreads={
            nonzero: tuple(spread(channel, "zscore", nonzero)[:2] for channel in scan.voxels)
            for nonzero in (True, False)
        },
        sides={axis: class_sides(mask, scan, axis, ignore) for axis in get_args(SliceAxis)},
        widths={axis: class_widths(mask, scan, axis, ignore) for axis in get_args(SliceAxis)},
        detail={axis: lost_detail(scan, axis) for axis in get_args(SliceAxis)},
        samples=scan.voxels.reshape(scan.channels, -1)[:, inside].T.astype(np.float32),
        modality=scan.modality,
    )


def percentiles(scan: Scan) -> tuple[tuple[float, float], ...]:
    """The range of each channel without its outliers: 0.5 % and 99.5 % of up to 200,000 voxels."""
    values = scan.voxels
    if values[0].size > _DRAWN:
        rng = np.random.default_rng(0)
        values = values[:, *(rng.integers(0, n, _DRAWN) for n in scan.shape)]
    return tuple(outer_percentiles(channel) for channel in values.reshape(scan.channels, -1))


def _choose_size(
    facts: Sequence[CaseFacts], axis: SliceAxis
) -> tuple[int | Literal["native"], str]:
    """The longest side that slices are brought to, and why: 512 shows a network the most of a large
    slice, but loses classes of a few pixels, where the image has that much detail to lose."""
    longest = float(np.median([max(f.slice_sizes[axis]) for f in facts]))
    why = f"the median longest side is {longest:.0f} pixels"
    if longest <= NATIVE_UP_TO:
        return "native", why
    found: dict[int, list[float]] = {}
    for f in facts:
        for value, width in f.widths[axis].items():
            found.setdefault(value, []).append(width)
    finest = min((float(np.median(w)) for w in found.values()), default=longest)
    finest *= RESIZE_TO / longest
    detail = float(np.median([f.detail[axis] for f in facts]))
    if finest >= _LEAST_WIDTH or detail < _LEAST_DETAIL:
        return RESIZE_TO, why
    why += f"; at {RESIZE_TO} the finest class were {finest:.1f} wide, {detail:.0%} of detail lost"
    return ("native" if longest <= _LARGEST else _LARGEST), why


def with_every_class(
    dataset: Dataset, facts: list[CaseFacts], seed: int
) -> tuple[Dataset, list[CaseFacts]]:
    """`hold_every_class` of measured cases, whose split is told anew in both."""
    dataset = hold_every_class(dataset, {f.case.name: set(f.mask_counts) for f in facts}, seed)
    cases = {c.name: c for c in dataset.cases}
    return dataset, [replace(f, case=cases[f.case.name]) for f in facts]


def sides_that_flips_swap(facts: Sequence[CaseFacts], axis: SliceAxis) -> tuple[int, int] | None:
    """Two mask values that lie on opposite sides in (nearly) all cases, such as a left and a right
    organ: a mirrored patch would show one under the other's name. None where there are none."""
    first = last = None
    for value in sorted({v for f in facts for v in f.sides[axis]}):
        places = np.array([f.sides[axis][value] for f in facts if value in f.sides[axis]])
        if np.mean(places < 0) >= _SAME_SIDE and places.mean() < -_OFF_CENTRE:
            first = value
        if np.mean(places > 0) >= _SAME_SIDE and places.mean() > _OFF_CENTRE:
            last = value
    return None if first is None or last is None else (first, last)


def fit_preprocessing(
    facts: Sequence[CaseFacts], settings: Settings, channel_files: int
) -> tuple[Preprocessing, list[str]]:
    """The preprocessing for these training cases, and a line of reason for each decision.

    Rules: slices stay native where their median longest side is up to 640 pixels; else see
    `_choose_size`, unless pixels are brought to a spacing (auto: the cases' median of √(row ·
    column spacing)); CT (values below -500) is clipped to its foreground's 0.5…99.5 % and
    standardised as nnU-Net does (Isensee et al. 2021); 8-bit RGB takes ImageNet's constants;
    everything else a z-score of each image (or volume), over the non-zero pixels where more than a
    tenth are zero.

    Raises ScanError for a scan of unknown spacing where preprocess.spacing_mm needs it, ConfigError
    for data.context_slices without volumes.
    """
    reasons = []
    channels = Counter(f.channels for f in facts).most_common(1)[0][0]
    axis: SliceAxis
    if settings.data.slice_axis != "auto":
        axis = settings.data.slice_axis
    else:
        axes: Counter[SliceAxis] = Counter(f.thickest for f in facts)
        axis = axes.most_common(1)[0][0]
        why = "the direction of the thickest spacing (a tie means axial)"
        if all(f.spacing_mm is None for f in facts):
            why = "as far as images without geometry tell; data.slice_axis names another direction"
        reasons.append(f"slices: {axis}, {why}")
    size = settings.preprocess.size
    spacing_mm, why = _resampled_to(facts, axis, settings)
    reasons += why
    if spacing_mm:
        size = "native"
    elif size == "auto":
        size, why = _choose_size(facts, axis)
        reasons.append(f"size: {size}, {why}")
    kind = settings.preprocess.normalisation
    minimum = float(np.median([f.minimum for f in facts]))
    rgb = channels == 3 and channel_files == 1 and all(f.dtype == "uint8" for f in facts)
    if kind == "auto":
        kind = "ct" if minimum < _AIR_HU else "imagenet" if rgb else "zscore"
        why = f"median minimum {minimum:g}, {counted(channels, 'channel')} of {facts[0].dtype}"
        reasons.append(f"normalisation: {kind} ({why})")
    over = "slice" if all(f.shape[2] == 1 for f in facts) else "scan"
    context = settings.data.context_slices
    if context and all(1 in f.shape for f in facts):
        raise ConfigError(
            f"data.context_slices={context} needs volumes, and every case is a single slice"
        )
    nonzero = float(np.mean([f.zero_share for f in facts])) > 0.1
    fixed = _fixed_normalisation(kind, channels, facts)
    if kind in ("zscore", "percentile"):
        reasons.append(f"its statistics: of each {over}" + (", non-zero pixels" if nonzero else ""))
        fixed["typical"] = typical_spread(facts, channels, nonzero)
    return (
        Preprocessing(
            channels=channels,
            channel_files=channel_files,
            context=context,
            slice_axis=axis,
            size=None if size == "native" else int(size),
            spacing_mm=spacing_mm,
            normalisation=kind,
            over=over,
            nonzero=nonzero,
            **fixed,
        ),
        reasons,
    )


def _resampled_to(
    facts: Sequence[CaseFacts], axis: SliceAxis, settings: Settings
) -> tuple[float | None, list[str]]:
    asked = settings.preprocess.spacing_mm
    if asked == "none":
        return None, []
    found = []
    for f in facts:
        mm = f.slice_spacings[axis]
        if mm is None:
            raise ScanError(
                f.case.images[0],
                "its spacing is unknown, and preprocess.spacing_mm needs that of every training "
                "scan; use a format that holds it (e.g. NIfTI), or preprocess.spacing_mm=none",
            )
        found.append(float(np.sqrt(mm[1] * mm[2])))
    if asked != "auto":
        return asked, []
    median = float(f"{np.median(found):.6g}")  # a header's float32 has no more digits
    return median, [f"pixels: brought to {median:g} mm, the training scans' median"]


def typical_spread(
    facts: Sequence[CaseFacts], channels: int, nonzero: bool
) -> tuple[tuple[float, float], ...]:
    """Per channel the median of the cases' means and standard deviations."""
    spreads = [f.spreads[nonzero] for f in facts if f.channels == channels]
    medians = np.median(np.array(spreads, float), axis=0)  # (channels, 2)
    return tuple((float(mean), float(std)) for mean, std in medians)


def _fixed_normalisation(kind: str, channels: int, facts: Sequence[CaseFacts]) -> dict:
    if kind == "imagenet":
        white = _white(facts)
        mean, std = (
            v if channels == 3 else (float(np.mean(v)),) * channels
            for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        shift, scale = (tuple(white * v for v in values) for values in (mean, std))
        return {"white": white, "shift": shift, "scale": scale}
    if kind == "ct":
        samples = np.concatenate([f.samples for f in facts if f.channels == channels])
        if not len(samples):  # masks without any foreground; the check refuses these before
            samples = np.zeros((1, channels), np.float32)
        low, high = np.percentile(samples, (0.5, 99.5), axis=0)
        clipped = np.clip(samples, low, high)
        return {
            "shift": tuple(float(v) for v in clipped.mean(axis=0)),
            "scale": tuple(float(v) or 1.0 for v in clipped.std(axis=0)),
            "clip": tuple((float(a), float(b)) for a, b in zip(low, high, strict=True)),
        }
    return {}


def _white(facts: Sequence[CaseFacts]) -> float:
    """The value that stands for white: the integer type's largest, else the largest seen."""
    dtype = np.dtype(facts[0].dtype)
    if dtype.kind == "u":
        return float(np.iinfo(dtype).max)
    return max(1.0, max(f.maximum for f in facts))
