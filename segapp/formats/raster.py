"""PNG, JPEG, BMP and TIFF, told apart by their content.

Pillow silently cuts 16-bit colour down to 8 bits, so OpenCV decodes such PNG files. tifffile leaves
LZW and others to a package that is not required; Pillow decodes those where it keeps all bits.
OpenCV would keep them always, but it returns made-up pixels where a TIFF is damaged.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from segapp.errors import OutputError, ScanError
from segapp.files import atomic_path
from segapp.formats import alpha_warnings, check_size
from segapp.scan import Scan, Segmentation

_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LOSSY_TIFF = (6, 7, 34892, 50001)  # JPEG and WebP
_LOSSY_MASK = "is compressed as {}, which invents mask values near edges; save masks as PNG"
_MINISWHITE, _PALETTE = 0, 3
_PLAIN_TIFF = (_MINISWHITE, 1, 2, _PALETTE, 4)  # grey, RGB and masks: no colours to convert
_ORIENTATION = 274

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # its notes do not name the file


def read(path: Path, labels: bool) -> Scan:
    """Voxels (C, I, J, 1) with I = column, J = row, in the stored dtype; no affine.

    Colours come as RGB, without alpha. For labels palettes give their indices and nothing is
    stretched or inverted. An orientation tag is not applied: an output lies on the stored pixels.
    Raises ScanError.
    """
    with path.open("rb") as file:
        is_tiff = file.read(4) in _TIFF_MARKS
    pixels, notes = (_read_tiff if is_tiff else _read_image)(path, labels)  # (J, I, C)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return Scan(pixels.transpose(2, 1, 0)[..., None], None, path, tuple(notes))


def write(segmentation: Segmentation, path: Path) -> None:
    """Write the mask values as one grey channel of 8 or 16 bits. A volume raises OutputError."""
    values = segmentation.mask_values()
    if values.shape[2] != 1:
        raise OutputError(f"{path}: a volume of {values.shape} is no image; write it as NIfTI")
    pixels = np.ascontiguousarray(values[:, :, 0].T)  # (I, J) → (J, I)
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".png":
            Image.fromarray(pixels).save(temporary, format="PNG")
        else:
            tifffile.imwrite(
                *(temporary, pixels),
                photometric="minisblack",
                compression="zlib",
                metadata=None,
                software=False,
            )


@contextmanager
def _pillow(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # sizes: check_size decides
        try:
            with Image.open(path, formats=formats) as image:
                yield image
        except Image.DecompressionBombError as error:
            raise ScanError(
                path, "has too many pixels for its format; save it as plain TIFF"
            ) from error


def _read_image(path: Path, labels: bool) -> tuple[np.ndarray, list[str]]:
    """PNG, JPEG or BMP as (J, I, C)."""
    formats, notes = ("PNG", "JPEG", "BMP"), []
    try:
        with _pillow(path, formats) as image:
            check_size(path, (*image.size, len(image.getbands())))
            is_jpeg = image.format in ("JPEG", "MPO")  # a phone's MPO holds previews as well
            if is_jpeg and labels:
                raise ScanError(path, _LOSSY_MASK.format("JPEG"))
            if not is_jpeg:
                _require_one(path, getattr(image, "n_frames", 1))
            bits, colour_type = _png_header(path) if image.format == "PNG" else (8, 0)
            image.verify()  # the checksums of a PNG
    except UnidentifiedImageError as error:
        raise ScanError(path, "is not a PNG, JPEG, BMP or TIFF file, or damaged") from error
    with _pillow(path, formats) as image:
        mode = image.mode
        orientation = image.getexif().get(_ORIENTATION, 1)
        if bits == 16 and colour_type in (2, 4, 6):  # RGB, grey + alpha, RGBA
            pixels = _opencv(path)
            if colour_type == 4 and pixels.shape[2] == 4:
                pixels = pixels[..., [0, 3]]
            elif colour_type == 2:
                pixels = pixels[..., :3]
            has_alpha = colour_type in (4, 6)
        else:
            pixels = _pixels(image)
            has_alpha = mode in ("LA", "RGBA")
        if mode == "P" and not labels:
            palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            pixels = _through_palette(pixels, palette)
        if image.info.get("transparency") is not None and not labels:
            notes.append("transparency was dropped")
    if mode == "CMYK":
        notes.append("CMYK colours were converted to RGB")
    if bits == 16:
        pixels = pixels.astype(np.uint16, copy=False)  # some Pillow versions give int32
    if mode == "L" and bits in (2, 4):
        pixels = pixels // (255 // (2**bits - 1))  # undo Pillow's stretching
    pixels = _stretched(pixels, 1 if mode == "1" else bits, labels or mode == "P")
    return _finished(path, pixels, has_alpha, orientation, labels, notes)


def _read_tiff(path: Path, labels: bool) -> tuple[np.ndarray, list[str]]:
    """A TIFF of one page as (J, I, C)."""
    notes = []
    with tifffile.TiffFile(path) as tif:
        page = _single_page(path, tif)
        check_size(path, page.shaped)
        if labels and page.compression in _LOSSY_TIFF:
            raise ScanError(path, _LOSSY_MASK.format(_name(page.compression)))
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count == 0 or offset + count > tif.filehandle.size:
                raise ScanError(path, "is truncated: it lacks pixels that its header lists")
        pixels = _through_tifffile(page)
        if pixels is None:
            pixels = _through_pillow(path, page)
        colormap, tag = page.colormap, page.tags.get(_ORIENTATION)
    bits, photometric = page.bitspersample, page.photometric
    if photometric == _PALETTE and not labels:
        palette = np.asarray(colormap).T  # (colours, 3)
        palette = (palette >> 8 if palette.max() > 255 else palette).astype(np.uint8)
        pixels = _through_palette(pixels, palette)
    elif photometric == _MINISWHITE and labels:
        notes.append("larger values are darker in this TIFF; mask values were read as stored")
    elif photometric == _MINISWHITE and pixels.dtype.kind in "ub":
        notes.append("larger values are darker in this TIFF; it was inverted")
        pixels = ~pixels if pixels.dtype == bool else 2**bits - 1 - pixels
    elif photometric not in _PLAIN_TIFF:
        notes.append(f"{_name(photometric)} colours were converted to RGB")
    pixels = _stretched(pixels, bits, labels or photometric == _PALETTE)
    has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2) and pixels.shape[2] > 1
    return _finished(path, pixels, has_alpha, tag.value if tag else 1, labels, notes)


def _single_page(path: Path, tif: tifffile.TiffFile) -> tifffile.TiffPage:
    every = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
    pages = [page for page in every if not page.is_reduced]  # thumbnails do not count
    # A stack cut short loses its later pages; its first must not pass for the whole image.
    tif.filehandle.seek(tif.pages.next_page_offset or 0)
    link = tif.filehandle.read(tif.tiff.offsetsize)
    if not pages or len(link) < tif.tiff.offsetsize or any(link):
        raise ScanError(path, "is damaged: its list of pages breaks off")
    images = (tif.imagej_metadata or {}).get("images", 1)
    _require_one(path, max(len(pages), pages[0].imagedepth, int(images)))
    return pages[0]


def _through_tifffile(page: tifffile.TiffPage) -> np.ndarray | None:
    """The stored values (J, I, C); None where a codec is missing or colours need converting."""
    if page.photometric not in _PLAIN_TIFF:
        return None
    try:
        planes = page.asarray(squeeze=False)[:, 0]  # (planes, J, I, samples)
    except (ImportError, ValueError, NotImplementedError) as error:
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            return None
        raise
    return np.concatenate(list(planes), axis=-1)


def _through_pillow(path: Path, page: tifffile.TiffPage) -> np.ndarray:
    """The stored values (J, I, C) by libtiff. Raises ScanError where Pillow would lose bits."""
    compression = f"{_name(page.compression)}, {page.dtype}, {page.samplesperpixel} channels"
    problem = f"its compression ({compression}) can't be read; save it with Deflate"
    if _ORIENTATION in page.tags and page.tags[_ORIENTATION].value != 1:
        raise ScanError(path, f"is turned by its orientation tag, and {problem}")  # Pillow turns it
    try:
        with _pillow(path, ("TIFF",)) as image:
            pixels = _pixels(image)
            if page.photometric == _MINISWHITE and page.bitspersample <= 8:  # Pillow inverts it
                pixels = ~pixels
            if image.mode == "L" and page.bitspersample in (2, 4):
                pixels = pixels // (255 // (2**page.bitspersample - 1))
            if image.mode == "I" and page.dtype is not None and page.dtype.kind in "iu":
                pixels = pixels.astype(page.dtype)
    except UnidentifiedImageError as error:  # no mode of Pillow holds such pixels
        raise ScanError(path, problem) from error
    if pixels.dtype != page.dtype or pixels.shape[:2] != (page.imagelength, page.imagewidth):
        raise ScanError(path, problem)
    return pixels


def _pixels(image: Image.Image) -> np.ndarray:
    """(J, I, C) as Pillow holds them; palette indices stay indices, odd colours become RGB."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "F", "I") and image.mode[:2] != "I;":
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _opencv(path: Path) -> np.ndarray:
    """A PNG as (J, I, C) with the stored bits; colours as RGB or RGBA."""
    import cv2

    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ScanError(path, "can't be decoded, it may be damaged")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]]


def _png_header(path: Path) -> tuple[int, int]:
    """Bits per sample and colour type."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24], header[25]


def _through_palette(indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """(J, I, 1) indices → (J, I, 3), or (J, I, 1) where all colours in use are grey."""
    table = np.zeros((max(len(palette), 256), 3), np.uint8)
    table[: len(palette)] = palette
    colours = table[indices[..., 0]]
    is_grey = (colours == colours[..., :1]).all()
    return colours[..., :1] if is_grey else colours


def _stretched(pixels: np.ndarray, bits: int, as_stored: bool) -> np.ndarray:
    """Greys of fewer than 8 bits over 0–255, so that they compare with other images."""
    if as_stored or bits not in (1, 2, 4):
        return pixels
    return pixels.astype(np.uint8) * np.uint8(255 // (2**bits - 1))


def _finished(
    path: Path,
    pixels: np.ndarray,
    has_alpha: bool,
    orientation: int,
    labels: bool,
    notes: list[str],
) -> tuple[np.ndarray, list[str]]:
    """Without alpha, and with what is to be said of it and of the orientation tag."""
    if has_alpha:
        notes = notes + alpha_warnings(path, pixels[..., -1], labels)
        pixels = pixels[..., :-1]
    if orientation != 1:
        notes = [*notes, f"orientation tag {orientation} is not applied; pixels lie as stored"]
    return pixels, notes


def _name(code: int) -> str:
    return getattr(code, "name", str(code))  # tifffile's enums where it knows the code


def _require_one(path: Path, pages: int) -> None:
    if pages > 1:
        raise ScanError(path, f"has {pages} pages; only single images are read, split it")
