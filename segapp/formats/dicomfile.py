"""One DICOM file: its header, and its pixels in real units.

Messages name tags, never their values: headers are about patients.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
import pydicom.config
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from segapp.errors import ScanError
from segapp.formats import jpeg
from segapp.formats.quiet import without_warnings
from segapp.formats.source import check_size, open_binary

_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT = "1.2.840.10008.1.2"
_HEADER_BYTES = 1 << 24  # of a deflated header; real ones have some thousand
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_GROUP = 0x7FE0
_MAX_ELEMENTS = 100_000
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_OTHER_CLASSES = (
    "1.2.840.10008.1.3.10",  # the index of a disc
    *(f"{_STORAGE}{n}" for n in ("9.", "11.", "66", "67", "68", "78.", "79", "88.", "104.")),
    *(f"{_STORAGE}481.{n}" for n in range(2, 30)),  # radiotherapy, all but RT Image
)
_OTHER_MODALITIES = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG")
_EXPORT_AGAIN = "export it again uncompressed, as Explicit VR Little Endian"
# pydicom's plugin → the package that brings it, in the order in which they are tried.
_PACKAGES = {
    "pydicom": "pydicom",
    "pylibjpeg": "pylibjpeg-openjpeg",
    "pyjpegls": "pyjpegls",
    "pillow": "Pillow",
    jpeg.NAME: "imagecodecs",
}

for _name in ("pydicom", "openjpeg"):  # their notes quote header values and name no file
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@contextmanager
def sober(path: Path, problem: str = "its header is damaged or no valid DICOM") -> Iterator[None]:
    """Turn whatever pydicom raises on a damaged file into a ScanError, and keep its warnings quiet:
    both may quote the header."""
    try:
        with without_warnings():
            yield
    except (ScanError, MemoryError):
        raise
    except OSError as error:
        raise ScanError(path, f"can't be read ({error.strerror or 'damaged'})") from error
    except Exception:  # anything at all, RecursionError included
        raise ScanError(path, problem) from None


def read_header(path: Path, tags: list[str] | None = None) -> pydicom.Dataset:
    """Everything but the pixels, or only `tags` (keywords) of it. Raises ScanError."""
    with sober(path), open_binary(path, only_start=True) as stream:
        return _parse(path, stream, header_only=True, tags=tags)


def describe(header: pydicom.Dataset) -> str:
    """What kind of object it is, in DICOM's own words ("CT Image Storage")."""
    uid = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    uid = UID(str(uid or ""))
    return uid.name if uid.name != uid else "DICOM object"  # pydicom's names, not the header's text


def is_image(header: pydicom.Dataset) -> bool:
    """False for what is known to be something else: a segmentation, a report, a plan, an index."""
    uid = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    return header.get("Modality") not in _OTHER_MODALITIES and not uid.startswith(_OTHER_CLASSES)


def read_pixels(path: Path) -> tuple[pydicom.Dataset, np.ndarray, list[str]]:
    """The header, stored values (frames, rows, columns, C) as shown brighter = larger, warnings.

    Colours (RGB, YBR, palette) come as RGB. Rescaling is left to `rescale`. Raises ScanError.
    """
    with sober(path):
        with open_binary(path) as stream:
            dataset = _parse(path, stream)
        if not is_image(dataset):
            raise ScanError(path, f"holds no image to segment (it is a {describe(dataset)})")
        keyword = next((k for k in _PIXELS if k in dataset), None)
        if keyword is None or "Rows" not in dataset:
            raise ScanError(path, "has no pixel data; export the images again")
        rows, columns = (int(dataset.get(k) or 0) for k in ("Rows", "Columns"))
        samples = int(dataset.get("SamplesPerPixel") or 1)
        frames = int(dataset.get("NumberOfFrames") or 1)
        check_size(path, (frames, rows, columns, samples))
        if not dataset[keyword].value:
            raise ScanError(path, "has no pixel data; export the images again")
        with sober(path, "its pixels are damaged, cut short, or do not fit its header"):
            pixels = _decode(path, dataset, frames, (rows, columns))
            pixels = pixels.reshape(frames, rows, columns, samples)
        kind, notes = str(dataset.get("PhotometricInterpretation", "")), []
        if kind == "PALETTE COLOR":
            colours = np.asarray(apply_color_lut(pixels[..., 0], dataset))[..., :3]
            if colours.dtype == np.uint16:  # of 16 bits, or of 8 in 16
                colours = colours >> (8 if colours.max(initial=0) > 255 else 0)
            pixels = colours.astype(np.uint8)
        elif kind == "MONOCHROME1":
            pixels = _turned(pixels, dataset)
            notes.append("stored with larger values darker (MONOCHROME1); it was turned")
            if dataset.get("Modality") in ("CT", "PT"):
                notes[-1] += ", which may have turned units such as HU as well"
        elif samples not in (1, 3):
            raise ScanError(path, f"has {samples} samples a pixel; 1 (grey) or 3 (colour) are read")
        return dataset, pixels, notes


def rescale(path: Path, pixels: np.ndarray, transform: pydicom.Dataset, bits: int) -> np.ndarray:
    """Stored values of `bits` bits → the modality's units (HU for CT), by the slope and intercept
    or the lookup table of `transform` (a header, or a functional group of it).

    Whole numbers stay integers, of the smallest signed type that holds every possible value;
    without rescaling nothing changes. Raises ScanError for a slope of 0 or NaN.
    """
    if "ModalityLUTSequence" in transform:
        return np.asarray(apply_modality_lut(pixels, transform))
    slope = _number(transform.get("RescaleSlope"), 1.0)
    intercept = _number(transform.get("RescaleIntercept"), 0.0)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ScanError(path, "its RescaleSlope or RescaleIntercept is 0 or not a number")
    if (slope, intercept) == (1, 0):
        return pixels
    if pixels.dtype.kind == "f" or slope != int(slope) or intercept != int(intercept):
        return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    reach = [int(slope) * end + int(intercept) for end in _stored_range(pixels.dtype, bits)]
    dtype = next(t for t in (np.int16, np.int32, np.int64) if _holds(t, reach))
    return pixels.astype(dtype) * dtype(slope) + dtype(intercept)


def _holds(dtype: type, values: list[int]) -> bool:
    return np.iinfo(dtype).min <= min(values) and max(values) <= np.iinfo(dtype).max


def _stored_range(dtype: np.dtype, bits: int) -> list[int]:
    signed = dtype.kind == "i"
    return [-(1 << (bits - 1)), (1 << (bits - 1)) - 1] if signed else [0, (1 << bits) - 1]


def _turned(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    if pixels.dtype.kind == "f":
        return -pixels
    low, high = _stored_range(pixels.dtype, int(dataset.BitsStored))
    return (low + high - pixels.astype(np.int64)).astype(pixels.dtype)


def _number(value: Any, missing: float) -> float:
    return missing if value in (None, "") else float(value)


def _parse(
    path: Path, stream: BinaryIO, header_only: bool = False, tags: list[str] | None = None
) -> pydicom.Dataset:
    """A data set with `file_meta`; deflated ones are inflated no further than they may go."""
    read_preamble(stream, force=True)  # type: ignore[arg-type]
    start = stream.tell()
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    syntax = meta.get("TransferSyntaxUID")
    if syntax and not header_only:
        _require_standard(path, UID(str(syntax)))
    if stream.read(2) == b"\0\0":  # pydicom would take zeros for commands, without end
        raise ScanError(path, "its header is damaged or no valid DICOM")
    stream.seek(0)
    if syntax == _DEFLATED:
        stream.seek(start)
        read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        dataset = _inflated(path, stream.read(), header_only)
    else:
        wanted: list[BaseTag | int] | None = [Tag(tag) for tag in tags] if tags else None
        dataset = read_partial(
            stream, stop_when=_stop(path, header_only), force=True, specific_tags=wanted
        )
    if not hasattr(dataset, "file_meta") or syntax == _DEFLATED:
        dataset.file_meta = FileMetaDataset(meta)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = UID(_IMPLICIT)
    return dataset


def _require_standard(path: Path, syntax: UID) -> None:
    """Raise ScanError for a transfer syntax of a maker's own: how its header and its pixels are
    written is anybody's guess."""
    if syntax.is_valid and not syntax.is_transfer_syntax:
        what = "a private" if syntax.is_private else "an unknown"
        raise ScanError(
            path,
            f"is stored in {what} transfer syntax ({syntax}), which is not supported",
            remedy=_EXPORT_AGAIN,
        )


def _inflated(path: Path, packed: bytes, header_only: bool) -> pydicom.Dataset:
    """The header first, from a limited piece; it says how many bytes of pixels there may be."""
    piece = zlib.decompressobj(-15).decompress(packed, _HEADER_BYTES)
    header = read_dataset(io.BytesIO(piece), False, True, stop_when=_stop(path, True))
    if header_only:
        return header
    sizes = [int(header.get(k) or 1) for k in ("NumberOfFrames", "Rows", "Columns")]
    sizes.append(int(header.get("SamplesPerPixel") or 1))
    check_size(path, sizes)
    pixel_bytes = int(np.prod(sizes, dtype=object)) * (int(header.get("BitsAllocated") or 8) // 8)
    unpack = zlib.decompressobj(-15)
    whole = unpack.decompress(packed, pixel_bytes + _HEADER_BYTES)
    if unpack.unconsumed_tail and not unpack.eof:
        raise ScanError(path, f"unpacks to more than the {pixel_bytes} bytes that its header needs")
    return read_dataset(io.BytesIO(whole), False, True, stop_when=_stop(path, False))


def _stop(path: Path, at_pixels: bool) -> Callable[[BaseTag, str | None, int], bool]:
    """Tells pydicom where to stop, and gives up on what is endless: 100 MB of zeros, say, are
    twelve million elements."""
    count = 0

    def stop(tag: BaseTag, *_: object) -> bool:
        nonlocal count
        count += 1
        if count > _MAX_ELEMENTS:
            raise ScanError(path, "its header is damaged: it goes on without end")
        return at_pixels and tag >> 16 == _PIXEL_GROUP

    return stop


def _decode(path: Path, dataset: pydicom.Dataset, frames: int, size: tuple[int, int]) -> np.ndarray:
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == _DEFLATED:
        if syntax == _DEFLATED:
            dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
        return pixel_array(dataset)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        problem = f"is compressed as {syntax.name} ({syntax}), which is not supported"
        raise ScanError(path, problem, remedy=_EXPORT_AGAIN) from None
    plugins = [p for p in _PACKAGES if p in decoder.available_plugins]
    if not plugins:
        packages = [_PACKAGES[name] for name in _plugin_names(decoder)]
        raise ScanError(
            path,
            f"is compressed as {syntax.name}, and no decoder for it is installed; "
            f"pip install {' or '.join(packages)}",
        )
    for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
        _require_frame_size(path, frame, size)
    for plugin in plugins:
        with suppress(RuntimeError):  # none of them knows every variant
            return pixel_array(dataset, decoding_plugin=plugin)
    raise ScanError(
        path,
        f"its pixels ({syntax.name}) can't be decompressed: damaged, or a variant that no decoder "
        "here reads; save it uncompressed",
    )


def _plugin_names(decoder: Any) -> list[str]:
    known = {**getattr(decoder, "_available", {}), **getattr(decoder, "_unavailable", {})}
    return [name for name in _PACKAGES if name in known]


def _require_frame_size(path: Path, frame: bytes, size: tuple[int, int]) -> None:
    """A JPEG or JPEG 2000 frame has a header of its own, for which decoders ask for memory."""
    found = _frame_size(frame)
    if found is not None and found != size:
        raise ScanError(
            path,
            f"holds a compressed frame of {found[1]} × {found[0]}, its header says "
            f"{size[1]} × {size[0]}",
        )


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream claims; None for others."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0:  # SIZ: its length, capabilities, X and Y of the far and the near corner
        x1, y1, x0, y0 = struct.unpack(">4I", frame[start + 8 : start + 24])
        return y1 - y0, x1 - x0
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack(">2H", frame[at + 5 : at + 9])
            return rows, columns
        at += 2 + length
    return None
