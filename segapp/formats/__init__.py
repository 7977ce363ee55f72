"""Scans and masks: found in folders, read from files, written to files.

One module reads and writes each family of formats, and is imported when a file of it is met. It
offers `read(path, labels)` and `write(segmentation, path)`; what holds for every format is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np

from segapp.errors import OutputError, ScanError
from segapp.scan import Scan, Segmentation

# A header that claims more voxels × channels than this is refused before memory is asked for.
MAX_VOXELS = 2**31

_RASTER = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_NIFTI = (".nii.gz", ".nii")
_SUFFIXES = (*_RASTER, *_NIFTI)
_WRITTEN = (".png", ".tif", ".tiff", *_NIFTI)


@dataclass(frozen=True)
class Entry:
    """One scan of a folder.

    name: the path relative to the folder without its suffix, POSIX style ("sub/scan01").
    paths: its one file, or one a channel; of an incomplete group some do not exist.
    """

    name: str
    paths: tuple[Path, ...]


def stem(path: Path | str) -> str:
    """The file name without its suffix: "a.nii.gz" → "a", "a.b.png" → "a.b"."""
    name = Path(path).name
    return name[: len(name) - len(_suffix(path))]


def is_scan_file(path: Path | str) -> bool:
    """Whether the name is one of a scan: a suffix that is read, in any case, and no leading dot."""
    return _suffix(path) in _SUFFIXES and not Path(path).name.startswith(".")


def find_scans(folder: Path, channel_files: int = 1) -> list[Entry]:
    """The scans in `folder` and below, sorted by name; an empty list where there are none.

    Hidden files and folders are skipped, links are followed. With `channel_files` = C > 1, the
    files NAME_0000 … of one suffix make one Entry NAME that lists all C paths, so that reading an
    incomplete group says which are missing; any other file stays an Entry of its own. Raises
    ScanError where a folder can't be listed.
    """
    groups: dict[tuple[str, tuple[Path, ...]], Entry] = {}
    endings = tuple(f"_{channel:04d}" for channel in range(channel_files))
    for path in _walk(folder):
        base, paths = stem(path), (path,)
        if channel_files > 1 and base.endswith(endings):
            suffix = path.name[len(base) :]
            base = base[:-5]
            paths = tuple(path.with_name(f"{base}{ending}{suffix}") for ending in endings)
        name = (path.relative_to(folder).parent / base).as_posix()
        groups[name, paths] = Entry(name, paths)
    return [groups[key] for key in sorted(groups)]


def read_scan(paths: Path | Sequence[Path]) -> Scan:
    """Read one file, or one file a channel in that order: voxels (C, I, J, K) as stored.

    A raster has I = column, J = row, K = 1 and no affine. The dtype is the file's own, in native
    byte order; values that a NIfTI header scales are float32. Greys of 1, 2 or 4 bits are
    stretched to 0–255. Voxels that are not finite are read as 0, with a warning. Raises ScanError
    for a file that can't be read, is too large, or lies on another grid than the first one.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    missing = [file.name for file in files if not file.exists()] if len(files) > 1 else []
    if missing:
        problem = f"{len(files)} channel files are expected, missing: {', '.join(missing)}"
        raise ScanError(files[0], problem)
    scans = [_finite(_read(file, labels=False)) for file in files]
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
            "(colours?); save it as a grey or palette image that holds class numbers",
        )
    voxels = voxels[:1]
    if voxels.dtype.kind == "f":
        voxels, largest = _whole_numbers(scan.source, voxels)
        if largest > 0:
            warnings.append(f"mask values up to {largest:.2g} from whole numbers were rounded")
    return Scan(voxels, scan.affine, scan.source, tuple(warnings))


def write_segmentation(segmentation: Segmentation, path: Path) -> None:
    """Write `segmentation.mask_values()` (uint8 or uint16) in the format that the suffix names.

    The file is there whole or not at all, and its bytes depend on nothing but its content. Raises
    OutputError for another suffix, for a volume as a raster, or where nothing can be written.
    """
    if _suffix(path) not in _WRITTEN:
        raise OutputError(f"{path}: masks are written as {', '.join(_WRITTEN)}")
    _module(path).write(segmentation, Path(path))


def output_suffix(source: Path) -> str:
    """The suffix of an output in the source's own format. Raises ScanError for an unknown one."""
    suffix = _known_suffix(source)
    if suffix in _NIFTI:
        return suffix
    return ".tif" if suffix in (".tif", ".tiff") else ".png"


def check_size(path: Path, shape: Sequence[int]) -> None:
    """Refuse an array of `shape` (with channels) beyond MAX_VOXELS or of no size: ScanError."""
    if not shape or min(shape) < 1:
        raise ScanError(path, f"its header claims an impossible size {tuple(map(int, shape))}")
    if prod(map(int, shape)) > MAX_VOXELS:
        size = " × ".join(str(n) for n in shape if n > 1)
        raise ScanError(path, f"its header claims {size} values, the limit is {MAX_VOXELS}")


def alpha_warnings(path: Path, alpha: np.ndarray, labels: bool) -> list[str]:
    """What to say on dropping `alpha`: nothing if it is opaque. Raises ScanError for a mask."""
    if (alpha == (1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max)).all():
        return []
    if labels:
        raise ScanError(path, "a mask has one value per pixel; this one is partly transparent")
    return ["the alpha channel is not opaque; it was dropped"]


def _suffix(path: Path | str) -> str:
    name = Path(path).name.lower()
    return next((s for s in _SUFFIXES if name.endswith(s)), Path(name).suffix)


def _known_suffix(path: Path) -> str:
    suffix = _suffix(path)
    if suffix not in _SUFFIXES:
        raise ScanError(path, f"unknown suffix {suffix!r}; read are {', '.join(_SUFFIXES)}")
    return suffix


def _module(path: Path) -> ModuleType:
    if _known_suffix(path) in _NIFTI:
        from segapp.formats import nifti

        return nifti
    from segapp.formats import raster

    return raster


def _read(path: Path, labels: bool) -> Scan:
    try:
        if path.is_dir():
            raise ScanError(path, "is a folder, not a scan file")
        if not path.exists():
            raise ScanError(path, "no such file")
        if not path.is_file():
            raise ScanError(path, "is not a regular file")
        module = _module(path)
        if path.stat().st_size == 0:
            raise ScanError(path, "the file is empty")
        scan = module.read(path, labels)
        if scan.voxels.dtype.kind not in "iuf":
            raise ScanError(path, f"has {scan.voxels.dtype} voxels; save real numbers")
        return scan
    except ScanError:
        raise
    except MemoryError as error:
        raise ScanError(path, "does not fit into memory") from error
    except Exception as error:  # on damaged files decoders raise everything, SyntaxError included
        if isinstance(error, OSError) and error.strerror:
            raise ScanError(path, f"can't be read ({error.strerror})") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScanError(path, f"can't be read, it may be damaged ({reason})") from error


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Scan files below `folder`; `above` are the folders on the way; no link leads back to them."""
    real = folder.resolve()
    if real in above:
        return
    try:
        children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise ScanError(folder, f"can't be listed ({error.strerror})") from error
    for child in children:
        if child.is_dir():
            yield from _walk(child, (*above, real))
        elif is_scan_file(child):
            yield child


def _finite(scan: Scan) -> Scan:
    if scan.voxels.dtype.kind != "f":
        return scan
    bad = ~np.isfinite(scan.voxels)
    count = int(bad.sum())
    if not count:
        return scan
    voxels = np.where(bad, scan.voxels.dtype.type(0), scan.voxels)
    warning = f"{count} voxels are not finite; read as 0"
    return replace(scan, voxels=voxels, warnings=(*scan.warnings, warning))


def _whole_numbers(path: Path, values: np.ndarray) -> tuple[np.ndarray, float]:
    """`values` as int32 and the largest change."""
    finite = np.isfinite(values)
    if not finite.all():
        raise ScanError(path, f"a mask holds whole numbers, {int((~finite).sum())} are not finite")
    rounded = np.rint(values)
    change = np.abs(values - rounded)
    wrong = values[(change > 1e-3) | (np.abs(rounded) >= 2**31)]
    if wrong.size:
        raise ScanError(
            path,
            f"a mask holds whole class numbers, this one has values like {wrong[0]:.6g}; is it an "
            "image or a probability map, or was it resampled with interpolation?",
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
