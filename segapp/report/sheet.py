"""A data set on one picture: cases with problems first, masks drawn over the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFont

from segapp.errors import ScanError
from segapp.finding import Finding, counted
from segapp.formats import read_labels, read_scan
from segapp.layout import SPLITS, Case, Dataset
from segapp.preprocess import scan_axis, thickest_axis, to_slices
from segapp.report.board import (
    EMPTY,
    GAP,
    HEADER,
    INK,
    MARGIN,
    SIDE,
    SOFT,
    cut_front,
    fitted,
    headed_page,
)
from segapp.report.findings import share_text
from segapp.report.overlay import (
    busiest_slice,
    display_window,
    draw_slice,
    pixel_aspect,
    save_png,
)
from segapp.scan import Scan, SegClass
from segapp.selection import spread_over

_MOST, _WITH_PROBLEMS, _COLUMNS = 24, 18, 6
_CAPTION = 40
_FRAMES = {"error": (200, 20, 30), "warning": (225, 150, 0), "": (205, 205, 205)}
_OTHER = (255, 0, 255)  # a mask value of no class
_UNPAIRED = ("mask-missing", "image-missing")
T = TypeVar("T")


@dataclass(frozen=True)
class _Tile:
    """One picture to draw: its files (either may be missing), what stands below, its frame."""

    images: tuple[Path, ...]
    mask: Path | None
    title: str
    name: str
    level: str


def write_sheet(
    dataset: Dataset,
    findings: Sequence[Finding],
    classes: tuple[SegClass, ...],
    shares: Sequence[float | None],
    path: Path,
) -> None:
    """A PNG of up to 24 cases: those that findings name, then others from every split.

    shares: of all voxels, for each class, None where unknown. Each picture is the slice with the
    most foreground; a value that no class has is magenta. Raises OutputError.
    """
    tiles = _choose(dataset, findings)
    rows = -(-len(tiles) // _COLUMNS) or 1
    width = 2 * MARGIN + _COLUMNS * (SIDE + GAP) - GAP
    height = HEADER + 2 * MARGIN + rows * (SIDE + _CAPTION + GAP) - GAP
    counts = [sum(f.level == level for f in findings) for level in ("error", "warning")]
    heading = f"{dataset.root.name}: {_shown_of(dataset, tiles)}"
    heading += f", {counted(counts[0], 'error')}, {counted(counts[1], 'warning')}"
    entries = [
        (c.name if share is None else f"{c.name} {share_text(share)}", c.colour)
        for c, share in zip(classes, shares, strict=True)
    ]
    if any(f.kind.startswith("mask-value") for f in findings):
        entries.append(("other values", _OTHER))
    sheet, draw = headed_page(width, height, heading, entries)
    small = ImageFont.load_default(14)
    for n, tile in enumerate(tiles):
        left = MARGIN + n % _COLUMNS * (SIDE + GAP)
        top = HEADER + MARGIN + n // _COLUMNS * (SIDE + _CAPTION + GAP)
        box = (left - 3, top - 3, left + SIDE + 2, top + SIDE + 2)
        draw.rectangle(box, EMPTY, _FRAMES[tile.level], 3 if tile.level else 1)
        picture, problem = _picture(tile, classes)
        if picture is None:
            draw.text((left + 10, top + SIDE // 2 - 8), problem, SOFT, small)
        else:
            at = (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2)
            sheet.paste(picture, at)
        colour = _FRAMES[tile.level] if tile.level else SOFT
        draw.text((left, top + SIDE + 5), cut_front(tile.title, small), colour, small)
        draw.text((left, top + SIDE + 22), cut_front(tile.name, small), INK, small)
    save_png(np.asarray(sheet), path)


def _shown_of(dataset: Dataset, tiles: Sequence[_Tile]) -> str:
    """How many cases there are; where not all are shown also which."""
    count = counted(len(dataset.cases), "case")
    shown = len({t.name for t in tiles} & {c.name for c in dataset.cases})
    if shown == len(dataset.cases):
        return count
    first = "those with findings first, then " if any(t.level for t in tiles) else ""
    return f"{shown} of {count} ({first}evenly spread over each split)"


def _choose(dataset: Dataset, findings: Iterable[Finding]) -> list[_Tile]:
    """Files that findings name, of each kind in turn, then cases of each split in turn."""
    owner = {path: c for c in dataset.cases for path in (*c.images, c.mask)}
    told: dict[Case | Path, list[Finding]] = {}
    for f in findings:
        if f.path in owner or (f.kind in _UNPAIRED and f.path.is_file()):
            told.setdefault(owner.get(f.path, f.path), []).append(f)
    kinds: dict[str, list[_Tile]] = {}
    for key, found in told.items():
        kind, level = found[0].kind, found[0].level
        title = ", ".join(dict.fromkeys(f.kind for f in found))
        if isinstance(key, Case):
            tile = _Tile(key.images, key.mask, title, key.name, level)
        elif kind == "image-missing":
            tile = _Tile((), key, title, key.name, level)
        else:
            tile = _Tile((key,), None, title, key.name, level)
        kinds.setdefault(kind, []).append(tile)
    tiles = _in_turn(list(kinds.values()), _WITH_PROBLEMS)
    sound = [[c for c in dataset.split(s) if c not in told] for s in SPLITS]
    shares = _in_turn([[n] * len(of) for n, of in enumerate(sound)], _MOST - len(tiles))
    cases = [c for n, of in enumerate(sound) for c in spread_over(of, shares.count(n))]
    return tiles + [_Tile(c.images, c.mask, c.split, c.name, "") for c in cases]


def _in_turn(groups: Sequence[Sequence[T]], count: int) -> list[T]:
    """The first of each group, then the second of each, up to `count`."""
    return [item for turn in zip_longest(*groups) for item in turn if item is not None][:count]


def _picture(tile: _Tile, classes: tuple[SegClass, ...]) -> tuple[Image.Image | None, str]:
    """The tile's picture, at most SIDE pixels wide and high, or why there is none."""
    scan = mask = None
    problem = ""
    try:
        scan = read_scan(tile.images) if tile.images else None
    except ScanError:
        problem = "the image can't be read"
    try:
        mask = read_labels(tile.mask) if tile.mask else None
    except ScanError:
        problem = problem or "the mask can't be read"
    if scan is None and mask is None:
        return None, problem
    shown = scan or mask
    assert shown is not None
    axis = scan_axis(shown.shape, shown.affine, thickest_axis(shown))
    if mask is not None and mask.shape == shown.shape:
        labels = to_slices(_indices(mask, classes)[None], shown.affine, axis)[:, 0]
    else:
        labels = np.zeros(to_slices(shown.voxels[:1], shown.affine, axis)[:, 0].shape, np.uint8)
    image = to_slices(shown.voxels if scan else np.zeros_like(shown.voxels), shown.affine, axis)
    k = busiest_slice(labels)
    window = display_window(scan) if scan else (0.0, 1.0)
    palette = (*(classes or (SegClass("", 0, (0, 0, 0)),)), SegClass("", -1, _OTHER))
    drawn = Image.fromarray(draw_slice(image[k], labels[k], palette, window, 0.45))
    return fitted(drawn, pixel_aspect(shown, axis)), problem


def _indices(mask: Scan, classes: Sequence[SegClass]) -> np.ndarray:
    """(I, J, K) class indices; one past the last class for values of none (but 0)."""
    values = mask.voxels[0]
    indices = np.where(values == 0, 0, max(len(classes), 1)).astype(np.uint8)
    for n, c in enumerate(classes):
        indices[values == c.value] = n
    return indices
