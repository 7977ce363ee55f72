"""Slices as pictures, and what stands beside them as HTML."""

from __future__ import annotations

import base64
from html import escape

import cv2
import numpy as np

from segapp.report.overlay import draw_slice
from segapp.resample import resize
from segapp.scan import SegClass
from segapp.web.session import Result

# A picture's longest side in pixels: small slices are enlarged, huge ones reduced.
_SMALLEST, _LARGEST = 768, 1536

# What lies at the left, right, top and bottom of a displayed slice (see preprocess.to_slices).
_SIDES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}

EMPTY_VIEW = (
    '<div class="sa-view sa-empty"><p>Drop a scan on the left'
    "<br>or choose an example to see its segmentation here.</p></div>"
)


def draw(result: Result, classes: tuple[SegClass, ...], number: int, opacity: float) -> np.ndarray:
    """Slice `number` (from 1) with its segmentation, pixels square: (H, W, 3) uint8.

    The image is interpolated, the labels are not: their borders are those of the voxels.
    """
    image, labels = result.slice(number)
    size = display_size(labels.shape[0], labels.shape[1], result.aspect)
    image = resize(image[None].astype(np.float32), size)[0]
    labels = resize(labels[None, None], size, nearest=True)[0, 0]
    return draw_slice(image, labels, classes, result.window, float(np.clip(opacity, 0, 1)))


def display_size(rows: int, columns: int, aspect: float) -> tuple[int, int]:
    """(height, width) of the picture of a slice whose pixels are `aspect` times as high as wide."""
    height, width = rows * max(aspect, 1.0), columns * max(1 / aspect, 1.0)
    longest = max(height, width)
    factor = min(max(longest, _SMALLEST), _LARGEST) / longest
    return max(1, round(height * factor)), max(1, round(width * factor))


def view_html(result: Result, classes: tuple[SegClass, ...], number: int, opacity: float) -> str:
    """The picture as an element that needs no second request and leaves no file behind."""
    picture = draw(result, classes, number, opacity)
    height, width = picture.shape[:2]
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
    full_colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [*quality, *full_colour])
    data = base64.b64encode(jpeg.tobytes()).decode("ascii")
    slices = result.size[0]
    where = f", slice {number} of {slices}" if slices > 1 else ""
    sides = "".join(
        f'<span class="sa-side sa-{place}" aria-hidden="true">{letter}</span>'
        for place, letter in zip(
            ("left", "right", "top", "bottom"), _SIDES.get(result.axis or "", ""), strict=False
        )
    )
    return (
        f'<figure class="sa-view"><div class="sa-frame" style="--ratio:{width / height:.4f}">'
        f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(result.name)}{where}, with its segmentation">{sides}</div>'
        f"<figcaption>{escape(result.name)}{where}</figcaption></figure>"
    )


def facts_html(result: Result, classes: tuple[SegClass, ...]) -> str:
    """Whether to look at the result, the legend with sizes, what is known of the scan, warnings."""
    sizes = result.outcome.sizes
    known = next((u for u in ("ml", "mm2") if f"{classes[-1].name}_{u}" in sizes), None)
    unit, size_name = {"ml": ("ml", "Volume"), "mm2": ("mm²", "Area")}.get(known or "", ("", ""))
    counted = "Voxels" if result.size[0] > 1 or result.axis else "Pixels"
    head = f"<th>Class</th><th>{counted}</th>" + (f"<th>{size_name}</th>" if known else "")
    rows = ""
    for c in classes[1:]:
        colour = "#{:02x}{:02x}{:02x}".format(*c.colour)
        count = sizes.get(f"{c.name}_voxels", 0)
        swatch = f'<span class="sa-swatch" style="background:{colour}"></span>'
        cells = [f"{count:,.0f}"]
        cells += [f"{_rounded(sizes[f'{c.name}_{known}'])} {unit}"] if known else []
        name = f"{c.name}_{known or 'voxels'}"
        if f"{name}_low" in sizes:
            ends = (_rounded(sizes[f"{name}_{end}"]) for end in ("low", "high"))
            cells[-1] += f"<small>{'–'.join(ends)}</small>"
        rows += f'<tr><th scope="row">{swatch}{escape(c.name)}</th>'
        rows += "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    facts = []
    if result.outcome.status == "review":
        why = f"<strong>Review this result:</strong> {escape(result.outcome.reason)}"
        facts.append(f"<p class='sa-review' role='alert'>{why}</p>")
    facts.append(
        f"<table class='sa-legend'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
    if result.outcome.range_coverage:
        share = f"about {result.outcome.range_coverage:.0%} of scans like the training's"
        facts.append(f"<p class='sa-note'>Small: a range that holds the true size in {share}.</p>")
    if not known:
        facts.append("<p class='sa-note'>Spacing unknown: no areas or volumes.</p>")
    facts.append(f"<dl>{_facts(result)}</dl>")
    facts += [
        f"<p class='sa-warning'>⚠ {escape(w)}</p>"
        for w in result.outcome.warnings
        if not w.startswith("spacing unknown:")  # the note above says it
    ]
    return f'<div class="sa-facts">{"".join(facts)}</div>'


def _facts(result: Result) -> str:
    i, j, k = result.shape
    found = [("Size", f"{i} × {j} × {k}" if result.axis or k > 1 else f"{i} × {j} pixels")]
    if result.spacing_mm:
        found.append(("Spacing", " × ".join(f"{s:.3g}" for s in result.spacing_mm) + " mm"))
    if result.outcome.mean_confidence is not None:
        found.append(("Mean confidence", f"{100 * result.outcome.mean_confidence:.1f} %"))
    if result.outcome.estimated_dice is not None:
        found.append(("Estimated Dice", f"{result.outcome.estimated_dice:.2f}"))
    if result.outcome.unlikeness is not None:
        found.append(("Unlikeness (limit 1)", f"{result.outcome.unlikeness:.2g}"))
    found.append(("Time", f"{result.outcome.seconds:.1f} s"))
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in found)


def failures_html(results: list[Result]) -> str:
    """A line for each file that could not be segmented."""
    return "".join(
        f'<p class="sa-error" role="alert"><strong>{escape(r.name)}</strong>: '
        f"{escape(r.outcome.reason)}</p>"
        for r in results
        if not r.ok
    )


def _rounded(value: float) -> str:
    digits = 0 if value >= 1000 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
