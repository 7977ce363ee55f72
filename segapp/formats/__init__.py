"""Scans and masks: found in folders, read from files, written to files.

One module reads and writes each family of formats, and is imported when a file of it is met. It
offers `read(path, labels)` and `write(segmentation, path)`; what holds for every format is here.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from segapp.errors import OutputError, ScanError
from segapp.formats import source
from segapp.formats.listing import (
    FORMATS,
    TIFF_MARKS,
    Entry,
    children,
    file_kind,
    find_scans,
    group_files,
    known_suffix,
    stem,
)
from segapp.scan import Scan, Segmentation

__all__ = ["Entry", "Format", "find_scans", "group_files", "output_suffix", "read_labels"]
__all__ += ["read_scan", "stem", "write_scan", "write_segmentation"]

NOT_FINITE = "voxels are not finite"  # a warning that training takes for an error
_WHOLE = "save class numbers, and resample masks by nearest neighbour"
Format = Literal["same", "nifti", "png", "dicomseg"]

_WRITERS = {
    ".png": "raster",
    ".tif": "raster",
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".nrrd": "nrrd",
    ".mha": "metaimage",
    ".dcm": "dicomseg",
}


def read_scan(paths: Path | Sequence[Path], allow_gaps: bool = False) -> Scan:
    """Read one file, a DICOM series, or one file a channel: voxels (C, I, J, K) as stored.

    A raster has I = column, J = row, K = 1 and no affine. The dtype is the file's own, in native
    byte order; values that a NIfTI header scales are float32; DICOM comes in its modality's units
    (HU). Greys of 1, 2 or 4 bits are stretched to 0–255. Voxels that are not finite are read as 0,
    with a warning. A folder is read if it holds one scan. With `allow_gaps` the missing slices of a
    DICOM series are interpolated, with a warning. Raises ScanError, whatever the cause, for a file
    that can't be read, is too large, or lies on another grid than the first one.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    with _reading(files[0]):
        return _read_files(files, allow_gaps)


def _read_files(files: list[Path], allow_gaps: bool) -> Scan:
    if len(files) == 1 and (files[0].is_dir() or source.is_zip(files[0])):
        files = _only_scan(files[0])
    missing = [f.name for f in files if not source.exists(f)] if len(files) > 1 else []
    if missing:
        problem = f"{len(files)} channel files are expected, missing: {', '.join(missing)}"
        raise ScanError(files[0], problem, "channel-missing")
    if len(files) > 1 and file_kind(files[0]) == "dicom":
        from segapp.formats import dicom

        return _checked(dicom.read_series(files, _folder(files), allow_gaps))
    with source.channels_together(len(files)):
        scans = [_checked(_read(file, labels=False, allow_gaps=allow_gaps)) for file in files]
    first = scans[0]
    if len(scans) == 1:
        return first
    for scan in scans[1:]:
        _require_same_grid(first, scan)
    warnings = (f"{s.source.name}: {warning}" for s in scans for warning in s.warnings)
    joined = first.with_voxels(np.concatenate([scan.voxels for scan in scans]))
    return replace(joined, warnings=tuple(warnings))


def read_labels(path: Path) -> Scan:
    """Read a mask: voxels (1, I, J, K) of an integer dtype, the values exactly as stored.

    A palette image gives its indices, one of 1 bit 0 and 1, one with equal colour channels their
    common value. Floating point within 0.001 of whole numbers is rounded to int32, with a warning
    where that changes a value. Raises ScanError for anything that is no label map: colours,
    fractions, values that are not finite, JPEG.
    """
    scan = _read(Path(path), labels=True)
    voxels, warnings = scan.voxels, list(scan.warnings)
    if any(not np.array_equal(voxels[0], channel) for channel in voxels[1:]):
        raise ScanError(
            scan.source,
            f"a mask has one value per pixel, this file has {len(voxels)} different channels "
            "(colours?)",
            "mask-colours",
            "save it as a grey or palette image that holds class numbers",
        )
    voxels = voxels[:1]
    if voxels.dtype.kind == "f":
        voxels, largest = _whole_numbers(scan.source, voxels)
        if largest > 0:
            warnings.append(f"mask values up to {largest:.2g} from whole numbers were rounded")
    return Scan(voxels, scan.affine, scan.source, tuple(warnings))


def write_segmentation(segmentation: Segmentation, path: Path) -> None:
    """Write `segmentation.mask_values()` (uint8 or uint16) in the format that the suffix names;
    .dcm is a DICOM segmentation, whose segments 1…n are the classes behind the background.

    The file is there whole or not at all, and its bytes depend on nothing but its content (DICOM
    adds the time). Raises OutputError for another suffix, for a volume as PNG, for a DICOM
    segmentation of something else than DICOM, or where nothing can be written.
    """
    suffix = known_suffix(path)
    if suffix not in _WRITERS:
        raise OutputError(f"{path}: masks are written as {', '.join(_WRITERS)}")
    _module(_WRITERS[suffix]).write(segmentation, Path(path))


def write_scan(scan: Scan, folder: Path, name: str) -> Path:
    """Write voxels and place of a scan, and nothing else of its file: as folder/name.nii.gz, or as
    .tif where a slice has no known place, which NIfTI can't say. Returns the path.

    Read back, voxels and shape are the same; the affine is rounded to float32. Raises OutputError
    for a stack without a place in space, and for channels that are no colours.
    """
    if scan.affine is not None:
        path = folder / f"{name}.nii.gz"
        _module("nifti").write_voxels(scan, path)
        return path
    if scan.shape[2] > 1 or scan.channels not in (1, 3):
        raise OutputError(f"{folder}: a stack without spacing and position can't be stored")
    path = folder / f"{name}.tif"
    _module("tiff").write_voxels(scan, path)
    return path


def output_suffix(path: Path, output_format: Format = "same") -> str:
    """The suffix of an output; same: the source's own format, but PNG for JPEG and BMP, and NIfTI
    for DICOM. Raises ScanError for a source that can't be read or is of unknown format, and where
    dicomseg is asked of a source that is no DICOM."""
    with _reading(path):
        return _output_suffix(path, output_format)


def _output_suffix(path: Path, output_format: Format) -> str:
    kind = _kind(path)
    if output_format == "dicomseg" and kind != "dicom":
        raise ScanError(path, "is no DICOM, which --format dicomseg needs; use --format nifti")
    if output_format != "same":
        return {"nifti": ".nii.gz", "png": ".png", "dicomseg": ".dcm"}[output_format]
    if kind == "raster":
        with source.open_binary(path) as stream:
            return ".tif" if stream.read(4) in TIFF_MARKS else ".png"
    if kind == "nifti" and known_suffix(path) == ".nii":
        return ".nii"
    return {"nrrd": ".nrrd", "metaimage": ".mha"}.get(kind, ".nii.gz")


def alpha_warnings(path: Path, alpha: np.ndarray, labels: bool) -> list[str]:
    """What to say on dropping `alpha`: nothing if it is opaque. Raises ScanError for a mask."""
    if (alpha == (1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max)).all():
        return []
    if labels:
        problem = "a mask has one value per pixel; this one is partly transparent"
        remedy = "save it without transparency, as a grey or palette image of class numbers"
        raise ScanError(path, problem, "mask-colours", remedy)
    return ["the alpha channel is not opaque; it was dropped"]


def _kind(path: Path) -> str:
    if path.is_dir():
        children(path)  # says why it stands for what it holds
        raise ScanError(path, "is a folder, not a scan")
    kind = file_kind(path)
    if not kind:
        suffix = f" (suffix {path.suffix})" if path.suffix else ""
        raise ScanError(path, f"is no scan of a known format{suffix}; read are {FORMATS}")
    if kind == "zip":
        files = source.members(path)  # a damaged archive says what is wrong with it
        what = "of several scans, or of none" if files else "without files"
        raise ScanError(path, f"is a zip archive {what}; one scan is expected")
    return kind


def _module(kind: str) -> ModuleType:
    return import_module(f"segapp.formats.{kind}")


def _only_scan(folder: Path) -> list[Path]:
    """The files of the one scan that a folder or an archive holds."""
    entries = find_scans(folder)
    if len(entries) != 1:
        what = f"{len(entries)} scans" if entries else "no scan"
        raise ScanError(folder, f"holds {what}, one is expected; name a file or a series' folder")
    return list(entries[0].paths)


def _folder(files: Sequence[Path]) -> Path:
    """What a series is called in messages: the folder of its first file."""
    return files[0].parent


def _read(path: Path, labels: bool, allow_gaps: bool = False) -> Scan:
    with _reading(path):
        if path.is_dir():
            raise ScanError(path, "is a folder, not a scan file")
        if not source.exists(path):
            raise ScanError(path, "no such file")
        if path.exists() and not path.is_file():
            raise ScanError(path, "is not a regular file")
        if source.size(path) == 0:
            raise ScanError(path, "the file is empty")
        kind = _kind(path)
        options = (labels, allow_gaps) if kind == "dicom" else (labels,)
        scan = _module(kind).read(path, *options)
        if scan.voxels.dtype.kind not in "iuf":
            raise ScanError(path, f"has {scan.voxels.dtype} voxels; save real numbers")
        return scan


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file, from its first byte on, is a ScanError that names it."""
    try:
        yield
    except ScanError:
        raise
    except MemoryError as error:
        raise ScanError(path, "does not fit into memory") from error
    except gzip.BadGzipFile as error:
        raise ScanError(path, f"is damaged ({error})") from error
    except Exception as error:  # on damaged files decoders raise everything, SyntaxError included
        if isinstance(error, OSError) and error.strerror:
            raise ScanError(path, f"can't be read ({error.strerror})") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScanError(path, f"can't be read, it may be damaged ({reason})") from error


def _checked(scan: Scan) -> Scan:
    """The scan with finite voxels, and warnings where these had to be made or are all the same."""
    voxels, warnings = scan.voxels, list(scan.warnings)
    if voxels.dtype.kind == "f":
        bad = ~np.isfinite(voxels)
        if count := int(bad.sum()):
            voxels = np.where(bad, voxels.dtype.type(0), voxels)
            warnings.append(f"{count} {NOT_FINITE}; read as 0")
    if voxels.min() == voxels.max():
        warnings.append(f"all voxels have the same value ({voxels.flat[0]:g})")
    return replace(scan, voxels=voxels, warnings=tuple(warnings))


def _whole_numbers(path: Path, values: np.ndarray) -> tuple[np.ndarray, float]:
    """`values` as int32 and the largest change."""
    finite = np.isfinite(values)
    if not finite.all():
        problem = f"a mask holds whole numbers, {int((~finite).sum())} are not finite"
        raise ScanError(path, problem, "mask-not-integer", _WHOLE)
    rounded = np.rint(values)
    change = np.abs(values - rounded)
    wrong = values[(change > 1e-3) | (np.abs(rounded) >= 2**31)]
    if wrong.size:
        raise ScanError(
            path,
            f"a mask holds whole class numbers, this one has values like {wrong[0]:.6g} (an image, "
            "a probability map, or resampled with interpolation?)",
            "mask-not-integer",
            _WHOLE,
        )
    return rounded.astype(np.int32), float(change.max())


def _require_same_grid(first: Scan, scan: Scan) -> None:
    if scan.shape != first.shape:
        problem = f"is {scan.shape}, the channel {first.source.name} is {first.shape}"
        raise ScanError(scan.source, f"{problem}; channels must lie on one grid")
    if first.affine is None or scan.affine is None:
        same = first.affine is scan.affine
    else:
        tolerance_mm = 1e-3 * min(first.spacing_mm or (1,))
        same = np.allclose(first.affine, scan.affine, rtol=0, atol=tolerance_mm)
    if not same:
        raise ScanError(
            scan.source,
            f"lies elsewhere in space than the channel {first.source.name} (the affines differ); "
            "resample it to the same grid",
        )
