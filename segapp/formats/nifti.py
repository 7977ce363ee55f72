"""NIfTI: .nii and .nii.gz, told apart by their content."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from segapp.errors import OutputError, ScanError
from segapp.files import atomic_path
from segapp.formats import alpha_warnings
from segapp.formats.source import check_size, open_binary, size
from segapp.scan import Scan, Segmentation

_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's unit codes: m, mm, µm; anything else is taken as mm
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_MOST_TRAILING = 1 << 26  # bytes behind the voxels that are read past
_SILENT = logging.Logger("nibabel", level=logging.CRITICAL + 1)  # its notes do not name the file


def read(path: Path, labels: bool) -> Scan:
    """Voxels (C, I, J, K) as stored, or float32 where the header scales them; affine in mm.

    (I, J), (I, J, K) and one volume in more dimensions are read; RGB voxels are 3 channels. The
    affine is nibabel's choice: sform, else qform, else the spacing alone. Raises ScanError.
    """
    with _open(path) as stream:
        header, warnings = _read_header(path, stream)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        parts = len(dtype.names or "x")
        is_scaled = header.get_slope_inter() not in ((None, None), (1, 0))
        check_size(path, (*shape, parts), 4 if is_scaled else dtype.itemsize // parts)
        if len(shape) < 2:
            raise ScanError(path, f"an image has 2 or 3 dimensions, this one {len(shape)}")
        if prod(shape[3:]) > 1:
            raise ScanError(
                path,
                f"holds {prod(shape[3:])} volumes {shape}, one is read; save each as its own file "
                "(channels of one scan as NAME_0000.nii.gz, NAME_0001.nii.gz, …)",
            )
        affine, notes = _affine_mm(path, header)
        _require_bytes(path, stream, header.get_data_offset() + prod(shape) * dtype.itemsize)
        voxels = _voxels(stream, header).reshape((*shape, 1)[:3])
        if isinstance(stream, gzip.GzipFile):
            _require_end(path, stream)
    warnings += notes
    if dtype.names:  # RGB or RGBA
        channels = np.stack([voxels[name] for name in dtype.names])
        if len(channels) == 4:
            warnings += alpha_warnings(path, channels[3], labels)
        voxels = channels[:3]
    else:
        voxels = voxels[None]
    return Scan(voxels, affine, path, tuple(warnings))


def write(segmentation: Segmentation, path: Path) -> None:
    """Write the mask values; nibabel reads back exactly the scan's affine (as float32).

    The forms, their codes and the unit are the input's where it is a NIfTI file. Nothing else of
    its header is: descriptions and extensions may name a patient.
    """
    _write(segmentation.mask_values(), _output_header(segmentation.scan), path, 6)


def write_voxels(scan: Scan, path: Path) -> None:
    """Write a scan of one channel, or of three of 8 bits (RGB), as it is: read back, its voxels are
    the same and its affine is that of `write`. No text of the source's header goes along.

    Raises OutputError for other channels, and for values of a type that NIfTI lacks.
    """
    voxels = scan.voxels[0]
    if scan.channels == 3 and scan.voxels.dtype == np.uint8:
        voxels = np.empty(scan.shape, [(name, np.uint8) for name in "RGB"])
        for name, channel in zip("RGB", scan.voxels, strict=True):
            voxels[name] = channel
    elif scan.channels > 1:
        raise OutputError(f"{path}: NIfTI holds no {scan.channels} channels of {voxels.dtype}")
    try:
        _write(voxels, _output_header(scan), path, 1)  # noise hardly shrinks further
    except HeaderDataError as error:
        raise OutputError(f"{path}: NIfTI holds no values of type {voxels.dtype}") from error


def _write(voxels: np.ndarray, header: nib.Nifti1Header, path: Path, level: int) -> None:
    header.set_data_dtype(voxels.dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = header.sizeof_hdr + 4  # 4 zero bytes: no extensions
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # Neither time nor name in the gzip header: equal masks are equal files.
            with gzip.GzipFile("", "wb", compresslevel=level, fileobj=file, mtime=0) as stream:
                _write_voxels(cast(BinaryIO, stream), header, voxels)
        else:
            _write_voxels(file, header, voxels)


def _write_voxels(stream: BinaryIO, header: nib.Nifti1Header, values: np.ndarray) -> None:
    stream.write(header.binaryblock + bytes(4))
    for k in range(values.shape[2]):
        stream.write(values[:, :, k].tobytes(order="F"))  # i runs fastest


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with open_binary(path) as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not zipped:
            yield file
        else:
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield cast(BinaryIO, stream)


def _read_header(path: Path, stream: BinaryIO) -> tuple[nib.Nifti1Header, list[str]]:
    """The header, repaired as nibabel does; extensions are not read."""
    block = stream.read(nib.Nifti2Header.sizeof_hdr)
    if block[344:348] == b"n+1\0":
        header = nib.Nifti1Header(block[:348], check=False)
    elif block[4:8] == b"n+2\0" and len(block) == 540:
        header = nib.Nifti2Header(block, check=False)
    else:
        raise ScanError(path, "is not a NIfTI file (no 'n+1' or 'n+2' mark in its header)")
    warnings = []
    spacing = np.asarray(header["pixdim"], np.float32)[1 : 1 + min(3, int(header["dim"][0]))]
    if header["sform_code"] == 0 and (spacing == 0).any():
        raise ScanError(path, f"its header has a spacing of zero: {spacing.tolist()}")
    if (spacing < 0).any():
        warnings.append(f"negative spacing {spacing.tolist()} in the header; the sign is ignored")
    if np.isinf([header["scl_slope"], header["scl_inter"]]).any():
        raise ScanError(path, "the slope or intercept in its header is infinite")
    header.check_fix(logger=_SILENT)
    return header, warnings


def _require_bytes(path: Path, stream: BinaryIO, needed: int) -> None:
    """Refuse a header that promises more than the file can hold, before memory is asked for."""
    stored = size(path)
    most = stored * 1032 if isinstance(stream, gzip.GzipFile) else stored  # deflate's best ratio
    if needed > most:
        raise ScanError(path, f"is truncated: its header promises {needed} bytes")


def _require_end(path: Path, stream: BinaryIO) -> None:
    """Read on to the end, where the checksum is compared; a bomb is not followed."""
    for _ in range(_MOST_TRAILING >> 20):
        if not stream.read(1 << 20):
            return
    raise ScanError(path, "unpacks to far more than its header promises")


def _voxels(stream: BinaryIO, header: nib.Nifti1Header) -> np.ndarray:
    """Voxels in the file's shape, native byte order; float32 where slope or intercept matter."""
    stored = ArrayProxy(stream, header, mmap=False)
    dtype = header.get_data_dtype()
    if not dtype.names and header.get_slope_inter() not in ((None, None), (1, 0)):
        return np.asarray(stored, dtype=np.float32)
    voxels = stored.get_unscaled()
    if dtype.kind == "f" and dtype.itemsize > 8:
        return voxels.astype(np.float64)
    return voxels.astype(dtype.newbyteorder("="), copy=False)


def _affine_mm(path: Path, header: nib.Nifti1Header) -> tuple[np.ndarray, list[str]]:
    """nibabel's best affine in mm, and what is doubtful about it. Raises ScanError."""
    affine, warnings = np.array(header.get_best_affine(), np.float64), []
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0
    if not volume > 1e-6 * spacing.prod():
        raise ScanError(path, f"its affine is no place in space: {affine.round(4).tolist()}")
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code == 0 and qform_code == 0:
        warnings.append("neither sform nor qform is set; the orientation is assumed")
    elif sform_code and qform_code and not _agree(header, 1e-3 * float(spacing.min())):
        warnings.append("sform and qform disagree; the sform is used")
    unit = int(header["xyzt_units"]) & 7
    factor = _MM.get(unit, 1.0)
    if factor != 1:
        warnings.append(f"lengths are stored in {_UNIT_NAMES[unit]} and were converted to mm")
        affine[:3] *= factor
    return affine, warnings


def _agree(header: nib.Nifti1Header, tolerance: float) -> bool:
    try:
        qform, sform = np.asarray(header.get_qform()), np.asarray(header.get_sform())
        return bool(np.abs(qform - sform).max() <= tolerance)
    except (HeaderDataError, ValueError):  # a quaternion that is no rotation
        return False


def _output_header(scan: Scan) -> nib.Nifti1Header:
    """A header without text whose affine is the scan's, the source's own geometry if possible."""
    source = _source_header(scan)
    if source is not None and scan.affine is not None:
        header = type(source)()
        header.set_data_shape(source.get_data_shape()[:3])
        for field in _GEOMETRY:
            header[field] = source[field]
        header["pixdim"][:4] = source["pixdim"][:4]
        header["xyzt_units"] = int(source["xyzt_units"]) & 7
        if np.array_equal(_affine_mm(scan.source, header)[0], scan.affine):
            return header
    header = (nib.Nifti2Header if max(scan.shape) > 32767 else nib.Nifti1Header)()
    header.set_data_shape(scan.shape)
    if scan.affine is None:
        return header  # codes 0 and unit 0: no place in space is known
    header.set_xyzt_units("mm")
    header["pixdim"][1:4] = scan.spacing_mm
    # Code 1 ("scanner") for both, as DICOM converters write: some viewers read only the qform.
    header.set_sform(scan.affine, code=1)
    try:
        header.set_qform(scan.affine, code=1, strip_shears=False)
    except HeaderDataError:  # a quaternion can't hold a sheared affine
        header["qform_code"] = 0
    return header


def _source_header(scan: Scan) -> nib.Nifti1Header | None:
    """The header the scan came with; None where its source is no NIfTI file (any more)."""
    if scan.affine is None or not scan.source.name.lower().endswith((".nii", ".nii.gz")):
        return None
    try:
        with _open(scan.source) as stream:
            header, _ = _read_header(scan.source, stream)
        affine, _ = _affine_mm(scan.source, header)
    except (ScanError, OSError, EOFError, ValueError, HeaderDataError):
        return None
    same = (*header.get_data_shape(), 1)[:3] == scan.shape and np.array_equal(affine, scan.affine)
    return header if same else None
