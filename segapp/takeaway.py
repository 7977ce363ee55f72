"""What can be downloaded of a result: masks in several formats, measures, a report."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from segapp.errors import OutputError
from segapp.files import atomic_path
from segapp.formats import Entry, output_suffix, write_segmentation
from segapp.measure import ClassMeasure, measure, write_measures
from segapp.outcomes import Outcome
from segapp.report.reading import write_reading
from segapp.scan import Segmentation

Kind = Literal["same", "nifti", "png", "dicomseg", "csv", "report", "zip"]
_FORMATS = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".nii.gz": "NIfTI",
    ".nii": "uncompressed NIfTI",
    ".nrrd": "NRRD",
    ".mha": "MetaImage",
    ".dcm": "DICOM segmentation",
}
_OTHERS: dict[str, tuple[str, str]] = {
    "csv": ("_measures.csv", "Measurements (CSV)"),
    "report": ("_report.html", "Report (HTML)"),
    "zip": ("_result.zip", "Mask as {}, measurements and report (ZIP)"),
}


@dataclass(frozen=True)
class Download:
    """A file on offer. name: what it is called; label: what it is, for people; note: what they
    should know of it before, or ""."""

    kind: Kind
    name: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Reading:
    """A result as it stands, and what is said of it.

    entry: where its scan came from; its name is what files are called by. segmentation: corrected
    or not. outcome: what the model thought of its own result. name: what the scan is called in the
    report; model: the model. corrected_voxels: how many voxels somebody changed, None where it is
    the model's own result. measures: those of the segmentation, None to measure when needed.
    """

    entry: Entry
    segmentation: Segmentation
    outcome: Outcome
    name: str
    model: str
    corrected_voxels: int | None = None
    measures: Sequence[ClassMeasure] | None = None


def downloads(entry: Entry, segmentation: Segmentation) -> list[Download]:
    """What this result can be had as, the format of the scan first; formats that would give the
    same file again, or can't hold the result, are left out. Raises ScanError where the scan's own
    format is unknown."""
    scan = segmentation.scan
    offered: list[Kind] = ["same"]
    if output_suffix(entry.paths[0]) != ".nii.gz":
        offered.append("nifti")
    if scan.shape[2] == 1 and output_suffix(entry.paths[0]) != ".png":
        offered.append("png")
    if scan.files and (scan.affine is not None or scan.shape[2] == 1):
        offered.append("dicomseg")
    values = ", ".join(f"{c.value} {c.name}" for c in segmentation.classes)
    notes: dict[str, str] = {"same": f"Values in a mask: {values}"}
    if "dicomseg" in offered:
        notes["dicomseg"] = "Identifies the patient: it holds the name and ID that the scan holds."
        notes["zip"] = "The DICOM segmentation is not in it."
    always: list[Kind] = ["csv", "report", "zip"]
    same = _FORMATS[_named("same", entry)[0]]
    found = []
    for kind in offered + always:
        suffix, label = _named(kind, entry)
        label = label.format(same) or f"Mask ({_FORMATS[suffix]})"
        found.append(Download(kind, f"{_stem(entry)}{suffix}", label, notes.get(kind, "")))
    return found


def write_download(kind: str, reading: Reading, folder: Path) -> Path:
    """Write one of `downloads` into `folder` and return its path. The mask of kind "same" is the
    file that `segapp predict` writes for the scan.

    Raises OutputError for an unknown kind, for a format that can't hold the result, and where
    nothing can be written.
    """
    if kind not in get_args(Kind):
        raise OutputError(f"{kind!r} is no download; expected {', '.join(get_args(Kind))}")
    path = folder / f"{_stem(reading.entry)}{_named(kind, reading.entry)[0]}"
    if kind == "csv":
        outcome, changed = reading.outcome, reading.corrected_voxels
        write_measures(_measures(reading), path, outcome, changed, reading.name)
    elif kind == "report":
        write_reading(
            *(reading.segmentation, reading.outcome, _measures(reading), path),
            name=reading.name,
            model=reading.model,
            corrected_voxels=reading.corrected_voxels,
        )
    elif kind == "zip":
        _write_zip(reading, path)
    else:
        by_hand = reading.corrected_voxels is not None
        write_segmentation(replace(reading.segmentation, by_hand=by_hand), path)
    return path


def _write_zip(reading: Reading, path: Path) -> None:
    parts = [write_download(kind, reading, path.parent) for kind in ("same", "csv", "report")]
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for part in parts:
            packed = part.suffix not in (".csv", ".html")  # masks are compressed already
            how = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
            archive.write(part, part.name, how)


def _measures(reading: Reading) -> Sequence[ClassMeasure]:
    return measure(reading.segmentation) if reading.measures is None else reading.measures


def _stem(entry: Entry) -> str:
    return Path(entry.name).name


def _named(kind: str, entry: Entry) -> tuple[str, str]:
    """The suffix of a kind, and its label if it has one of its own."""
    if kind in _OTHERS:
        return _OTHERS[kind]
    return output_suffix(entry.paths[0], kind), ""  # type: ignore[arg-type]
