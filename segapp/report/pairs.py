"""Masks beside a model's results on one picture, with what differs outlined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

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
    wrapped,
)
from segapp.report.overlay import draw_slice, save_png
from segapp.scan import SegClass

MOST, _COLUMNS = 12, 3
_BETWEEN, _CAPTION, _LINES = 4, 76, 3
_OUTLINE, _FRAME = (255, 0, 255), (255, 255, 0)
_AROUND = 0.1  # of what masks show, that is shown beyond it
_WIDTH = 2 * SIDE + _BETWEEN


@dataclass(frozen=True)
class Pair:
    """A slice to show twice. image: (C, H, W) in stored units; truth, labels: (H, W) class indices;
    place: rows and columns to put a frame around; window: black and white in stored units; aspect:
    height of a pixel over its width."""

    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    place: tuple[slice, slice]
    window: tuple[float, float]
    aspect: float


@dataclass(frozen=True)
class Shown:
    """A pair, what it is called, and what is said of it."""

    title: str
    text: str
    pair: Pair


def write_pairs(
    heading: str, shown: Sequence[Shown], classes: tuple[SegClass, ...], path: Path
) -> None:
    """A PNG of up to MOST pairs: the mask on the left, the model's result on the right, what
    differs by more than a contour's width outlined in both, and a frame around the place. They are
    cut to what either shows. None at all: an empty page. Raises OutputError."""
    shown = shown[:MOST]
    rows, columns = -(-len(shown) // _COLUMNS) or 1, _COLUMNS
    width = 2 * MARGIN + columns * (_WIDTH + 2 * GAP) - 2 * GAP
    height = HEADER + 2 * MARGIN + rows * (SIDE + _CAPTION + GAP) - GAP
    entries = [(c.name, c.colour) for c in classes] + [
        ("wider than a contour: they differ", _OUTLINE),
        ("the most suspect place", _FRAME),
    ]
    heading += " (left the mask, right the model's result)"
    page, draw = headed_page(width, height, heading, entries)
    small = ImageFont.load_default(14)
    for n, item in enumerate(shown):
        left = MARGIN + n % columns * (_WIDTH + 2 * GAP)
        top = HEADER + MARGIN + n // columns * (SIDE + _CAPTION + GAP)
        draw.rectangle((left, top, left + _WIDTH - 1, top + SIDE - 1), EMPTY)
        for side, picture in enumerate(_drawn(item.pair, classes)):
            at = left + side * (SIDE + _BETWEEN) + (SIDE - picture.width) // 2
            page.paste(picture, (at, top + (SIDE - picture.height) // 2))
        draw.text((left, top + SIDE + 5), cut_front(item.title, small, _WIDTH), INK, small)
        for line, text in enumerate(wrapped(item.text, small, _WIDTH, _LINES)):
            draw.text((left, top + SIDE + 23 + 17 * line), text, SOFT, small)
    save_png(np.asarray(page), path)


def _drawn(pair: Pair, classes: tuple[SegClass, ...]) -> Iterator[Image.Image]:
    """Outline and frame are drawn at the size that is shown, where no line is lost."""
    cut = _part_to_show(pair)
    differ = ndimage.binary_opening(pair.truth != pair.labels, np.ones((3, 3), bool))
    for labels in (pair.truth, pair.labels):
        image = pair.image[(slice(None), *cut)]
        drawn = Image.fromarray(draw_slice(image, labels[cut], classes, pair.window, 0.45))
        pixels = np.array(fitted(drawn, pair.aspect))
        differs = Image.fromarray(differ[cut].astype(np.uint8) * 255)
        inside = np.asarray(fitted(differs, pair.aspect, Image.Resampling.BOX)) >= 128
        pixels[inside & np.logical_not(ndimage.binary_erosion(inside))] = _OUTLINE
        picture = Image.fromarray(pixels)
        scales = [n / (c.stop - c.start) for n, c in zip(pixels.shape, cut, strict=False)]
        (top, bottom), (left, right) = (
            ((p.start - c.start) * scale, (p.stop - c.start) * scale - 1)
            for p, c, scale in zip(pair.place, cut, scales, strict=True)
        )
        ImageDraw.Draw(picture).rectangle(
            (left, top, max(left, right), max(top, bottom)), outline=_FRAME
        )
        yield picture


def _part_to_show(pair: Pair) -> tuple[slice, slice]:
    """Rows and columns around the foreground of both and the place, in a square of pixels where
    the slice allows it."""
    shown = (pair.truth > 0) | (pair.labels > 0)
    shown[pair.place] = True
    bounds = [np.flatnonzero(shown.any(axis))[[0, -1]] for axis in (1, 0)]
    side = max(last - first for first, last in bounds) * (1 + 2 * _AROUND)
    cut = []
    for (first, last), size in zip(bounds, shown.shape, strict=True):
        start = int(np.clip((first + last - side) / 2, 0, max(0, size - side)))
        cut.append(slice(start, min(size, start + int(np.ceil(side)) + 1)))
    return cut[0], cut[1]
