"""Slices brought to another size: resized about pixel centres, and padded."""

from __future__ import annotations

import cv2
import numpy as np


def resize(x: np.ndarray, size: tuple[int, ...], nearest: bool = False) -> np.ndarray:
    """(n, C, H, W) → (n, C, *size). Images: bilinear, averaging where it shrinks; masks: nearest.

    Pixel areas stay aligned (half-pixel centres), so enlarging a shrunken image moves nothing.
    """
    rows, columns = x.shape[2:]
    height, width = size
    if (rows, columns) == (height, width):
        return x
    shrinks, grows = height < rows or width < columns, height > rows or width > columns
    if shrinks and grows and not nearest:  # OpenCV averages only where both sides shrink
        return resize(resize(x, (height, columns)), size)
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if nearest:
        how = cv2.INTER_NEAREST_EXACT
    out = np.empty((*x.shape[:2], height, width), x.dtype)
    for n, c in np.ndindex(*x.shape[:2]):
        out[n, c] = cv2.resize(np.ascontiguousarray(x[n, c]), (width, height), interpolation=how)
    return out


def padded_size(size: tuple[int, ...], multiple: int, least: int = 0) -> tuple[int, ...]:
    """What `pad` makes of a height and a width."""
    return tuple(-(-max(n, least) // multiple) * multiple for n in size)


def pad(x: np.ndarray, multiple: int, least: int = 0) -> np.ndarray:
    """Repeat the last row and column until height and width are multiples of `multiple`.

    `least` is a smallest height and width. (n, C, H, W) in and out.
    """
    size = padded_size(x.shape[2:], multiple, least)
    grow = [new - old for new, old in zip(size, x.shape[2:], strict=True)]
    if not any(grow):
        return x
    return np.pad(x, ((0, 0), (0, 0), (0, grow[0]), (0, grow[1])), mode="edge")
