"""Masks beside a model's results on one picture, with what differs outlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont
from scipy import ndimage

from segapp.report.overlay import draw_slice, save_png
from segapp.report.page import (
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
from segapp.scan import SegClass

MOST, _COLUMNS = 12, 3
_BETWEEN, _CAPTION, _LINES = 4, 76, 3
_OUTLINE = (255, 0, 255)
_WIDTH = 2 * SIDE + _BETWEEN


@dataclass(frozen=True)
class Pair:
    """A slice to show twice. image: (C, H, W) in stored units; truth, labels: (H, W) class indices;
    disputed: (H, W) bool, what to outline; window: black and white in stored units; aspect: height
    of a pixel over its width."""

    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    disputed: np.ndarray
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
    differs outlined in both. None at all: an empty page. Raises OutputError."""
    shown = shown[:MOST]
    rows, columns = -(-len(shown) // _COLUMNS) or 1, _COLUMNS
    width = 2 * MARGIN + columns * (_WIDTH + 2 * GAP) - 2 * GAP
    height = HEADER + 2 * MARGIN + rows * (SIDE + _CAPTION + GAP) - GAP
    entries = [(c.name, c.colour) for c in classes] + [("they differ", _OUTLINE)]
    heading += " (left the mask, right the model's result)"
    page, draw = headed_page(width, height, heading, entries)
    small = ImageFont.load_default(14)
    for n, item in enumerate(shown):
        left = MARGIN + n % columns * (_WIDTH + 2 * GAP)
        top = HEADER + MARGIN + n // columns * (SIDE + _CAPTION + GAP)
        draw.rectangle((left, top, left + _WIDTH - 1, top + SIDE - 1), EMPTY)
        for place, labels in enumerate((item.pair.truth, item.pair.labels)):
            picture = _drawn(item.pair, labels, classes)
            at = left + place * (SIDE + _BETWEEN) + (SIDE - picture.width) // 2
            page.paste(picture, (at, top + (SIDE - picture.height) // 2))
        draw.text((left, top + SIDE + 5), cut_front(item.title, small, _WIDTH), INK, small)
        for line, text in enumerate(wrapped(item.text, small, _WIDTH, _LINES)):
            draw.text((left, top + SIDE + 23 + 17 * line), text, SOFT, small)
    save_png(np.asarray(page), path)


def _drawn(pair: Pair, labels: np.ndarray, classes: tuple[SegClass, ...]) -> Image.Image:
    """The outline is drawn at the size that is shown, where a contour is never lost."""
    picture = Image.fromarray(draw_slice(pair.image, labels, classes, pair.window, 0.45))
    pixels = np.array(fitted(picture, pair.aspect))
    disputed = Image.fromarray(pair.disputed.astype(np.uint8) * 255)
    inside = np.asarray(fitted(disputed, pair.aspect, Image.Resampling.BOX)) >= 128
    pixels[inside & ~ndimage.binary_erosion(inside)] = _OUTLINE
    return Image.fromarray(pixels)
