"""NRRD: .nrrd, and .nhdr with its voxels in a file beside it.

http://teem.sourceforge.net/nrrd/format.html. pynrrd parses the fields that place and describe
voxels; the voxels are read here, never beyond the size that the header gives.
"""

from __future__ import annotations

import gzip
import re
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nrrd.reader import read_header

from segapp.errors import ScanError
from segapp.files import atomic_path
from segapp.formats import alpha_warnings
from segapp.formats.geometry import ASSUMED, LPS, from_directions, from_spacing, scaled_to_mm
from segapp.formats.quiet import without_warnings
from segapp.formats.source import beside, check_size, header_lines, inflate, open_binary
from segapp.scan import Scan, Segmentation

_TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, "
    "int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names.split(", ")}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_SIGNS = {
    **dict.fromkeys(("right-anterior-superior", "ras", "rast"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las", "last"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps", "lpst"), LPS),
}
_SPATIAL = ("domain", "space", "???", "none")  # the last two: not known
# Other fields are free text, which may name a patient, or say nothing about voxels.
_FIELDS = (
    *("type", "dimension", "sizes", "encoding", "endian", "data file", "datafile", "line skip"),
    *("lineskip", "byte skip", "byteskip", "kinds", "space", "space dimension", "space units"),
    *("space directions", "space origin", "spacings", "units"),
)
_MAX_SKIP = 1 << 20
_MAX_VALUE = 10_000


def read(path: Path, labels: bool) -> Scan:
    """Voxels (C, I, J, K) as stored, in the order of the file's axes; affine in mm.

    One axis that is not of space holds the channels; an alpha channel is dropped. The affine is
    that of the space directions, else of the spacings with an assumed orientation (and a warning),
    else None. Raises ScanError.
    """
    with open_binary(path) as stream:
        header = _header(path, stream)
        sizes = [int(size) for size in header["sizes"]]
        dtype = _dtype(path, header)
        check_size(path, sizes, dtype.itemsize)
        kinds, axes, others = _axes(path, header, sizes)
        name = header.get("data file", header.get("datafile"))
        if name is None:
            data = _data(path, stream, header, prod(sizes) * dtype.itemsize)
        else:
            with open_binary(beside(path, name)) as detached:
                data = _data(path, detached, header, prod(sizes) * dtype.itemsize)
    voxels = np.frombuffer(data, dtype).reshape(sizes, order="F")
    voxels = voxels.astype(dtype.newbyteorder("="), copy=False)
    voxels = voxels.transpose(*others, *axes)
    shape = [sizes[axis] for axis in axes]
    voxels = voxels.reshape(-1, *(*shape, 1)[:3])
    affine, notes = _affine(path, header, axes[:3])
    if any("rgba" in kinds[axis] for axis in others) and len(voxels) == 4:
        notes += alpha_warnings(path, voxels[3], labels)
        voxels = voxels[:3]
    return Scan(voxels, affine, path, tuple(notes))


def write(segmentation: Segmentation, path: Path) -> None:
    """Write the mask values with gzip, in LPS space as ITK and 3D Slicer do; no other text.

    The affine is the scan's own, exactly; where it has none, neither has the file.
    """
    values = segmentation.mask_values()
    lines = [
        "NRRD0004",
        f"type: {values.dtype.name}",
        "dimension: 3",
        f"sizes: {' '.join(map(str, values.shape))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
    ]
    affine = segmentation.scan.affine
    if affine is not None:
        columns = (affine[:3] * np.reshape(LPS, (3, 1)) + 0.0).T.tolist()  # + 0.0: no -0.0
        *directions, origin = (f"({','.join(map(repr, column))})" for column in columns)
        lines[3:3] = ["space: left-posterior-superior"]
        lines += [f"space directions: {' '.join(directions)}", f"space origin: {origin}"]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*lines, "", ""]).encode())
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            for k in range(values.shape[2]):
                plane = values[:, :, k].astype(values.dtype.newbyteorder("<"), copy=False)
                packed.write(plane.tobytes(order="F"))  # i runs fastest


def _header(path: Path, stream: BinaryIO) -> dict[str, Any]:
    """The parsed _FIELDS; `stream` then stands behind the header."""
    magic, *lines = header_lines(path, stream, "") or [""]
    if not magic.startswith("NRRD"):
        raise ScanError(path, "is not a NRRD file (no 'NRRD' at its start)")
    wanted = [magic]
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in _FIELDS and not value.startswith("="):  # := is free text
            if len(value) > _MAX_VALUE:
                raise ScanError(path, "its NRRD header is damaged: a field goes on without end")
            value = re.sub(r"(?<=[(,])\s+|\s+(?=[,)])", "", value)  # "( 1, 0 )" → "(1,0)"
            wanted.append(f"{name.strip().lower()}:{value}")
    try:
        with without_warnings():
            header = read_header(wanted)
    except Exception as error:  # pynrrd raises of every kind, and its words are the header's
        raise ScanError(path, "its NRRD header is damaged or newer than version 5") from error
    for field in ("type", "dimension", "sizes", "encoding"):
        if field not in header:
            raise ScanError(path, f"its NRRD header lacks the field {field!r}")
    if len(header["sizes"]) != header["dimension"]:
        raise ScanError(path, "its NRRD header gives more or fewer sizes than dimensions")
    return header


def _dtype(path: Path, header: dict[str, Any]) -> np.dtype:
    code = _DTYPES.get(header["type"].lower())
    if code is None:
        raise ScanError(path, "its voxels are of a type that is no number; save real numbers")
    order = {"little": "<", "big": ">"}.get(header.get("endian", "").lower())
    if order is None and code[1] != "1":
        raise ScanError(path, "its NRRD header does not say whether it is little or big endian")
    return np.dtype((order or "<") + code)


def _axes(
    path: Path, header: dict[str, Any], sizes: list[int]
) -> tuple[list[str], list[int], list[int]]:
    """Each axis's kind, the axes of space in their order, and the others, of which one is long."""
    count = len(sizes)
    kinds = [kind.lower() for kind in header.get("kinds", ["???"] * count)]
    directions = header.get("space directions")
    if len(kinds) != count or (directions is not None and len(directions) != count):
        raise ScanError(path, "its NRRD header does not describe each of its axes")
    if directions is None:
        others = [axis for axis in range(count) if kinds[axis] not in _SPATIAL]
    else:
        others = [axis for axis in range(count) if np.isnan(directions[axis]).all()]
    axes = [axis for axis in range(count) if axis not in others]
    while len(axes) > 3 and sizes[axes[-1]] == 1:
        others.append(axes.pop())
    series = [axis for axis in range(count) if kinds[axis] == "time"] + axes[3:]
    volumes = prod(sizes[axis] for axis in series)
    if volumes > 1:
        raise ScanError(
            path, f"holds {volumes} volumes {tuple(sizes)}, one is read; save each as its own file"
        )
    if len(axes) < 2 or sum(sizes[axis] > 1 for axis in others) > 1:
        raise ScanError(
            path,
            f"has {len(axes)} axes of space and {len(others)} others {tuple(sizes)}; an image has "
            "2 or 3 of space and one for its channels",
        )
    return kinds, axes, others


def _data(path: Path, stream: BinaryIO, header: dict[str, Any], length: int) -> memoryview:
    """The `length` bytes of voxels in `stream`, which stands where they may begin."""
    encoding = _ENCODINGS.get(header["encoding"].lower())
    if encoding is None:
        raise ScanError(path, "stores its voxels as text or in an unknown encoding; save with gzip")
    lines = header.get("line skip", header.get("lineskip", 0))
    skip = header.get("byte skip", header.get("byteskip", 0))
    if not 0 <= lines <= _MAX_SKIP or skip < -1 or (encoding != "raw" and skip > _MAX_SKIP):
        raise ScanError(path, "its NRRD header skips an impossible number of lines or bytes")
    for _ in range(lines):
        if not stream.readline():
            break
    if encoding == "raw":
        here, end = stream.tell(), stream.seek(0, 2)
        start = end - length if skip == -1 else min(here + skip, end)
        stream.seek(max(start, 0))
        skip = 0
    elif skip == -1:
        raise ScanError(path, "its NRRD header skips -1 bytes, which only raw voxels allow")
    # Of compressed voxels the skipped bytes are compressed as well.
    return memoryview(inflate(path, stream, encoding, skip + length))[skip:]


def _affine(
    path: Path, header: dict[str, Any], axes: list[int]
) -> tuple[np.ndarray | None, list[str]]:
    """The affine in mm of the given axes of space, and what had to be assumed."""
    directions = header.get("space directions")
    if directions is None:
        spacing = np.asarray(header.get("spacings", []), float)
        if spacing.size == 0 or np.isnan(spacing).all():
            return None, []
        if len(spacing) != len(header["sizes"]):
            raise ScanError(path, "its NRRD header does not give the spacing of each axis")
        every = header.get("units", [])
        units = [every[axis] for axis in axes if axis < len(every) and every[axis].strip("?")]
        factors, notes = scaled_to_mm(units, len(axes))
        return from_spacing(path, spacing[axes] * factors), [*notes, ASSUMED]
    directions = directions[axes]
    coordinates = directions.shape[1]
    units = [unit for unit in header.get("space units", []) if unit.strip("?")]
    factors, notes = scaled_to_mm(units, coordinates)
    origin = np.asarray(header.get("space origin", np.zeros(coordinates)), float)
    if "space origin" not in header:
        notes.append("the file gives no origin; it is assumed to be 0, 0, 0")
    if origin.shape != (coordinates,):
        raise ScanError(path, "its NRRD header gives an origin that does not fit its directions")
    signs = _SIGNS.get(header.get("space", "").lower().removesuffix("-time"))
    if signs is None:
        what = "plane" if coordinates == 2 else "space"
        notes.append(f"the file does not say which {what} it is in; LPS is assumed, as in ITK")
    kept = min(coordinates, 3)  # further ones belong to axes of length 1
    affine = from_directions(
        path, (directions * factors)[:, :kept], (origin * factors)[:kept], signs or LPS
    )
    return affine, notes
