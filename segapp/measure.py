"""What is measured of a result: size, pieces and mean intensity of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segapp.files import write_table
from segapp.outcomes import Outcome, class_sizes
from segapp.preprocess import LUMINANCE
from segapp.scan import Scan, Segmentation, planes

UNRANGED = "Ranges are those of the model's own result; a corrected size has none."
_PIECE = 1 << 22  # voxels whose pieces are numbered at once
_COLUMNS = ("class", "voxels", "size", "unit", "low", "high", "components", "mean_intensity")
_COLUMNS += ("at_edge",)
_QUALITY = ("status", "reason", "mean_confidence", "estimated_dice", "unlikeness")
_QUALITY += ("range_coverage", "warnings", "corrected_voxels")


@dataclass(frozen=True)
class ClassMeasure:
    """A foreground class of a result.

    size: in `unit`, "ml" (volumes) or "mm2" (slices); both None where the spacing is unknown.
    low, high: the range that the true size is in, in `unit`, or in voxels without one; None where
    nothing can be promised. components: its separate regions, joined by faces in volumes and by
    edges in images, 0 where it is empty. mean_intensity: of the scan's first channel (of the
    luminance where there are three) in the file's units; None where the class is empty. at_edge:
    whether it reaches an outermost plane of a volume, so that some of it may lie outside of what
    was scanned; None for images, slices, and volumes without a place in space.
    """

    name: str
    voxels: int
    size: float | None
    unit: str | None
    low: float | None
    high: float | None
    components: int
    mean_intensity: float | None
    at_edge: bool | None = None


def measure(segmentation: Segmentation) -> list[ClassMeasure]:
    """The foreground classes in their order; [] where background is the only class."""
    sizes = class_sizes(segmentation)
    _, unit = segmentation.scan.voxel_size()
    known = unit if unit != "voxels" else None
    boxes = ndimage.find_objects(segmentation.labels, len(segmentation.classes) - 1)
    means = _mean_intensities(segmentation)
    placed = segmentation.scan.affine is not None and 1 not in segmentation.scan.shape
    found = []
    for index, c in enumerate(segmentation.classes[1:], 1):
        box = boxes[index - 1]
        inside = None if box is None else segmentation.labels[box]
        found.append(
            ClassMeasure(
                name=c.name,
                voxels=int(sizes[f"{c.name}_voxels"]),
                size=sizes[f"{c.name}_{known}"] if known else None,
                unit=known,
                low=sizes.get(f"{c.name}_{unit}_low"),
                high=sizes.get(f"{c.name}_{unit}_high"),
                components=0 if inside is None else count_components(inside, index),
                mean_intensity=means[index],
                at_edge=_at_edge(box, segmentation.labels.shape) if placed else None,
            )
        )
    return found


def _at_edge(box: tuple[slice, ...] | None, shape: tuple[int, ...]) -> bool:
    """Whether the box around a class reaches a side of its volume: any of them, as which way the
    slices of a volume were taken is not always known."""
    sides = zip(box, shape, strict=True) if box else ()
    return any(side.start == 0 or side.stop == length for side, length in sides)


def count_components(labels: np.ndarray, index: int) -> int:
    """Number of regions of (I, J, K) `labels` that hold `index` and hang together by faces; 0
    where there are none. The memory is that of a few planes: pieces are numbered slab by slab, and
    those that touch between slabs are one."""
    slowest = int(np.argmax(np.abs(labels.strides)))
    labels = np.moveaxis(labels, slowest, 0)
    step = max(1, _PIECE // max(1, labels[0].size))
    total, before, touching, above = 0, 0, [], None
    for start in range(0, len(labels), step):
        there = labels[start : start + step] == index
        numbers = np.empty(there.shape, np.int32)
        count = cast(int, ndimage.label(there, output=numbers))
        if above is not None:
            both = (above > 0) & (numbers[0] > 0)
            pairs = np.stack([above[both] + before, numbers[0][both] + total])
            touching.append(np.unique(pairs, axis=1) - 1)
        above, before, total = numbers[-1], total, total + count
    if not touching or not total:
        return total
    first, second = np.concatenate(touching, axis=1)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(total, total))
    return int(connected_components(graph, directed=False, return_labels=False))


def _mean_intensities(segmentation: Segmentation) -> list[float | None]:
    """Of each class, background included."""
    count = len(segmentation.classes)
    sums, voxels = np.zeros(count), np.zeros(count, np.int64)
    channels, weights = _channels(segmentation.scan)
    for labels, *values in planes(segmentation.labels, *channels):
        chosen = labels.ravel()
        grey = sum(w * v.ravel().astype(np.float64) for w, v in zip(weights, values, strict=True))
        voxels += np.bincount(chosen, minlength=count)
        sums += np.bincount(chosen, weights=grey, minlength=count)
    return [float(s / n) if n else None for s, n in zip(sums, voxels, strict=True)]


def _channels(scan: Scan) -> tuple[np.ndarray, tuple[float, ...]]:
    """The channels (I, J, K) that count, and what each counts."""
    colour = scan.channels == 3 and (scan.affine is None or scan.voxels.dtype == np.uint8)
    return (scan.voxels, LUMINANCE) if colour else (scan.voxels[:1], (1.0,))


def write_measures(
    rows: Sequence[ClassMeasure],
    path: Path,
    outcome: Outcome | None = None,
    corrected_voxels: int | None = None,
    scan: str | None = None,
) -> None:
    """Write a CSV with a line for each class. Raises OutputError.

    scan: what the scan is called, the first column where it is given.
    outcome: adds what the model thinks of its result, the same in each line. corrected_voxels: how
    many voxels somebody changed afterwards, None for the model's own result.
    """
    same: dict[str, Any] = {"corrected_voxels": corrected_voxels}
    if outcome is not None:
        same |= {column: getattr(outcome, column) for column in _QUALITY[:-2]}
        same["warnings"] = "; ".join(outcome.warnings)
    said = {True: "yes", False: "no", None: None}
    lines = [
        {"class": r.name, **{c: getattr(r, c) for c in _COLUMNS[1:-1]}, **same}
        | {"at_edge": said[r.at_edge]}
        for r in rows
    ]
    columns = [*_COLUMNS, *(_QUALITY if outcome is not None else _QUALITY[-1:])]
    if scan is not None:
        columns, lines = ["scan", *columns], [{"scan": scan, **line} for line in lines]
    write_table(path, columns, lines)


def measures_json(
    rows: Sequence[ClassMeasure], range_coverage: float | None = None, corrected: bool = False
) -> dict[str, Any]:
    """The measures as JSON can hold them. range_coverage: see Outcome; None says nothing of it."""
    unit = rows[0].unit if rows else None
    note = UNRANGED if corrected else None
    if range_coverage and any(r.low is not None for r in rows):
        note = "Below each size: the range in which the true size should lie. "
        note += in_range(range_coverage)
    return {
        "unit": unit_sign(unit),
        "note": note,
        "edge_note": edge_note(rows),
        "classes": [
            {
                "name": r.name,
                "voxels": r.voxels,
                "size": r.size,
                "low": r.low,
                "high": r.high,
                "components": r.components,
                "mean": r.mean_intensity,
            }
            for r in rows
        ],
    }


def in_range(coverage: float) -> str:
    """How often a range holds the true size."""
    share = f"about {100 * coverage:.0f} %"
    said = f"It does in {share} of scans like those that the model was trained on"
    return f"{said}{'' if coverage >= 0.9 else '; few patients in validation promise no more'}."


def edge_note(rows: Sequence[ClassMeasure]) -> str | None:
    """That the sizes of some classes may not be those of the whole organ; None where all are."""
    names = [r.name for r in rows if r.at_edge]
    if not names:
        return None
    reach, sizes = ("reaches", "its size is") if len(names) == 1 else ("reach", "their sizes are")
    where = "the edge of the scan (its first or last slice, or a border of its slices)"
    return f"{', '.join(names)} {reach} {where}: {sizes} of the part that was scanned."


def unit_sign(unit: str | None) -> str | None:
    """A unit as it is shown: "mm2" → "mm²"."""
    return unit.replace("mm2", "mm²") if unit else None
