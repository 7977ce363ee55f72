"""One scan's result on one page: pictures, measures, and what the model thinks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segapp.measure import UNRANGED, ClassMeasure, edge_note, in_range, unit_sign
from segapp.outcomes import Outcome
from segapp.preprocess import SliceAxis, scan_axis, slice_spacing
from segapp.report.evaluation import count
from segapp.report.overlay import (
    busiest_slice,
    display_slices,
    display_window,
    draw_slice,
)
from segapp.report.page import data_uri, number, two_digits, write_page
from segapp.scan import Scan, Segmentation, css

_AXES: tuple[SliceAxis, ...] = ("axial", "coronal", "sagittal")
_SIDES = (440, 300, 200, 130)  # pixels of a picture's longer side, until the page is small enough
_MOST_BYTES = 320_000  # of all pictures as text
# Which sides of the patient lie left, right, above and below in a picture, as the reader shows it
_EDGES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
_LARGER = 8  # times that a pixel is drawn larger at most


@dataclass(frozen=True)
class Plane:
    """A slice without and with the result: `plain` and `drawn` are data: URIs of `size` (width,
    height). title: "" where the scan is a single image."""

    title: str
    plain: str
    drawn: str
    size: tuple[int, int]


def write_reading(
    segmentation: Segmentation,
    outcome: Outcome,
    measures: Sequence[ClassMeasure],
    path: Path,
    *,
    name: str,
    model: str,
    corrected_voxels: int | None = None,
) -> None:
    """Write a page about one result, of less than 400 KB, that asks for no other file.

    segmentation, measures: as they stand, corrected or not. outcome: what the model thought of its
    own result. name: what the scan is called. corrected_voxels: how many voxels somebody changed,
    None where the result is the model's own. Raises OutputError.
    """
    write_page(
        path,
        "reading.html.j2",
        name=name,
        model=model,
        review=outcome.reason if outcome.status == "review" else "",
        corrected=None if corrected_voxels is None else count(corrected_voxels, "voxel"),
        differ="differs" if corrected_voxels == 1 else "differ",
        planes=draw_planes(segmentation),
        rows=[
            (css(c.colour), m, "–" if m.size is None else _rounded(m.size), _range_text(m))
            for c, m in zip(segmentation.classes[1:], measures, strict=True)
        ],
        edge_note=edge_note(measures),
        unit=unit_sign(measures[0].unit) if measures else None,
        counted="voxels" if _is_placed(segmentation.scan) else "pixels",
        ranged=_ranged(outcome, measures, corrected_voxels is not None),
        facts=_facts(segmentation.scan, outcome, corrected_voxels is not None),
        warnings=list(dict.fromkeys(outcome.warnings)),
    )


def draw_planes(segmentation: Segmentation) -> list[Plane]:
    """The busiest slice; of a volume with a place in space that of each plane, axial first, all in
    one scale. Made smaller where the pictures would take much room."""
    scan = segmentation.scan
    if scan.affine is None or 1 in scan.shape:
        axes: tuple[SliceAxis, ...] = (scan_axis(scan.shape, scan.affine, "axial"),)
    else:
        axes = _AXES
    shown = [_cut(segmentation, axis) for axis in axes]
    longest = max(side for cut in shown for side in cut.extent)
    planes: list[Plane] = []
    for most in _SIDES:
        most = most if len(shown) > 1 else most * 3 // 2
        scale = min(most / longest, _LARGER / min(cut.pixel for cut in shown))
        planes = [_plane(segmentation, cut, scale) for cut in shown]
        if sum(len(p.plain) + len(p.drawn) for p in planes) <= _MOST_BYTES:
            break
    return planes


@dataclass(frozen=True)
class _Cut:
    """A slice of a scan. plain: (H, W, 3) uint8; labels: (H, W) indices; pixel: its smaller side in
    mm; extent: (width, height) in mm. Without a spacing a pixel is taken for a mm. edges: see
    _EDGES; "" where nothing is known of the place."""

    title: str
    plain: np.ndarray
    labels: np.ndarray
    pixel: float
    extent: tuple[float, float]
    edges: str = ""


def _cut(segmentation: Segmentation, axis: SliceAxis) -> _Cut:
    scan = segmentation.scan
    images, labels = display_slices(segmentation, axis)
    k = busiest_slice(labels)
    nothing = np.zeros_like(labels[k])
    plain = draw_slice(images[k], nothing, segmentation.classes, display_window(scan))
    _, row, column = (1.0, 1.0, 1.0) if scan.affine is None else slice_spacing(scan, axis)
    title = "" if scan.affine is None else axis
    if len(labels) > 1:  # counted as the reader counts: towards head, back and left
        shown = k + 1 if axis == "axial" else len(labels) - k
        title = f"{title} slice {shown} of {len(labels)}".strip()
    height, width = nothing.shape
    extent = (width * column, height * row)
    edges = "" if scan.affine is None else _EDGES[axis]
    return _Cut(title.capitalize(), plain, labels[k], min(row, column), extent, edges)


def _plane(segmentation: Segmentation, cut: _Cut, scale: float) -> Plane:
    """scale: pixels for a mm. The image is smoothed, labels are not."""
    width, height = (max(1, round(scale * mm)) for mm in cut.extent)
    smooth = Image.fromarray(cut.plain).resize((width, height), Image.Resampling.BICUBIC)
    labels = Image.fromarray(np.ascontiguousarray(cut.labels, np.uint8))
    labels = np.asarray(labels.resize((width, height), Image.Resampling.NEAREST))
    pixels = np.asarray(smooth)
    drawn = draw_slice(pixels.transpose(2, 0, 1), labels, segmentation.classes, (0.0, 255.0))
    bare, coloured = (data_uri(_lettered(p, cut.edges)) for p in (pixels, drawn))
    return Plane(cut.title, bare, coloured, (width, height))


def _lettered(picture: np.ndarray, edges: str) -> np.ndarray:
    """The picture (H, W, 3) with a letter in the middle of each side."""
    image = Image.fromarray(picture)
    draw, (width, height) = ImageDraw.Draw(image), image.size
    size = max(11, min(15, min(width, height) // 12))
    places = ((2, height / 2), (width - 2, height / 2), (width / 2, 2), (width / 2, height - 2))
    for letter, place, anchor in zip(edges, places, ("lm", "rm", "mt", "mb"), strict=False):
        font = ImageFont.load_default(size)
        draw.text(place, letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def _ranged(outcome: Outcome, measures: Sequence[ClassMeasure], corrected: bool) -> str:
    if corrected:
        return UNRANGED
    if not outcome.range_coverage or all(m.low is None for m in measures):
        return ""
    said = "In small type: the range in which the true size should lie."
    return f"{said} {in_range(outcome.range_coverage)}"


def _facts(scan: Scan, outcome: Outcome, corrected: bool) -> list[tuple[str, str]]:
    """What is known of the scan, and of how good the model takes its own result to be."""
    whose = "Model's own {}" if corrected else "{}"
    placed = _is_placed(scan)
    size = " × ".join(map(str, scan.shape if placed else scan.shape[:2]))
    facts = [("Size", f"{size} {'voxels' if placed else 'pixels'}")]
    if scan.spacing_mm:
        facts.append(("Spacing", " × ".join(f"{mm:.3g}" for mm in scan.spacing_mm) + " mm"))
    if outcome.mean_confidence is not None:
        facts.append((whose.format("mean confidence"), f"{100 * outcome.mean_confidence:.1f} %"))
    if outcome.estimated_dice is not None:
        facts.append((whose.format("estimated Dice"), f"{outcome.estimated_dice:.2f}"))
    if outcome.unlikeness is not None:
        facts.append(("Unlikeness (limit 1)", two_digits(outcome.unlikeness)))
    return [(name[0].upper() + name[1:], value) for name, value in facts]


def _is_placed(scan: Scan) -> bool:
    return scan.affine is not None or scan.shape[2] > 1


def _range_text(measured: ClassMeasure) -> str:
    if measured.low is None or measured.high is None:
        return ""
    ends = (measured.low, measured.high)
    if measured.unit is None:
        return "–".join(number(end, 0) for end in ends)
    return "–".join(map(_rounded, ends))


def _rounded(value: float) -> str:
    if 0 < value < 1:
        return f"{value:.3g}"
    return number(value, 0 if value >= 1000 else 1 if value >= 10 else 2)
