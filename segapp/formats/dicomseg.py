"""DICOM Segmentation objects: labels on the frames of the DICOM images they were made from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.color import CIELabColor
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DA, TM, PersonName

from segapp import __version__
from segapp.errors import OutputError, ScanError, SegappError
from segapp.files import atomic_path
from segapp.formats.dicomfile import read_header
from segapp.formats.dicomspace import Plane, find_plane, frame_headers
from segapp.formats.quiet import without_warnings
from segapp.scan import SegClass, Segmentation

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_ONE_OF_ALL = (*_UIDS[2:], "FrameOfReferenceUID", "Rows", "Columns")  # the same in every slice
# Of the patient and the study; no other text is copied.
_TEXTS = ("PatientName", "PatientID", "StudyID", "AccessionNumber", "ReferringPhysicianName")
_OPTIONAL = ("IssuerOfPatientID", "StudyDescription", "FrameOfReferenceUID")
_DATES = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
_AS_IS = ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence")
_LOSSY = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
_TAGS = [
    *(*_UIDS, "Rows", "Columns", *_TEXTS, *_OPTIONAL, *_DATES, "PatientSex", *_AS_IS),
    *("LossyImageCompression", *_LOSSY, "SeriesNumber", "NumberOfFrames", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    "PositionReferenceIndicator",
]
_OFF_GRID = 0.2  # of a slice distance: slices further from the scan's grid are not on it
_BY_HAND = "corrected by hand"
_ELSE = "use --format nifti"
_NEEDED = "a source with position and orientation (FrameOfReferenceUID, ImagePositionPatient)"
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)  # its notes quote header values


def write(segmentation: Segmentation, path: Path) -> None:
    """Write one BINARY Segmentation: segment n is class n, background is left out.

    A frame is a source image's own grid, place and size: rows are j, columns are i. Slices of the
    scan that have no source image (gaps that were filled) are left out. A class without voxels is
    described and has no frames; where all are empty, each has every frame. What somebody corrected
    by hand says so. UIDs depend on nothing but that, the source's UIDs, the labels, the classes
    and segapp's version. Of the source's text, only what identifies patient and study is copied.
    Raises OutputError for a scan that is no DICOM, that has several slices and no place in space,
    or that lacks UIDs.
    """
    path, scan = Path(path), segmentation.scan
    if not scan.files:
        raise OutputError(
            f"{path}: --format dicomseg needs a DICOM source, and {scan.source.name} is none; "
            f"{_ELSE}"
        )
    try:
        with without_warnings():  # they quote header values
            dataset = _segmentation(segmentation, path)
            with atomic_path(path) as temporary:
                dataset.save_as(temporary)
    except ScanError as error:
        raise OutputError(f"{path}: its source can't be read: {error}") from error
    except (SegappError, MemoryError):
        raise
    except Exception as error:  # on odd headers highdicom raises everything, and quotes values
        raise OutputError(
            f"{path}: its source's header does not do for a DICOM SEG ({type(error).__name__}), "
            f"which needs {_NEEDED}; {_ELSE}"
        ) from None


def _segmentation(segmentation: Segmentation, path: Path) -> hd.seg.Segmentation:
    classes, labels = segmentation.classes, segmentation.labels
    headers = [read_header(file, _TAGS) for file in segmentation.scan.files]
    _require(path, headers, labels.shape)
    if len(classes) < 2:
        raise OutputError(f"{path}: a DICOM SEG holds classes other than background; {_ELSE}")
    sources, places = _sources(segmentation, path, headers)
    pixels = labels.transpose(2, 1, 0)[places]  # (slices, rows, columns)
    pixels = np.ascontiguousarray(pixels, np.uint8 if len(classes) <= 256 else np.uint16)
    by_hand = segmentation.by_hand
    seed = _digest(headers, pixels, classes, by_hand)
    dataset = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(n, c, by_hand) for n, c in enumerate(classes) if n],
        series_instance_uid=generate_uid(entropy_srcs=[seed, "series"]),
        series_number=_series_number(headers[0]),
        sop_instance_uid=generate_uid(entropy_srcs=[seed, "instance"]),
        instance_number=1,
        manufacturer="segapp",
        manufacturer_model_name="segapp",
        software_versions=__version__,
        device_serial_number="segapp",
        content_label="SEGMENTATION",
        content_description=_BY_HAND.capitalize() if by_hand else None,
        series_description=f"segapp segmentation{f', {_BY_HAND}' if by_hand else ''}",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
    )
    _finish(dataset, seed)
    return dataset


def _sources(
    segmentation: Segmentation, path: Path, headers: Sequence[pydicom.Dataset]
) -> tuple[list[pydicom.Dataset], list[int]]:
    """The source images as highdicom wants them, and the k of each of their frames in order.

    A single image without a place in space is a source too. Raises OutputError.
    """
    files, depth = segmentation.scan.files, segmentation.labels.shape[2]
    in_one = len(files) == 1
    frames = headers
    if in_one:
        count = int(_value(headers[0], "NumberOfFrames") or 1)
        frames = frame_headers(headers[0]) or list(headers) * count
    planes = [find_plane(files[0 if in_one else n], frame) for n, frame in enumerate(frames)]
    found = [plane for plane in planes if plane is not None]
    affine = segmentation.scan.affine
    has_frame = bool(_text(headers[0], "FrameOfReferenceUID"))
    if affine is None or not has_frame or len(found) < len(frames):
        if depth > 1 or len(frames) > 1:
            raise OutputError(f"{path}: DICOM SEG needs {_NEEDED}; {_ELSE} or png")
        return [_source(headers[0], [], frames[0])], [0]
    to_voxels = np.linalg.inv(affine)
    along = np.array([(to_voxels @ [*(p.position * [-1, -1, 1]), 1])[2] for p in found])
    places = [int(k) for k in np.rint(along)]
    on_grid = np.abs(along - places).max() <= _OFF_GRID
    if not on_grid or len(set(places)) < len(places) or not set(places) <= set(range(depth)):
        raise OutputError(f"{path}: the scan's slices lie between those of its source; {_ELSE}")
    if depth > 1 and not _value(frames[0], "SliceThickness"):
        step = affine[:3, 2] * [-1, -1, 1]
        frames[0].SliceThickness = float(f"{abs(step @ found[0].normal):.10g}")
    if in_one:
        return [_source(headers[0], found, frames[0])], places
    return [_source(h, [p], headers[0]) for h, p in zip(headers, found, strict=True)], places


def _require(path: Path, headers: Sequence[pydicom.Dataset], shape: tuple[int, ...]) -> None:
    """Refuse sources that can't be referenced, or that are not the scan's; OutputError."""
    for header in headers:
        for keyword in _UIDS[:2]:  # the file's own header has them as well
            if not _text(header, keyword):
                setattr(header, keyword, _text(header.file_meta, f"MediaStorage{keyword}"))
        for keyword in _UIDS:
            if not _text(header, keyword):
                raise OutputError(f"{path}: its source has no {keyword} to refer to; {_ELSE}")
    for keyword in _ONE_OF_ALL:
        if len({_text(header, keyword) for header in headers}) > 1:
            raise OutputError(f"{path}: its source's slices differ in {keyword}; {_ELSE}")
    size = (_value(headers[0], "Columns"), _value(headers[0], "Rows"))
    if size != shape[:2]:
        raise OutputError(f"{path}: its source's images are {size}, the labels {shape[:2]}")
    if size[0] * size[1] < 8:  # highdicom packs these wrongly
        raise OutputError(f"{path}: frames of fewer than 8 pixels can't be written; {_ELSE}")


def _source(
    header: pydicom.Dataset, planes: Sequence[Plane], first: pydicom.Dataset
) -> pydicom.Dataset:
    """What a SEG needs to know of a source image, and nothing else of its header.

    planes: of its frames; none for an image without a place. first: the header of the first
    frame, whose orientation and spacing stand for all, because highdicom wants them to the digit.
    """
    source = pydicom.Dataset()
    for keyword in (*_UIDS, "Rows", "Columns"):
        setattr(source, keyword, header[keyword].value)
    for keyword in (*_TEXTS, *_OPTIONAL):
        text = _text(header, keyword)
        if text or keyword in _TEXTS:
            setattr(source, keyword, text)
    for keyword, kind in _DATES.items():
        setattr(source, keyword, _parsed(header, keyword, kind))
    sex = _text(header, "PatientSex").upper()
    source.PatientSex = sex if sex in ("M", "F", "O") else ""
    source.PositionReferenceIndicator = _text(header, "PositionReferenceIndicator")
    lossy = _text(header, "LossyImageCompression") == "01"
    source.LossyImageCompression = "01" if lossy else "00"
    for keyword in (*_AS_IS, *(_LOSSY if lossy else ())):
        value = _value(header, keyword)
        if value:
            setattr(source, keyword, value)
    _add_geometry(source, planes, first)
    return source


def _add_geometry(source: pydicom.Dataset, planes: Sequence[Plane], first: pydicom.Dataset) -> None:
    """As a single image and as a multi-frame one say it: highdicom looks where the class says."""
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [pydicom.Dataset()]
    source.SharedFunctionalGroupsSequence = [shared]
    source.NumberOfFrames = len(planes) or 1
    if not planes:
        return
    measures, orientation, groups = pydicom.Dataset(), pydicom.Dataset(), []
    measures.PixelSpacing = first.PixelSpacing
    source.SliceThickness, thickness = None, _value(first, "SliceThickness")
    if isinstance(thickness, float) and thickness > 0:
        measures.SliceThickness = thickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    for plane in planes:
        position, group = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [float(f"{x:.10g}") for x in plane.position]
        group.PlanePositionSequence = [position]
        groups.append(group)
    source.PerFrameFunctionalGroupsSequence = groups
    for item in (measures, orientation, groups[0].PlanePositionSequence[0]):
        source.update(item)


def _describe(number: int, segment_class: SegClass, by_hand: bool) -> hd.seg.SegmentDescription:
    name = segment_class.name.replace("\\", "/").strip()[:64]
    kinds = hd.seg.SegmentAlgorithmTypeValues
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name or f"class {number}",
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type=kinds.SEMIAUTOMATIC if by_hand else kinds.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="segapp", family=codes.DCM.ArtificialIntelligence, version=__version__
        ),
        display_color=CIELabColor.from_rgb(*segment_class.colour),
    )


def _digest(
    headers: Sequence[pydicom.Dataset],
    pixels: np.ndarray,
    classes: Sequence[SegClass],
    by_hand: bool,
) -> str:
    """The same for the same result on the same images."""
    uids = [_text(header, keyword) for header in headers for keyword in _UIDS]
    how = (_BY_HAND,) if by_hand else ()
    known = repr((uids, pixels.shape, pixels.dtype.str, classes, __version__, *how)).encode()
    return hashlib.sha256(known + hashlib.sha256(pixels.data).digest()).hexdigest()


def _finish(dataset: hd.seg.Segmentation, seed: str) -> None:
    """No random UID, and what an image without a place in space has instead of one."""
    uid = generate_uid(entropy_srcs=[seed, "dimensions"])
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if "PlaneOrientationSequence" not in shared:
        shared.pop("PixelMeasuresSequence", None)
        dataset.PatientOrientation = ""


def _series_number(header: pydicom.Dataset) -> int:
    """1000 beyond the source's: near it in a viewer's list, and hardly ever another's."""
    number = _value(header, "SeriesNumber")
    return 1000 + int(number) if isinstance(number, int) and 0 <= number < 10**9 else 1000


def _parsed(header: pydicom.Dataset, keyword: str, kind: type) -> str:
    """A date or a time as it is; empty where it is none."""
    text = _text(header, keyword)
    try:
        return str(kind(text) or "")
    except ValueError:
        return ""


def _text(header: pydicom.Dataset, keyword: str) -> str:
    """A value as text; empty where it is missing or unreadable."""
    value = _value(header, keyword)
    if isinstance(value, MultiValue):
        return " ".join(str(part) for part in value)
    return str(value) if isinstance(value, str | int | PersonName) else ""


def _value(header: pydicom.Dataset, keyword: str) -> Any:
    """A value; None where it is missing or its bytes make no sense."""
    try:
        return header.get(keyword)
    except Exception:  # pydicom converts on access, and raises what the bytes lead to
        return None
