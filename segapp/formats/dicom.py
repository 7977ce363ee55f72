"""DICOM: single images, series of slices and multi-frame files, where they lie in the patient."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from segapp.errors import ScanError
from segapp.formats.dicomfile import describe, is_image, read_header, read_pixels, rescale, sober
from segapp.formats.dicomspace import (
    Plane,
    arrange,
    assumed_affine,
    find_plane,
    frame_headers,
    make_affine,
    on_even_grid,
)
from segapp.formats.source import check_size
from segapp.scan import Scan

_SPLITTING = ("EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue")
_SHARED = ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "Rows", "Columns")
_SHARED += ("SamplesPerPixel", *_SPLITTING)
_HEADER_TAGS = [
    *("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("SeriesNumber", "Modality", "Rows", "Columns"),
    *("NumberOfFrames", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"),
    *("SamplesPerPixel", "SpacingBetweenSlices", "SliceThickness", *_SPLITTING),
]


@dataclass
class Series:
    """Files that make one scan. number: the header's, if it has one; without_place: images of the
    same series that have no position and stand alone; unreadable: a file that is cut short."""

    files: list[Path]
    number: int | None = None
    without_place: int = 0
    unreadable: bool = False


def group_series(files: Sequence[Path]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """DICOM files as scans, and the other objects among them with their kinds.

    Slices belong together that share patient, study, series, frame of reference, size, orientation
    and pixel spacing (and echo, time point and b-value, where given). Images without a position,
    multi-frame files and unreadable ones stand alone; reading these says what is wrong. What is
    known to be a segmentation, a report, a plan or an index is no scan.
    """
    found: list[Series] = []
    stacks: dict[Any, list[tuple[Plane, Series]]] = {}
    placeless: Counter[str] = Counter()
    others: list[tuple[Path, str]] = []
    for file in files:
        try:
            with sober(file):
                header = read_header(file, _HEADER_TAGS)
                if not is_image(header):
                    others.append((file, describe(header)))
                    continue
                plane, key = find_plane(file, header), _series_key(header)
                number = _whole(header.get("SeriesNumber"))
        except ScanError:
            found.append(Series([file], unreadable=True))
            continue
        near = stacks.setdefault(key, [])
        series = next((s for p, s in near if plane is not None and p.parallel(plane)), None)
        if key is not None and series is not None:
            series.files.append(file)
            continue
        found.append(Series([file], number, unreadable="Rows" not in header))
        if key is not None and plane is not None:
            near.append((plane, found[-1]))
        elif key is not None:
            placeless[key[0]] += 1
    for key, near in stacks.items():
        for _, series in near:
            series.without_place = placeless[key[0]]
    return found, others


def read(path: Path, labels: bool, allow_gaps: bool = False) -> Scan:
    """One file: voxels (C, I, J, K) in the modality's units, I = column, J = row, K = frames.

    allow_gaps: see read_series. Raises ScanError.
    """
    if labels:
        raise ScanError(path, "is a DICOM file; masks are read from NIfTI, NRRD, PNG or TIFF")
    dataset, pixels, warnings = read_pixels(path)
    with sober(path):
        if len(pixels) > 1 or "PerFrameFunctionalGroupsSequence" in dataset:
            return _multi_frame(path, dataset, pixels, warnings, allow_gaps)
        plane = find_plane(path, dataset)
        pixels = rescale(path, pixels, dataset, _bits(dataset))
        warnings += _doubts(dataset)
        affine = None
        if plane is not None:
            affine = make_affine(plane, plane.step)
        elif dataset.get("PixelSpacing"):
            affine, note = assumed_affine(path, dataset)
            warnings.append(note)
    return Scan(_voxels(pixels), affine, path, tuple(warnings), (path,), _modality(dataset))


def read_series(files: Sequence[Path], source: Path, allow_gaps: bool = False) -> Scan:
    """The slices of one series as a volume, in order along their normal towards +k.

    `source` names the scan in messages. Raises ScanError for slices of different size, without
    position, twice at one place, or with gaps between them. With `allow_gaps` these are filled
    by linear interpolation, with a warning.
    """
    headers = [read_header(file, _HEADER_TAGS) for file in files]
    with sober(source):
        planes = []
        for file, header in zip(files, headers, strict=True):
            plane = find_plane(file, header)
            if plane is None:
                raise ScanError(file, "has no position in space; it can't be part of a volume")
            planes.append(plane)
        sizes = {(header.get("Rows"), header.get("Columns")) for header in headers}
        if len(sizes) > 1 or not all(planes[0].parallel(plane) for plane in planes):
            raise ScanError(source, f"its {len(files)} slices differ in size or orientation")
        kept, warnings = _without_copies(source, files, planes)
        files, planes = [files[n] for n in kept], [planes[n] for n in kept]
        stack = arrange(source, planes, allow_gaps, [file.name for file in files])
        rows, columns = (int(n or 0) for n in sizes.pop())
        samples = int(headers[0].get("SamplesPerPixel") or 1)
        check_size(source, (samples, columns, rows, stack.count))
    slices: list[np.ndarray] = []
    for n in stack.order:
        dataset, pixels, notes = read_pixels(files[n])
        with sober(files[n]):
            slices.append(rescale(files[n], pixels, dataset, _bits(dataset))[0])
            warnings += [w for w in (*notes, *_doubts(dataset)) if w not in warnings]
    if len({s.shape for s in slices}) > 1:
        raise ScanError(source, "mixes grey and colour slices")
    volume = on_even_grid(np.stack(slices), stack)
    affine = make_affine(planes[stack.order[0]], stack.step)
    ordered = tuple(files[n] for n in stack.order)
    warnings += stack.warnings
    return Scan(_voxels(volume), affine, source, tuple(warnings), ordered, _modality(headers[0]))


def _multi_frame(
    path: Path,
    dataset: pydicom.Dataset,
    pixels: np.ndarray,
    warnings: list[str],
    allow_gaps: bool,
) -> Scan:
    headers, modality = frame_headers(dataset), _modality(dataset)
    warnings += _doubts(dataset)
    if len(headers) != len(pixels):
        headers = [pydicom.Dataset() for _ in pixels]
    planes = [find_plane(path, header) for header in headers]
    frames = [
        rescale(path, frame, header if "RescaleSlope" in header else dataset, _bits(dataset))
        for frame, header in zip(pixels, headers, strict=True)
    ]
    found = [plane for plane in planes if plane is not None]
    if len(found) < len(planes):
        warnings.append("frames without positions; each is segmented for itself, spacing unknown")
        return Scan(_voxels(np.stack(frames)), None, path, tuple(warnings), (path,), modality)
    if not all(found[0].parallel(plane) for plane in found):
        raise ScanError(path, "its frames have different orientations; export one stack")
    names = [f"frame {n + 1}" for n in range(len(found))]
    stack = arrange(path, found, allow_gaps, names)
    affine = make_affine(found[stack.order[0]], stack.step)
    volume = on_even_grid(np.stack([frames[n] for n in stack.order]), stack)
    warnings += stack.warnings
    return Scan(_voxels(volume), affine, path, tuple(warnings), (path,), modality)


def _voxels(pixels: np.ndarray) -> np.ndarray:
    """(K, rows, columns, C) → (C, I, J, K)."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels.transpose(3, 2, 1, 0)


def _without_copies(
    source: Path, files: Sequence[Path], planes: Sequence[Plane]
) -> tuple[list[int], list[str]]:
    """Indices of the slices without byte-equal copies at the same place."""
    by_place: dict[tuple[float, ...], list[int]] = {}
    for n, plane in enumerate(planes):
        by_place.setdefault(tuple(plane.position.round(3)), []).append(n)
    if len(by_place) == len(files):
        return list(range(len(files))), []
    kept: list[int] = []
    for same in by_place.values():
        contents = {_content_hash(files[n]): n for n in reversed(same)} if len(same) > 1 else {}
        kept += sorted(contents.values()) or same
    copies = len(files) - len(kept)
    return sorted(kept), [f"{copies} slices are there twice; read once"] if copies else []


def _content_hash(file: Path) -> bytes:
    dataset, pixels, _ = read_pixels(file)
    with sober(file):
        values = rescale(file, pixels, dataset, _bits(dataset))
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()


def _doubts(dataset: pydicom.Dataset) -> list[str]:
    if dataset.get("Modality") != "CT" or "SharedFunctionalGroupsSequence" in dataset:
        return []
    if "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        return []
    return ["CT without RescaleSlope and RescaleIntercept: values may not be HU"]


def _modality(header: pydicom.Dataset) -> str:
    return str(header.get("Modality") or "").strip()


def _series_key(header: pydicom.Dataset) -> Any:
    """None for what can't be a slice of a volume."""
    uid = header.get("SeriesInstanceUID")
    if not uid or int(header.get("NumberOfFrames") or 1) > 1:
        return None
    return (str(uid), *(str(header.get(tag)) for tag in _SHARED))


def _bits(dataset: pydicom.Dataset) -> int:
    return int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 16)


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
