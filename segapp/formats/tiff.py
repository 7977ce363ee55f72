"""TIFF: single images, and stacks that declare their pages to be slices (ImageJ, OME).

tifffile decodes what can be proven before to unpack to no more than its share; libtiff, which
never unpacks more, does LZW and others, where Pillow keeps all bits. OpenCV would keep them always,
but it returns made-up pixels where a TIFF is damaged.
"""

from __future__ import annotations

import logging
from io import BytesIO
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from PIL import UnidentifiedImageError

from segapp.errors import ScanError
from segapp.files import atomic_path
from segapp.formats.geometry import ASSUMED, from_spacing
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
from segapp.formats.source import UNPACK_ERRORS, check_size, open_binary, pieces
from segapp.formats.tiffstack import declared_stack, stack_options
from segapp.scan import Scan, Segmentation

_LOSSY = (6, 7, 34892, 50001)  # JPEG and WebP
_MINISWHITE, _PALETTE = 0, 3
_PLAIN = (_MINISWHITE, 1, 2, _PALETTE, 4)  # grey, RGB and masks: no colours to convert
# What tifffile decodes by itself, and `pieces` can prove to be no more than it should be.
_CODECS = {8: "zlib", 32946: "zlib", 34925: "lzma"}
_MAX_PAGES = 20_000
_SLACK = 1 << 12  # bytes that writers may pad a strip with
_BUFFER = 1 << 24

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # its notes do not name the file


def read(path: Path, labels: bool) -> Scan:
    """Voxels (C, I, J, K) with I = column, J = row, K = page, in the stored dtype.

    Several pages are read where the file declares each to be a slice; the affine is None unless
    such a file gives all spacings in a unit of length, and then assumes the orientation, with a
    warning. Colours and labels are treated as by `raster.read`. Raises ScanError.
    """
    with open_binary(path) as stream, tifffile.TiffFile(stream, name=path.name) as tif:
        pages, spacing_mm = _pages(path, tif)
        first = pages[0]
        itemsize = first.dtype.itemsize if first.dtype is not None else 8
        check_size(path, (len(pages), *first.shaped), itemsize)
        for page in pages:
            if labels and page.compression in _LOSSY:
                problem = LOSSY_MASK.format(_name(page.compression))
                raise ScanError(path, problem, "mask-jpeg", AS_PNG)
            _check_segments(path, tif, page)
        pixels = _through_tifffile(pages)
        if pixels is None:
            pixels = _through_pillow(path, stream, pages)
        pixels, notes = _finished(path, pixels, first, labels)
        affine = None
        if spacing_mm is not None:
            affine = from_spacing(path, spacing_mm)
            notes.append(ASSUMED)
    return Scan(pixels.transpose(3, 2, 1, 0), affine, path, tuple(notes))


def write(segmentation: Segmentation, path: Path) -> None:
    """Write the mask values as one grey channel of 8 or 16 bits; a volume as an ImageJ stack,
    which raises OutputError for a place in space that such a stack can't hold."""
    values = segmentation.mask_values()
    pixels, options = np.ascontiguousarray(values.T), {}  # (I, J, K) → (K, J, I)
    if len(pixels) == 1:
        pixels, options["metadata"] = pixels[0], None
    else:
        options = stack_options(path, segmentation.scan.affine)
    _write(path, pixels, photometric="minisblack", **options)


def write_voxels(scan: Scan, path: Path) -> None:
    """Write a scan of one slice, grey or RGB, as it is: read back, its voxels are the same. No text
    of the source goes along."""
    pixels = np.ascontiguousarray(scan.voxels[..., 0].T)  # (C, I, J) → (J, I, C)
    colours = "rgb" if scan.channels == 3 else "minisblack"
    pixels = pixels if scan.channels == 3 else pixels[..., 0]
    _write(path, pixels, photometric=colours, metadata=None)


def _write(path: Path, pixels: np.ndarray, **options: Any) -> None:
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, pixels, compression="zlib", software=False, **options)


def _pages(
    path: Path, tif: tifffile.TiffFile
) -> tuple[list[tifffile.TiffPage], list[float] | None]:
    """The one page, or those of a declared stack with its spacing. Raises ScanError."""
    if len(tif.pages) > _MAX_PAGES:
        raise ScanError(path, f"has {len(tif.pages)} pages, more than {_MAX_PAGES}")
    every = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
    pages = [page for page in every if not page.is_reduced]  # thumbnails do not count
    # A stack cut short loses its later pages; its first must not pass for the whole image.
    tif.filehandle.seek(tif.pages.next_page_offset or 0)
    link = tif.filehandle.read(tif.tiff.offsetsize)
    if not pages or len(link) < tif.tiff.offsetsize or any(link):
        raise ScanError(path, "is damaged: its list of pages breaks off")
    try:
        images = int((tif.imagej_metadata or {}).get("images", 1))
        count = max(len(pages), pages[0].imagedepth, images)
        if count == 1:
            return pages, None
        slices, spacing_mm = declared_stack(path, tif, pages[0])
    except (ValueError, TypeError) as error:  # its words are the file's own text
        raise ScanError(path, "what it says of its slices is damaged; save it again") from error
    if not slices == len(pages) == count:
        raise ScanError(
            path,
            f"has {count} pages and does not declare each of them to be a slice of a volume; split "
            "it, or save it as an ImageJ stack with its number of slices",
        )
    if any(_layout(page) != _layout(pages[0]) for page in pages):
        raise ScanError(path, "its pages differ in size, type or colours; slices must not")
    return pages, spacing_mm


def _layout(page: tifffile.TiffPage) -> tuple[object, ...]:
    """What the pages of a stack have in common."""
    palette = np.asarray(page.colormap).tobytes() if page.photometric == _PALETTE else None
    return (
        *(page.shaped, page.dtype, page.bitspersample, page.photometric, page.planarconfig),
        *(page.extrasamples, page.compression, palette),
    )


def _check_segments(path: Path, tif: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
    """Prove that each strip or tile is there, and unpacks to no more than its share of the page.

    A decoder unpacks whatever is there, up to 1000 times the file; so it is unpacked before, and
    nothing kept. Raises ScanError.
    """
    check_size(path, page.chunks)  # a strip or tile
    if page.compression == 1 and prod(page.shaped) * page.bitspersample // 8 > tif.filehandle.size:
        raise ScanError(path, "is truncated: it lacks pixels that its header lists")
    bytes_each = page.dtype.itemsize if page.dtype is not None else 8
    most = prod(page.chunks) * bytes_each + _SLACK
    codec = _CODECS.get(page.compression)
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count == 0 or offset + count > tif.filehandle.size:
            raise ScanError(path, "is truncated: it lacks pixels that its header lists")
        too_much = count > 2 * most
        if codec and not too_much:
            tif.filehandle.seek(offset)
            packed = BytesIO(tif.filehandle.read(count))
            try:
                lengths = accumulate(len(piece) for piece in pieces(packed, codec))
                too_much = any(length > most for length in lengths)
            except UNPACK_ERRORS as error:
                raise ScanError(path, f"is damaged: can't be unpacked ({error})") from error
        if too_much:
            raise ScanError(path, "is damaged: it holds more pixels than its header says")


def _through_tifffile(pages: list[tifffile.TiffPage]) -> np.ndarray | None:
    """The stored values (K, J, I, C); None where a codec is missing or colours need converting."""
    first = pages[0]
    if first.photometric not in _PLAIN or first.compression not in (1, *_CODECS):
        return None
    planes, _, rows, columns, samples = first.shaped
    pixels = np.empty((len(pages), rows, columns, planes * samples), first.dtype)
    for page, out in zip(pages, pixels, strict=True):
        try:
            stored = page.asarray(squeeze=False, buffersize=_BUFFER)
        except (ImportError, ValueError, NotImplementedError) as error:
            if isinstance(error, ImportError) or "imagecodecs" in str(error):
                return None
            raise
        np.concatenate(list(stored[:, 0]), axis=-1, out=out)  # (planes, J, I, samples)
    return pixels


def _through_pillow(path: Path, stream: BinaryIO, pages: list[tifffile.TiffPage]) -> np.ndarray:
    """The stored values (K, J, I, C) by libtiff, which unpacks no strip beyond its size. Raises
    ScanError where Pillow would lose bits."""
    first = pages[0]
    compression = f"{_name(first.compression)}, {first.dtype}, {first.samplesperpixel} channels"
    problem = f"its compression ({compression}) can't be read; save it with Deflate"
    if any(page.tags.valueof(ORIENTATION, 1) != 1 for page in pages):
        raise ScanError(path, f"is turned by its orientation tag, and {problem}")  # Pillow turns it
    stream.seek(0)
    planes = []
    try:
        with opened(path, stream, ("TIFF",)) as image:
            for page in pages:
                image.seek(page.index)
                pixels = as_array(image)
                if page.photometric == _MINISWHITE and page.bitspersample <= 8:  # Pillow inverts it
                    pixels = ~pixels
                if image.mode == "L" and page.bitspersample in (2, 4):
                    pixels = pixels // (255 // (2**page.bitspersample - 1))
                if image.mode == "I" and page.dtype is not None and page.dtype.kind in "iu":
                    pixels = pixels.astype(page.dtype)
                if pixels.dtype != page.dtype or pixels.shape[:2] != page.shaped[2:4]:
                    raise ScanError(path, problem)
                planes.append(pixels)
    except UnidentifiedImageError as error:  # no mode of Pillow holds such pixels
        raise ScanError(path, problem) from error
    return np.stack(planes)


def _finished(
    path: Path, pixels: np.ndarray, page: tifffile.TiffPage, labels: bool
) -> tuple[np.ndarray, list[str]]:
    """(K, J, I, C) as values to compare with other images', and what to say of that."""
    bits, photometric, notes = page.bitspersample, page.photometric, []
    if photometric == _PALETTE and not labels:
        palette = np.asarray(page.colormap).T  # (colours, 3)
        palette = (palette >> 8 if palette.max() > 255 else palette).astype(np.uint8)
        pixels = through_palette(pixels, palette)
    elif photometric == _MINISWHITE and labels:
        notes.append("larger values are darker in this TIFF; mask values were read as stored")
    elif photometric == _MINISWHITE and pixels.dtype.kind in "ub":
        notes.append("larger values are darker in this TIFF; it was inverted")
        pixels = ~pixels if pixels.dtype == bool else 2**bits - 1 - pixels
    elif photometric not in _PLAIN:
        notes.append(f"{_name(photometric)} colours were converted to RGB")
    pixels = stretched(pixels, bits, labels or photometric == _PALETTE)
    has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2) and pixels.shape[3] > 1
    orientation = page.tags.valueof(ORIENTATION, 1)
    return finished(path, pixels, has_alpha, orientation, labels, notes)


def _name(code: int) -> str:
    return getattr(code, "name", str(code))  # tifffile's enums where it knows the code
