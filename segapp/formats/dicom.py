"""DICOM: single images, series of slices and multi-frame files, where they lie in the patient."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
    make_affine,
    on_even_grid,
)
from segapp.formats.source import check_size
from segapp.scan import Scan

_SPLITTING = ("EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue")
_HEADER_TAGS = [
    *("SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "Rows", "Columns"),
    *("NumberOfFrames", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"),
    *("SamplesPerPixel", "SpacingBetweenSlices", "SliceThickness", *_SPLITTING),
]


def group_series(files: Sequence[Path]) -> tuple[list[tuple[int | None, list[Path]]], list[str]]:
    """DICOM files as scans: [(series number, files)], and what other objects there were.

    Slices belong together that share series, size, orientation and pixel spacing (and echo, time
    point and b-value, where given). Images without a position, multi-frame files and unreadable
    ones stand alone; reading these says what is wrong. Segmentations, reports, plans and indices
    are no scans: the second list names their kinds.
    """
    groups: list[tuple[Any, Plane | None, int | None, list[Path]]] = []
    by_key: dict[Any, list[int]] = {}
    others: list[str] = []
    for file in files:
        try:
            header = read_header(file, _HEADER_TAGS)
            if not is_image(header):
                others.append(describe(header))
                continue
            plane, key = find_plane(file, header), _series_key(header)
        except ScanError:
            groups.append((None, None, None, [file]))
            continue
        near = by_key.setdefault(key, [])
        match = None
        if plane is not None and key is not None:
            match = next((n for n in near if _same_stack(groups[n][1], plane)), None)
        if match is None:
            near.append(len(groups))
            groups.append((key, plane, _whole(header.get("SeriesNumber")), [file]))
        else:
            groups[match][3].append(file)
    return [(number, found) for _, _, number, found in groups], others


def read(path: Path, labels: bool) -> Scan:
    """One file: voxels (C, I, J, K) in the modality's units, I = column, J = row, K = frames."""
    if labels:
        raise ScanError(path, "is a DICOM file; masks are read from NIfTI, NRRD, PNG or TIFF")
    dataset, pixels, warnings = read_pixels(path)
    with sober(path):
        if len(pixels) > 1 or "PerFrameFunctionalGroupsSequence" in dataset:
            return _multi_frame(path, dataset, pixels, warnings)
        plane = find_plane(path, dataset)
        pixels = rescale(path, pixels, dataset, _bits(dataset))
        warnings += _doubts(dataset)
        affine = None
        if plane is not None:
            affine = make_affine(plane, plane.normal * plane.thickness)
        elif "PixelSpacing" in dataset:
            affine, note = assumed_affine(path, dataset)
            warnings.append(note)
    return Scan(_voxels(pixels), affine, path, tuple(warnings), (path,))


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
        stack = arrange(source, planes, allow_gaps)
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
    return Scan(_voxels(volume), affine, source, (*warnings, *stack.warnings), ordered)


def _multi_frame(
    path: Path, dataset: pydicom.Dataset, pixels: np.ndarray, warnings: list[str]
) -> Scan:
    shared = _first(dataset.get("SharedFunctionalGroupsSequence")) or pydicom.Dataset()
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    warnings += _doubts(dataset)
    if len(per_frame) != len(pixels):
        pixels = rescale(path, pixels, dataset, _bits(dataset))
        warnings.append("frames without positions; each is segmented for itself, spacing unknown")
        return Scan(_voxels(pixels), None, path, tuple(warnings), (path,))
    planes, frames = [], []
    for frame, own in zip(pixels, per_frame, strict=True):
        header = pydicom.Dataset()
        for group in ("PixelMeasures", "PlaneOrientation", "PlanePosition"):
            item = _first(own.get(f"{group}Sequence")) or _first(shared.get(f"{group}Sequence"))
            header.update(item or {})
        planes.append(find_plane(path, header))
        name = "PixelValueTransformationSequence"
        transform = _first(own.get(name)) or _first(shared.get(name)) or dataset
        frames.append(rescale(path, frame, transform, _bits(dataset)))
    found = [plane for plane in planes if plane is not None]
    if len(found) < len(planes):
        warnings.append("frames without positions; each is segmented for itself, spacing unknown")
        return Scan(_voxels(np.stack(frames)), None, path, tuple(warnings), (path,))
    if not all(found[0].parallel(plane) for plane in found):
        raise ScanError(path, "its frames have different orientations; export one stack")
    stack = arrange(path, found, allow_gaps=False)
    affine = make_affine(found[stack.order[0]], stack.step)
    volume = np.stack([frames[n] for n in stack.order])
    return Scan(_voxels(volume), affine, path, (*warnings, *stack.warnings), (path,))


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
    return hashlib.sha256(np.ascontiguousarray(read_pixels(file)[1]).tobytes()).digest()


def _doubts(dataset: pydicom.Dataset) -> list[str]:
    if dataset.get("Modality") != "CT" or "SharedFunctionalGroupsSequence" in dataset:
        return []
    if "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        return []
    return ["CT without RescaleSlope and RescaleIntercept: values may not be HU"]


def _same_stack(plane: Plane | None, other: Plane) -> bool:
    return plane is not None and plane.parallel(other)


def _series_key(header: pydicom.Dataset) -> Any:
    """None for what can't be a slice of a volume."""
    uid = header.get("SeriesInstanceUID")
    if not uid or int(header.get("NumberOfFrames") or 1) > 1:
        return None
    values = [header.get(k) for k in ("Rows", "Columns", "SamplesPerPixel", *_SPLITTING)]
    return (str(uid), *(str(value) for value in values))


def _bits(dataset: pydicom.Dataset) -> int:
    return int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 16)


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _first(sequence: Any) -> pydicom.Dataset | None:
    return sequence[0] if sequence else None
