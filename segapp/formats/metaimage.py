"""MetaImage: .mha, and .mhd with its voxels in a file beside it; ITK's own format.

https://itk.org/Wiki/ITK/MetaIO/Documentation. What that leaves open is done as MetaIO does it.
"""

from __future__ import annotations

import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from segapp.errors import ScanError
from segapp.files import atomic_path
from segapp.formats.geometry import LPS, from_directions, scaled_to_mm
from segapp.formats.source import beside, check_size, header_lines, inflate, open_binary
from segapp.scan import Scan, Segmentation

_DTYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
# Further names of a field; the first one that is there counts.
_SPACING = ("ElementSpacing", "ElementSize")
_ORIGIN = ("Offset", "Position", "Origin")
_DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
_BIG_ENDIAN = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")


def read(path: Path, labels: bool) -> Scan:
    """Voxels (C, I, J, K) as stored; affine in mm, None where the header gives no geometry.

    A plane is taken as axial, with a warning. `labels` changes nothing. Raises ScanError.
    """
    with open_binary(path) as stream:
        header = _header(path, stream)
        sizes = [int(size) for size in _numbers(path, header, ("DimSize",))]
        if _field(header, ("NDims",)) != str(len(sizes)):
            raise ScanError(path, "its header gives more or fewer sizes (DimSize) than NDims")
        channels = int(_numbers(path, header, ("ElementNumberOfChannels",), "1")[0])
        dtype = _dtype(path, header)
        check_size(path, (channels, *sizes), dtype.itemsize)
        if len(sizes) < 2:
            raise ScanError(path, "an image has 2 or 3 dimensions, this one 1")
        if prod(sizes[3:]) > 1:
            raise ScanError(
                path,
                f"holds {prod(sizes[3:])} volumes {tuple(sizes)}, one is read; save each as its "
                "own file",
            )
        length = channels * prod(sizes) * dtype.itemsize
        name = header["ElementDataFile"]
        if name.upper() == "LOCAL":
            data = _data(path, stream, header, length)
        else:
            with open_binary(beside(path, name)) as detached:
                data = _data(path, detached, header, length)
    voxels = np.frombuffer(data, dtype).reshape((channels, *(*sizes, 1)[:3]), order="F")
    affine, notes = _affine(path, header, len(sizes))
    slope = _numbers(path, header, ("ElementToIntensityFunctionSlope",), "1")[0]
    offset = _numbers(path, header, ("ElementToIntensityFunctionOffset",), "0")[0]
    if (slope, offset) != (1, 0):
        notes.append("the header's intensity function is not applied, as in ITK")
    voxels = voxels.astype(dtype.newbyteorder("="), copy=False)
    return Scan(voxels, affine, path, tuple(notes))


def write(segmentation: Segmentation, path: Path) -> None:
    """Write the mask values as one .mha file, compressed with zlib, in LPS space as ITK does.

    The affine is the scan's own up to rounding; where it has none, neither has the file.
    """
    values = segmentation.mask_values()
    packer = zlib.compressobj(6)
    packed = []
    for k in range(values.shape[2]):
        plane = values[:, :, k].astype(values.dtype.newbyteorder("<"), copy=False)
        packed.append(packer.compress(plane.tobytes(order="F")))  # i runs fastest
    packed.append(packer.flush())
    fields = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": sum(map(len, packed)),
    }
    if segmentation.scan.affine is not None:
        columns = (segmentation.scan.affine[:3] * np.reshape(LPS, (3, 1)) + 0.0).T  # no -0.0
        spacing = np.linalg.norm(columns[:3], axis=1)
        fields |= {
            "TransformMatrix": _text(columns[:3] / spacing[:, None]),
            "Offset": _text(columns[3]),
            "ElementSpacing": _text(spacing),
        }
    fields |= {
        "DimSize": " ".join(map(str, values.shape)),
        "ElementType": "MET_UCHAR" if values.dtype.itemsize == 1 else "MET_USHORT",
        "ElementDataFile": "LOCAL",  # the last field: voxels follow
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("".join(f"{name} = {value}\n" for name, value in fields.items()).encode())
        file.writelines(packed)


def _text(numbers: np.ndarray) -> str:
    return " ".join(map(repr, numbers.ravel().tolist()))


def _header(path: Path, stream: BinaryIO) -> dict[str, str]:
    """The fields as text; `stream` then stands behind the header."""
    header: dict[str, str] = {}
    for line in header_lines(path, stream, "ElementDataFile"):
        name, _, value = line.partition("=")
        header.setdefault(name.strip(), value.strip())
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if name not in header:
            raise ScanError(path, f"is not a MetaImage file: its header lacks {name!r}")
    if header.get("ObjectType", "Image").lower() != "image":
        raise ScanError(path, "is a MetaIO file, but not of an image")
    if not _is_true(header, ("BinaryData",), default=True):
        raise ScanError(path, "stores its voxels as text; save them as binary data")
    return header


def _field(header: dict[str, str], names: tuple[str, ...], default: str = "") -> str:
    return next((header[name] for name in names if name in header), default)


def _is_true(header: dict[str, str], names: tuple[str, ...], default: bool = False) -> bool:
    return _field(header, names, str(default))[:1] in ("T", "t", "1")


def _numbers(
    path: Path, header: dict[str, str], names: tuple[str, ...], default: str = ""
) -> np.ndarray:
    """The numbers of a field, at least one; each is finite."""
    try:
        numbers = np.array(_field(header, names, default).split(), np.float64)
    except ValueError as error:
        raise ScanError(path, f"its header's {names[0]} is no list of numbers") from error
    if not numbers.size or not np.isfinite(numbers).all():
        raise ScanError(path, f"its header's {names[0]} is no list of finite numbers")
    return numbers


def _dtype(path: Path, header: dict[str, str]) -> np.dtype:
    code = _DTYPES.get(header["ElementType"].upper())
    if code is None:
        raise ScanError(path, "its voxels are of a type that is no number; save real numbers")
    return np.dtype((">" if _is_true(header, _BIG_ENDIAN) else "<") + code)


def _data(path: Path, stream: BinaryIO, header: dict[str, str], length: int) -> bytearray:
    """The `length` bytes of voxels in `stream`, which stands where they may begin."""
    skip = int(_numbers(path, header, ("HeaderSize",), "0")[0])
    compressed = _is_true(header, ("CompressedData",))
    here, end = stream.tell(), stream.seek(0, 2)
    if skip == -1 and not compressed:  # the voxels are the end of the file
        here = max(end - length, 0)
    elif skip > 0:  # counted from the start of the file
        here = min(skip, end)
    elif skip < 0:
        raise ScanError(path, "its HeaderSize is negative, which only uncompressed voxels allow")
    start = stream.seek(here)
    if not compressed:
        return inflate(path, stream, "raw", length)
    encoding = "gzip" if stream.read(2) == b"\x1f\x8b" else "zlib"
    stream.seek(start)
    return inflate(path, stream, encoding, length)


def _affine(path: Path, header: dict[str, str], count: int) -> tuple[np.ndarray | None, list[str]]:
    """The affine in mm, and what had to be assumed."""
    if not any(name in header for name in (*_SPACING, *_ORIGIN, *_DIRECTIONS)):
        return None, []
    ones, zeros = " ".join("1" * count), " ".join("0" * count)
    spacing = _numbers(path, header, _SPACING, ones)
    origin = _numbers(path, header, _ORIGIN, zeros)
    matrix = _numbers(path, header, _DIRECTIONS, _text(np.eye(count)))
    if (spacing.size, origin.size, matrix.size) != (count, count, count * count):
        raise ScanError(path, f"its header's place in space does not have {count} dimensions")
    # Row i of the matrix is the direction of axis i.
    directions, kept = matrix.reshape(count, count) * spacing[:, None], min(count, 3)
    unit = header.get("DistanceUnits", "").strip("?")
    factors, notes = scaled_to_mm([unit] * kept if unit else [], kept)
    affine = from_directions(path, directions[:kept, :kept] * factors, origin[:kept] * factors, LPS)
    if count == 2:
        notes.append("it is a plane without a place in space; it is assumed to be axial")
    return affine, notes
