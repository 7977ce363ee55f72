"""Corrected results, kept as training cases: a data set that grows by one scan at a time.

folder/cases.csv, images/, masks/ and classes.txt are a data set like any other; provenance.jsonl
says where each case comes from. No name of a file or a patient is written.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import segapp
from segapp import metrics
from segapp.checkpoint import MODEL_NAME
from segapp.declared import declared_classes
from segapp.errors import DataError, OutputError
from segapp.files import atomic_path, require_writable, sha256, write_table, write_text
from segapp.formats import (
    NOT_FINITE,
    Entry,
    output_suffix,
    read_scan,
    write_scan,
    write_segmentation,
)
from segapp.formats.listing import SUFFIXES, file_kind, known_suffix
from segapp.formats.source import open_binary
from segapp.layout import dicom_owner, patient_by_folder, table_rows
from segapp.scan import Scan, SegClass, Segmentation

_COLUMNS = ("image", "mask", "patient", "split")
_DIGITS = 12  # of a SHA-256 in hex: enough to tell the scans of a hospital apart
_PARTS = ("images", "masks")
_COPIED = ("raster", "nifti", "nrrd", "metaimage")
_REPLACED = "replaced"  # masks that others took the place of, numbered
_OWN = {*_PARTS, _REPLACED, "cases.csv", "classes.txt", "provenance.jsonl"}
_ELSEWHERE = "keep corrections in another folder"


@dataclass(frozen=True)
class KeptCase:
    """case: its name in the data set; cases: how many this holds now; changed: how many voxels
    differ from the model's result; replaced: whether the scan had been kept before."""

    folder: Path
    case: str
    cases: int
    changed: int
    replaced: bool


def with_labels(segmentation: Segmentation, labels: np.ndarray) -> Segmentation:
    """The segmentation with somebody's labels (I, J, K), of which the model's own figures
    (confidence, estimated Dice, ranges) say nothing. Raises DataError for any others."""
    shape, classes = segmentation.scan.shape, len(segmentation.classes)
    if labels.shape != shape or labels.dtype != np.uint8:
        got = f"{labels.shape} of {labels.dtype}"
        raise DataError(f"labels: got {got}, expected {shape} of uint8, one for each voxel")
    if labels.size and labels.max() >= classes:
        raise DataError(f"labels: got class {labels.max()}, expected 0…{classes - 1}")
    return replace(segmentation, labels=labels, confidence=None, soft=None, assessment=None)


def changed_voxels(
    before: np.ndarray, after: np.ndarray, classes: Sequence[SegClass]
) -> dict[str, int]:
    """ "from → to": how many voxels went from one class to another; {} where nothing changed."""
    matrix = metrics.confusion(before, after, len(classes))
    return {
        f"{classes[a].name} → {classes[b].name}": int(matrix[a, b])
        for a, b in zip(*np.nonzero(matrix), strict=True)
        if a != b
    }


def keep_case(
    segmentation: Segmentation,
    corrected: np.ndarray,
    entry: Entry,
    folder: Path,
    *,
    model_name: str,
    model: Path | None = None,
) -> KeptCase:
    """Keep a scan and its mask as a training case of the data set in `folder`.

    segmentation: the model's own result; corrected: (I, J, K) uint8 class indices, which become the
    mask. entry: the scan's files, of which voxels and place are kept, not what their headers say.
    model: what the model was loaded from. The same scan kept again replaces its mask; the earlier
    one goes into replaced/ under a number. Whoever reads the folder meanwhile, or after a crash,
    finds it with the case or as it was. A new folder is readable by its owner alone.

    Raises DataError for a scan that the data set can't hold, for labels that do not fit, for the
    model's own result where another mask of the scan is kept, and for a folder of other classes or
    of another data set; OutputError where nothing can be written.
    """
    final = with_labels(segmentation, corrected)
    if len(entry.paths) > 1 and not segmentation.scan.files:
        problem = f"{len(entry.paths)} files make this scan, one a channel; cases.csv holds one"
        raise DataError(f"{problem} image a case; add it to an nnU-Net data set (imagesTr) instead")
    changed = changed_voxels(segmentation.labels, corrected, segmentation.classes)
    with suppress(OSError):  # require_writable says what is wrong
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_writable(folder)
    with _locked(folder):
        _require_ours(folder, segmentation.classes)
        try:
            return _keep(final, changed, entry, folder, model_name, model)
        except OSError as error:
            raise OutputError(f"{folder}: can't be written ({error.strerror})") from error
        finally:
            for leftover in (p for part in _PARTS for p in (folder / part).glob(".new.*")):
                leftover.unlink(missing_ok=True)


def _keep(
    final: Segmentation,
    changed: dict[str, int],
    entry: Entry,
    folder: Path,
    model_name: str,
    model: Path | None,
) -> KeptCase:
    images, masks = (folder / part for part in _PARTS)
    images.mkdir(exist_ok=True)
    masks.mkdir(exist_ok=True)
    image, on_disk = _store(final.scan, entry, images)
    digest = sha256(image)
    case = f"case-{digest[:_DIGITS]}"
    mask = masks / f".new{output_suffix(image)}"
    write_segmentation(replace(final, scan=on_disk), mask)
    line = {
        "case": case,
        "kept": datetime.now(UTC).isoformat(timespec="seconds"),
        "segapp": segapp.__version__,
        "model": model_name,
        "model_sha256": _model_hash(model),
        "image_sha256": digest,
        "mask_sha256": sha256(mask),
        "changed": changed,
        "warnings": [_nameless(w, entry) for w in dict.fromkeys(final.warnings)],
    }
    named = {
        part: f"{part}/{case}{p.name.removeprefix('.new')}"
        for part, p in zip(_PARTS, (image, mask), strict=True)
    }
    table, record = folder / "cases.csv", folder / "provenance.jsonl"
    rows = [row for _, row in table_rows(table)] if table.exists() else []
    row = {"image": named["images"], "mask": named["masks"], "split": ""}
    row["patient"] = _patient(entry, case, _key(folder))
    earlier = next((r for r in rows if _is_of(r["image"], case)), None)
    old_mask = None if earlier is None else folder / earlier["mask"]
    if old_mask is not None and old_mask.exists() and sha256(old_mask) != line["mask_sha256"]:
        if not changed:
            problem = f"another mask of this scan is kept there already ({case}), and nothing was"
            raise DataError(f"{problem} corrected here; it stays as it is")
        line["replaced"] = _set_aside(old_mask, folder / _REPLACED, case)
    # The record comes first: a line whose mask is not there tells of a crash, and of nothing lost.
    before = record.read_text(encoding="utf-8") if record.exists() else ""
    write_text(record, before + json.dumps(line, ensure_ascii=False) + "\n")
    if not table.exists():
        lines = (f"{c.value} {c.name}\n" for c in final.classes)
        write_text(folder / "classes.txt", "".join(lines))
    image.replace(folder / row["image"])
    mask.replace(folder / row["mask"])  # of an earlier case this is the moment
    if earlier is None:
        rows.append(row)
    else:  # somebody may have set patient and split, and added columns
        row |= {"patient": earlier.get("patient", ""), "split": earlier.get("split", "")}
        old = [earlier["image"], earlier["mask"]]
        rows[rows.index(earlier)] = earlier | row
    write_table(table, list(dict.fromkeys([*_COLUMNS, *(k for r in rows for k in r)])), rows)
    if earlier is not None:
        for path in {*old} - {row["image"], row["mask"]}:  # the format's suffix was another one
            (folder / path).unlink(missing_ok=True)
    return KeptCase(folder, case, len(rows), sum(changed.values()), earlier is not None)


def _set_aside(mask: Path, folder: Path, case: str) -> str:
    """Copy a mask to CASE-NUMBER in `folder`; the path below the data set's folder."""
    folder.mkdir(exist_ok=True)
    suffix, number = known_suffix(mask), 1
    while (target := folder / f"{case}-{number}{suffix}").exists():
        number += 1
    with atomic_path(target) as temporary:
        shutil.copyfile(mask, temporary)
    return target.relative_to(folder.parent).as_posix()


def _store(scan: Scan, entry: Entry, images: Path) -> tuple[Path, Scan]:
    """images/.new.SUFFIX with the scan's voxels and place alone, as headers may name the patient,
    and what is read back from it; a copy of the file where no other format holds the scan (a stack
    without a place in space). Raises DataError."""
    try:
        image = write_scan(scan, images, ".new")
    except OutputError as error:
        path = entry.paths[0]
        suffix = known_suffix(path) or SUFFIXES.get(file_kind(path), ("",))[0]
        if file_kind(path) not in _COPIED or any(NOT_FINITE in w for w in scan.warnings):
            problem = _nameless(str(error), entry)
            raise DataError(f"this scan can't be kept: {problem}") from error
        image = images / f".new{suffix}"
        with open_binary(path) as source, image.open("wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
    stored = read_scan(image)
    if not np.array_equal(stored.voxels, scan.voxels):
        raise DataError("this scan can't be kept: it would not be the same when read again")
    return image, stored


def _patient(entry: Entry, case: str, key: bytes) -> str:
    """A label for whose scan this is, the same for all of a patient's, that names nobody."""
    guess = patient_by_folder(entry.name)
    owner = dicom_owner(entry.paths[0]) or (guess if guess != entry.name else "")
    if not owner:
        return case
    digest = hmac.digest(key, owner.encode("utf-8", "replace"), hashlib.sha256)
    return f"patient-{digest.hex()[:_DIGITS]}"


def _key(folder: Path) -> bytes:
    """What labels of patients are made with: without it nobody can try out whose they are."""
    path = folder / ".key"
    if not path.exists():
        with atomic_path(path, mode=0o600) as temporary:
            temporary.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()


def _require_ours(folder: Path, classes: Sequence[SegClass]) -> None:
    """Refuse a folder of another data set, and one of other classes. Raises DataError."""
    wanted = {c.name: c.value for c in classes}
    if any(n.splitlines() != [n] or n != n.strip() for n in wanted):
        raise DataError(
            "a class of this model has a name that classes.txt can't hold (line breaks)"
        )
    if (folder / "cases.csv").exists():
        names, _, where = declared_classes(folder)
        if names != wanted:
            told = f"the classes {_told(names)}" if names else "no classes"
            problem = f"{where}: declares {told}, this model has {_told(wanted)}"
            raise DataError(f"{problem}; {_ELSEWHERE}")
        return
    ours = [folder / name for name in _OWN]
    found = [p for p in folder.iterdir() if not p.name.startswith(".") and p not in ours]
    found += [p for part in _PARTS for p in (folder / part).glob("[!.]*") if not _is_of(p, "case-")]
    if found:
        problem = f"{folder}: holds other files ({found[0].name}) and no cases.csv"
        raise DataError(f"{problem}; {_ELSEWHERE}")


def _told(names: dict[str, int] | dict[str, int | None]) -> str:
    return ", ".join(n if value is None else f"{value} {n}" for n, value in names.items())


def _is_of(image: str | Path, case: str) -> bool:
    return Path(image).name.startswith(case)


def _model_hash(model: Path | None) -> str | None:
    """SHA-256 of the weights; None where they are no file of ours."""
    path = None if model is None else model / MODEL_NAME if model.is_dir() else model
    return sha256(path) if path is not None and path.is_file() else None


def _nameless(text: str, entry: Entry) -> str:
    """A message without the names of the scan's files and folders."""
    places = (entry.source, *entry.paths)
    names = {str(p) for p in places} | {p.name for p in places} | {Path(entry.name).name}
    longest = sorted((n for n in names if len(n) > 2), key=len, reverse=True)
    for name in longest:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "the scan", text)
    return text


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One at a time in a folder, over threads and processes; the system lets go after a crash."""
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise OutputError(f"{folder}: can't be locked ({error.strerror})") from error
        yield
