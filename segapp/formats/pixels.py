"""What PNG, JPEG, BMP and TIFF have in common; pixels are (..., J, I, C), J = row, I = column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from segapp.errors import ScanError
from segapp.formats import alpha_warnings
from segapp.formats.quiet import without_warnings

LOSSY_MASK = "is compressed as {}, which invents mask values near edges"
AS_PNG = "save masks as PNG, from the original labels"
ORIENTATION = 274


@contextmanager
def opened(path: Path, stream: BinaryIO, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """An image that Pillow opens; the caller closes the stream. Raises ScanError, Pillow's own."""
    with without_warnings(module=r"PIL\."):  # sizes: check_size decides
        try:
            with Image.open(stream, formats=formats) as image:
                yield image
        except Image.DecompressionBombError as error:
            raise ScanError(
                path, "has too many pixels for its format; save it as plain TIFF"
            ) from error


def as_array(image: Image.Image) -> np.ndarray:
    """(J, I, C) as Pillow holds them; palette indices stay indices, odd colours become RGB."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "F", "I") and image.mode[:2] != "I;":
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def through_palette(indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """(..., 1) indices → (..., 3), or (..., 1) where all colours in use are grey."""
    table = np.zeros((max(len(palette), 256), 3), np.uint8)
    table[: len(palette)] = palette
    colours = table[indices[..., 0]]
    is_grey = (colours == colours[..., :1]).all()
    return colours[..., :1] if is_grey else colours


def stretched(pixels: np.ndarray, bits: int, as_stored: bool) -> np.ndarray:
    """Greys of fewer than 8 bits over 0–255, so that they compare with other images."""
    if as_stored or bits not in (1, 2, 4):
        return pixels
    return pixels.astype(np.uint8) * np.uint8(255 // (2**bits - 1))


def finished(
    path: Path,
    pixels: np.ndarray,
    has_alpha: bool,
    orientation: int,
    labels: bool,
    notes: list[str],
) -> tuple[np.ndarray, list[str]]:
    """In native byte order and without alpha; with what is to be said of it and of the
    orientation tag."""
    if has_alpha:
        notes = notes + alpha_warnings(path, pixels[..., -1], labels)
        pixels = pixels[..., :-1]
    if orientation != 1:
        notes = [*notes, f"orientation tag {orientation} is not applied; pixels lie as stored"]
    dtype = np.dtype(np.uint8) if pixels.dtype == bool else pixels.dtype.newbyteorder("=")
    return pixels.astype(dtype, copy=False), notes
