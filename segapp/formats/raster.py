"""PNG, JPEG and BMP, told apart by their content; TIFF is handed on.

Pillow silently cuts 16-bit colour down to 8 bits, so OpenCV decodes such PNG files.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from segapp.errors import OutputError, ScanError
from segapp.files import atomic_path
from segapp.formats import tiff
from segapp.formats.listing import TIFF_MARKS
from segapp.formats.pixels import (
    AS_PNG,
    LOSSY_MASK,
    ORIENTATION,
    as_array,
    finished,
    opened,
    stretched,
    through_palette,
)
from segapp.formats.source import check_size, head, open_binary
from segapp.scan import Scan, Segmentation

_FORMATS = ("PNG", "JPEG", "BMP")


def read(path: Path, labels: bool) -> Scan:
    """Voxels (C, I, J, 1) with I = column, J = row, in the stored dtype; no affine. Of TIFF see
    `tiff.read`.

    Colours come as RGB, without alpha. For labels palettes give their indices and nothing is
    stretched or inverted. An orientation tag is not applied: an output lies on the stored pixels.
    Raises ScanError.
    """
    if head(path, 4) in TIFF_MARKS:
        return tiff.read(path, labels)
    pixels, notes = _read_image(path, labels)
    return Scan(pixels.transpose(2, 1, 0)[..., None], None, path, tuple(notes))


def write(segmentation: Segmentation, path: Path) -> None:
    """Write the mask values as one grey channel of 8 or 16 bits, as PNG or by `tiff.write`. A
    volume as PNG raises OutputError."""
    if path.suffix.lower() != ".png":
        return tiff.write(segmentation, path)
    values = segmentation.mask_values()
    if values.shape[2] != 1:
        raise OutputError(f"{path}: a volume of {values.shape} is no image; write it as NIfTI")
    image = Image.fromarray(np.ascontiguousarray(values[:, :, 0].T))  # (I, J) → (J, I)
    with atomic_path(path) as temporary:  # runs alone: as small for masks, in half the time
        image.save(temporary, format="PNG", compress_type=zlib.Z_RLE)


def _read_image(path: Path, labels: bool) -> tuple[np.ndarray, list[str]]:
    """PNG, JPEG or BMP as (J, I, C)."""
    with open_binary(path) as stream:
        bits, colour_type = _check(path, stream, labels)
        stream.seek(0)
        return _decoded(path, stream, bits, colour_type, labels)


def _check(path: Path, stream: BinaryIO, labels: bool) -> tuple[int, int]:
    """Bits per sample and colour type of a PNG, else 8 and 0. Raises ScanError."""
    try:
        with opened(path, stream, _FORMATS) as image:
            check_size(path, (*image.size, len(image.getbands())), 2)
            is_jpeg = image.format in ("JPEG", "MPO")  # a phone's MPO holds previews as well
            if is_jpeg and labels:
                raise ScanError(path, LOSSY_MASK.format("JPEG"), "mask-jpeg", AS_PNG)
            pages = 1 if is_jpeg else getattr(image, "n_frames", 1)
            if pages > 1:
                raise ScanError(path, f"has {pages} pages; only single images are read, split it")
            is_png = image.format == "PNG"
            image.verify()  # the checksums of a PNG
    except UnidentifiedImageError as error:
        raise ScanError(path, "is not a PNG, JPEG, BMP or TIFF file, or damaged") from error
    stream.seek(24)
    bits, colour_type = stream.read(2) if is_png else (8, 0)
    return bits, colour_type


def _decoded(
    path: Path, stream: BinaryIO, bits: int, colour_type: int, labels: bool
) -> tuple[np.ndarray, list[str]]:
    notes = []
    with opened(path, stream, _FORMATS) as image:
        mode = image.mode
        orientation = image.getexif().get(ORIENTATION, 1)
        if bits == 16 and colour_type in (2, 4, 6):  # RGB, grey + alpha, RGBA
            pixels = _opencv(path, stream)
            if colour_type == 4 and pixels.shape[2] == 4:
                pixels = pixels[..., [0, 3]]
            elif colour_type == 2:
                pixels = pixels[..., :3]
            has_alpha = colour_type in (4, 6)
        else:
            pixels = as_array(image)
            has_alpha = mode in ("LA", "RGBA")
        if mode == "P" and not labels:
            palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            pixels = through_palette(pixels, palette)
        if image.info.get("transparency") is not None and not labels:
            notes.append("transparency was dropped")
    if mode == "CMYK":
        notes.append("CMYK colours were converted to RGB")
    if bits == 16:
        pixels = pixels.astype(np.uint16, copy=False)  # some Pillow versions give int32
    if mode == "L" and bits in (2, 4):
        pixels = pixels // (255 // (2**bits - 1))  # undo Pillow's stretching
    pixels = stretched(pixels, 1 if mode == "1" else bits, labels or mode == "P")
    return finished(path, pixels, has_alpha, orientation, labels, notes)


def _opencv(path: Path, stream: BinaryIO) -> np.ndarray:
    """A PNG as (J, I, C) with the stored bits; colours as RGB or RGBA."""
    import cv2

    stream.seek(0)
    pixels = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ScanError(path, "can't be decoded, it may be damaged")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]]
