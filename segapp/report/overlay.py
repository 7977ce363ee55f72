"""A slice as a picture, with its segmentation drawn over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segapp.files import atomic_path
from segapp.preprocess import SliceAxis, scan_axis, slice_spacing, to_slices
from segapp.scan import Scan, SegClass, Segmentation


def display_window(scan: Scan) -> tuple[float, float]:
    """(black, white) in stored units: 8-bit images as they are, else 0.5…99.5 % of the voxels."""
    if scan.voxels.dtype == np.uint8:
        return 0.0, 255.0
    sample = scan.voxels[:, :: max(1, scan.shape[0] // 128), :: max(1, scan.shape[1] // 128)]
    low, high = (float(v) for v in np.percentile(sample, (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1)


def draw_slice(
    image: np.ndarray,
    labels: np.ndarray,
    classes: tuple[SegClass, ...],
    window: tuple[float, float],
    opacity: float = 0.5,
) -> np.ndarray:
    """(C, H, W) voxels and (H, W) class indices → (H, W, 3) uint8.

    RGB is shown as it is, anything else by its first channel in grey. Class 0 is left clear.
    """
    low, high = window
    shown = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    grey = np.clip((shown.astype(np.float32) - low) / (high - low), 0, 1).transpose(1, 2, 0) * 255
    colours = np.array([c.colour for c in classes], np.float32)
    alpha = opacity * (labels > 0)[..., None]
    mixed = grey * (1 - alpha) + colours[np.minimum(labels, len(classes) - 1)] * alpha
    return np.rint(mixed).astype(np.uint8)


def display_slices(segmentation: Segmentation, axis: SliceAxis) -> tuple[np.ndarray, np.ndarray]:
    """Image slices (K, C, H, W) and label slices (K, H, W) as a reader is used to see them."""
    scan = segmentation.scan
    axis = scan_axis(scan.shape, scan.affine, axis)
    images = to_slices(scan.voxels, scan.affine, axis)
    return images, to_slices(segmentation.labels[None], scan.affine, axis)[:, 0]


def truth_slices(truth: np.ndarray, scan: Scan, axis: SliceAxis) -> np.ndarray:
    """True indices (I, J, K) → (K, H, W), beside those of `display_slices`."""
    return to_slices(truth[None], scan.affine, scan_axis(scan.shape, scan.affine, axis))[:, 0]


def clear_ignored(labels: np.ndarray, classes: Sequence[SegClass]) -> np.ndarray:
    """Ignored pixels are drawn like background."""
    return np.where(labels < len(classes), labels, 0)


def pixel_aspect(scan: Scan, axis: SliceAxis) -> float:
    """Height of a displayed pixel over its width; 1 where the spacing is unknown."""
    if scan.spacing_mm is None:
        return 1.0
    _, row, column = slice_spacing(scan, axis)
    return row / column


def display_size(
    rows: int, columns: int, aspect: float, longest: float, most: float = np.inf
) -> tuple[int, int]:
    """(width, height) in which pixels of `aspect` look as they are, and the longer side takes
    `longest` pixels, or `most` times as many as it has."""
    height = rows * aspect
    scale = min(longest / max(columns, height), most)
    return max(1, round(columns * scale)), max(1, round(height * scale))


def busiest_slice(labels: np.ndarray) -> int:
    """The slice of (K, H, W) labels that shows most foreground, see `middle_of_most`."""
    return middle_of_most(np.count_nonzero(labels, axis=(1, 2)))


def middle_of_most(counts: np.ndarray) -> int:
    """Of slices with so much foreground each, the middle one of those that have nearly the most
    (nine tenths): the very most is often where a slab was cut off. Without any the middle of all.
    """
    most = np.flatnonzero(counts >= max(1, 0.9 * counts.max()))
    return int(most[len(most) // 2]) if len(most) else len(counts) // 2


def write_overlay(segmentation: Segmentation, axis: SliceAxis, path: Path) -> None:
    """A PNG of the slice that shows most foreground, the segmentation drawn over it."""
    images, labels = display_slices(segmentation, axis)
    k = busiest_slice(labels)
    window = display_window(segmentation.scan)
    save_png(draw_slice(images[k], labels[k], segmentation.classes, window), path)


def save_png(picture: np.ndarray, path: Path) -> None:
    """(H, W, 3) uint8 → PNG. Raises OutputError."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
