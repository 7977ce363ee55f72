"""What a folder, an archive or a list of files holds: one Entry a scan, told by content."""

from __future__ import annotations

import gzip
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segapp.errors import ScanError
from segapp.formats.source import head, is_zip, members, open_binary, size

log = logging.getLogger("segapp")

FORMATS = "NIfTI, DICOM, NRRD, MetaImage, PNG, JPEG, BMP or TIFF"
# Suffixes of each kind; those read by name alone are refused by their reader with a reason.
SUFFIXES = {
    "raster": (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
    "nifti": (".nii.gz", ".nii"),
    "nrrd": (".nrrd", ".nhdr"),
    "metaimage": (".mha", ".mhd"),
    "dicom": (".dcm", ".dicom", ".ima"),
    "zip": (".zip",),
}
_ALL = tuple(suffix for group in SUFFIXES.values() for suffix in group)
_HEADERS, _DETACHED = (".mhd", ".nhdr"), (".raw", ".zraw", ".raw.gz", ".bin", ".img")
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MARKS = {
    **dict.fromkeys((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *TIFF_MARKS), "raster"),
    b"NRRD0": "nrrd",
}
_PACKED, _SMALL_BYTES = (".gz", ".nrrd", ".mha", ".nhdr", ".mhd"), 1 << 20
_ODD = "of another format"
LeftOut = Callable[[Path, str], None]  # gets a file that is no scan, and why
_METAIMAGE = re.compile(rb"(?m)^(ObjectType|NDims)[ \t]*=")


@dataclass(frozen=True)
class Entry:
    """One scan of a folder.

    name: the path relative to the folder without its suffix, POSIX style ("sub/scan01"); that of
    its folder for a DICOM series.
    paths: its one file, one a channel, or those of a DICOM series; of an incomplete group of
    channels some do not exist.
    folder: that of a DICOM series which has it to itself.
    doubts: warnings for its result, of what lies beside it.
    """

    name: str
    paths: tuple[Path, ...]
    folder: Path | None = None
    doubts: tuple[str, ...] = ()

    @property
    def source(self) -> Path:
        """What the scan is called in messages and tables: its folder, or its first file."""
        return self.folder or self.paths[0]


def stem(path: Path | str) -> str:
    """The file name without a scan's suffix: "a.nii.gz" → "a", "a.b.png" → "a.b", "1.2" → "1.2"."""
    name = Path(path).name
    return name[: len(name) - len(known_suffix(path))]


def known_suffix(path: Path | str) -> str:
    """The suffix of a scan that the name ends in, in lower case; "" for any other name."""
    name = Path(path).name.lower()
    return next((s for s in _ALL if name.endswith(s) and name != s), "")


def file_kind(path: Path) -> str:
    """nifti, raster, dicom, nrrd, metaimage or zip, by content; where that says nothing, by name;
    "" for anything else. Raises OSError where the file can't be read."""
    start = head(path, 1024)
    if start[128:132] == b"DICM":  # before it stands anything, even the start of a TIFF
        return "dicom"
    for mark, kind in _MARKS.items():
        if start.startswith(mark):
            return kind
    plain = _unzipped_head(path) if start[:2] == b"\x1f\x8b" else start
    if plain[344:348] == b"n+1\0" or plain[4:8] == b"n+2\0":
        return "nifti"
    if _is_bare_dicom(start):
        return "dicom"
    if start[:2] == b"BM" and known_suffix(path) == ".bmp":
        return "raster"
    if _METAIMAGE.search(start[:256]):
        return "metaimage"
    return next((kind for kind, group in SUFFIXES.items() if known_suffix(path) in group), "")


def find_scans(
    folder: Path, channel_files: int = 1, on_left_out: LeftOut = lambda *_: None
) -> list[Entry]:
    """The scans in `folder` (or zip archive) and below, sorted by name; empty where there are none.

    Files are told by their content. Hidden files and folders are skipped, links are followed, zip
    archives are looked into. DICOM files are grouped by series and place. With `channel_files` =
    C > 1, the files NAME_0000 … of one suffix make one Entry NAME that lists all C paths, so that
    reading an incomplete group says which are missing. What can't be looked at is an Entry, so that
    reading it says why, a folder below too. Files that are no scans are counted in the log, and
    each is handed to `on_left_out`. Raises ScanError where `folder` itself can't be listed.
    """
    return group_files(list(_walk(folder)), folder, channel_files, on_left_out)


def group_files(
    files: Sequence[Path],
    folder: Path,
    channel_files: int = 1,
    on_left_out: LeftOut = lambda *_: None,
) -> list[Entry]:
    """`files` below `folder` as scans; see `find_scans`. A file that can't be opened is an Entry of
    its own, so that reading it says why."""
    voxels = detached(files)
    kinds = {path: "" if path in voxels else _kind_or_unreadable(path) for path in files}
    dicom = [path for path, kind in kinds.items() if kind == "dicom"]
    unknown = [path for path, kind in kinds.items() if not kind and path not in voxels]
    damaged = _damaged_slices(dicom, unknown)
    kinds.update(dict.fromkeys(damaged, "unreadable"))
    groups: dict[tuple[str, tuple[Path, ...]], Entry] = {}
    endings = tuple(f"_{channel:04d}" for channel in range(channel_files))
    for path, kind in kinds.items():
        if kind in ("", "dicom"):
            continue
        base, paths = stem(path), (path,)
        if channel_files > 1 and base.endswith(endings):
            suffix = path.name[len(base) :]
            base = base[:-5]
            paths = tuple(path.with_name(f"{base}{ending}{suffix}") for ending in endings)
        name = (_below(path.parent, folder) / base).as_posix()
        groups[name, paths] = Entry(name, paths)
    found, others = _series_entries(dicom, damaged, folder)
    left_out = {path: f"DICOM {kind}" for path, kind in others}
    left_out |= dict.fromkeys(sorted(set(unknown) - set(damaged)), _ODD)
    if left_out:
        counts = Counter(left_out.values()).items()
        said = ", ".join(f"{count} {what}" for what, count in counts)
        log.info("%s: left out files that are no scans: %s", folder, said)
    for path, why in left_out.items():
        on_left_out(path, why)
    return sorted([*groups.values(), *found], key=lambda entry: (entry.name, entry.paths))


def detached(files: Sequence[Path]) -> set[Path]:
    """Those of `files` that hold the voxels to a header file beside them (a.raw to a.mhd)."""
    headers = {path.with_name(stem(path)) for path in files if path.suffix.lower() in _HEADERS}
    return {
        path
        for path in files
        for suffix in _DETACHED
        if path.name.lower().endswith(suffix)
        and path.with_name(path.name[: -len(suffix)]) in headers
    }


def _damaged_slices(dicom: Sequence[Path], others: Sequence[Path]) -> list[Path]:
    """Files of no format that lie among DICOM files and are named like them: emptied, or damaged
    in their first bytes. They must not go missing without a word."""
    names = {(path.parent, path.suffix.lower()) for path in dicom}
    return [path for path in others if (path.parent, path.suffix.lower()) in names]


def _kind_or_unreadable(path: Path) -> str:
    try:
        return file_kind(path)
    except (OSError, ScanError):
        return "unreadable"


def _series_entries(
    files: list[Path], damaged: Sequence[Path], folder: Path
) -> tuple[list[Entry], list[tuple[Path, str]]]:
    """DICOM files as scans, and other DICOM objects with their kinds."""
    if not files:
        return [], []
    from segapp.formats import dicom

    series, others = dicom.group_series(sorted(files))
    places = [_common(found.files) if len(found.files) > 1 else None for found in series]
    unreadable = Counter(path.parent for path in damaged)
    unreadable.update(found.files[0].parent for found in series if found.unreadable)
    entries = []
    for found, place in zip(series, places, strict=True):
        paths = found.files
        if place is None:
            name = (_below(paths[0].parent, folder) / stem(paths[0])).as_posix()
            entries.append(Entry(name, tuple(paths)))
            continue
        inside = _below(place, folder)
        name = inside.as_posix() if inside.parts else stem(folder.resolve())
        alone = places.count(place) == 1
        if not alone:
            name += "_series" if found.number is None else f"_series{found.number}"
        doubts = []
        if count := sum(unreadable[parent] for parent in {path.parent for path in paths}):
            doubts.append(f"{count} files beside its slices can't be read; slices may be missing")
        if found.without_place:
            doubts.append(f"{found.without_place} images of the series have no position; not in it")
        entries.append(Entry(name, tuple(paths), place if alone else None, tuple(doubts)))
    return entries, others


def _common(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all of `paths`."""
    first = paths[0].parent
    for parent in (first, *first.parents):
        if all(parent in path.parents for path in paths):
            return parent
    return first


def _below(place: Path, folder: Path) -> Path:
    """`place` relative to `folder`, archives on the way without their suffix."""
    parts = place.relative_to(folder).parts
    return Path(*(stem(p) if p.lower().endswith(".zip") else p for p in parts))


def _walk(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """Files below `folder`, each folder once, whatever links lead to it."""
    if folder.is_file():
        yield from (m for m in members(folder) if not _hidden(m.relative_to(folder)))
        return
    seen, real = set() if seen is None else seen, os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for child in children(folder):
        if _is_folder(child):
            try:
                yield from _walk(child, seen)
            except ScanError:
                yield child
        elif child.name.lower().endswith(".zip") and is_readable_zip(child):
            yield from _walk(child)
        else:
            yield child


def children(folder: Path) -> list[Path]:
    """What is in a folder, but hidden things. Raises ScanError where it can't be listed."""
    try:
        return sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise ScanError(folder, f"can't be listed ({error.strerror})") from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # its own folder may be listed, but not entered
        return False


def is_readable_zip(path: Path) -> bool:
    """Whether an archive can be looked into; a damaged one is a file whose reading says why not."""
    try:
        return is_zip(path) and members(path) is not None
    except (OSError, ScanError):
        return False


def _hidden(inside: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in inside.parts)


def _unzipped_head(path: Path) -> bytes:
    try:
        with open_binary(path) as file, gzip.GzipFile(fileobj=file) as stream:
            return stream.read(540)
    except (OSError, EOFError, zlib.error):
        return b""


def _is_bare_dicom(start: bytes) -> bool:
    """DICOM without its preamble: a first element of group 2 or 8 with a value of sane length."""
    if start[:2] not in (b"\x02\x00", b"\x08\x00") or len(start) < 132:
        return False
    if start[4:6].isalpha() and start[4:6].isupper():
        return True
    return start[:2] == b"\x08\x00" and int.from_bytes(start[4:8], "little") <= 64


def is_small(paths: Sequence[Path]) -> bool:
    """Whether a scan is a single file that can't hold much, so that several may be in memory at
    once: a slice, mostly. By its size and name; compressed volumes can hold anything."""
    try:
        packed = paths[0].suffix.lower() in _PACKED
        return len(paths) == 1 and not packed and size(paths[0]) < _SMALL_BYTES
    except (OSError, ScanError):
        return False
