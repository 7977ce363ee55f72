"""Which image belongs to which mask, patient and split, for every layout the contract names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from segapp.declared import Names, channel_count, dataset_json, declared_classes, read_text
from segapp.errors import ScanError
from segapp.finding import Finding, finding_of, sinking
from segapp.formats import Entry, find_scans, stem
from segapp.formats.listing import file_kind, known_suffix

SPLITS = ("train", "val", "test")
_NO_MASK = "add the mask, or remove the image"
_NAMED = 5  # folders of a data set whose layout is not known
_SAVE_AS = "save it as PNG, TIFF, NIfTI or NRRD"
_HEADER = "expected a header image,mask[,patient,split] and lines below it"
_SLICE_NUMBER = re.compile(r"(([_-]?(slice|slc|frame)|(^|[_-])z)[_-]?\d+)+$", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One labelled scan. `images`: one file, or several (channels, a series); `split` is "" where
    none is set; `declared`: whose it is by the data set's own word (a number for whom a DICOM
    header names), "" where `patient` is a guess.
    """

    name: str
    images: tuple[Path, ...]
    mask: Path
    patient: str
    split: str = ""
    declared: str = ""


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder, and what the folder itself says about its classes.

    class_names maps name → mask value where the data set declares both, name → None where it
    declares names only (in the order of their values); None where it declares nothing. declared_in:
    the file that does. problems: what is no case because of a missing file, a name that is taken, a
    line that says nothing.
    """

    root: Path
    cases: tuple[Case, ...]
    class_names: Names | None = None
    ignore: int | None = None
    declared_in: Path | None = None
    channel_files: int = 1
    notes: tuple[str, ...] = ()
    problems: tuple[Finding, ...] = ()

    def split(self, name: str) -> tuple[Case, ...]:
        """Cases of one split, or of all of them for "all"."""
        return tuple(c for c in self.cases if name in ("all", c.split))


def list_cases(root: Path) -> Dataset:
    """Recognise the layout below `root` and pair images with masks.

    Layouts: `cases.csv`; `images/` + `masks/`; nnU-Net or MSD (`imagesTr/`, `labelsTr/`,
    `dataset.json`); either of the last two below `train/`, `val/`, `test/` (left out if it has no
    masks). What can't be paired is in `problems`. Raises ScanError where there is none of these
    layouts, where it holds no image, and where its table can't be used.
    """
    if not root.is_dir():
        raise ScanError(root, "no such folder", "layout", "expected the folder of a data set")
    if (root / "cases.csv").is_file():
        dataset = _from_csv(root)
    else:
        splits = [split for split in SPLITS if (root / split).is_dir()]
        parts = [_from_folders(root / s, s, root) for s in splits or [""]]
        cases = _guess_patients([case for part in parts for case in part.cases])
        notes = tuple(note for part in parts for note in part.notes)
        problems = tuple(problem for part in parts for problem in part.problems)
        dataset = replace(parts[0], root=root, cases=cases, notes=notes, problems=problems)
    if not dataset.cases and not dataset.problems:
        remedy = "expected images/ + masks/ or a cases.csv"
        raise ScanError(root, "holds no images", "layout", remedy)
    dataset = replace(dataset, cases=_with_unique_names(_dicom_patients(dataset.cases), root))
    try:
        names, ignore, declared_in = declared_classes(root)
    except ScanError as error:
        return replace(dataset, problems=(*dataset.problems, finding_of(error)))
    return replace(dataset, class_names=names, ignore=ignore, declared_in=declared_in)


def _with_unique_names(cases: tuple[Case, ...], root: Path) -> tuple[Case, ...]:
    """nnU-Net's imagesTr and imagesTs may number their cases alike: then the folder tells them."""
    if len({c.name for c in cases}) == len(cases):
        return cases
    folders = (c.images[0].parent.relative_to(root).as_posix() for c in cases)
    return tuple(replace(c, name=f"{f}/{c.name}") for c, f in zip(cases, folders, strict=True))


def _from_csv(root: Path) -> Dataset:
    path = root / "cases.csv"
    cases: list[Case] = []
    problems: list[Finding] = []
    lines: dict[str, int] = {}  # name → line
    wrong: dict[str, list[int]] = {}  # word for a split → lines
    for line, row in table_rows(path):
        where, image, mask = f"({path.name} line {line})", root / row["image"], root / row["mask"]
        split = row.get("split", "")
        if split not in ("", *SPLITS):
            wrong.setdefault(split, []).append(line)
            split = ""
        name = (Path(row["image"]).parent / stem(image)).as_posix()
        try:
            has_image, has_mask = row["image"] and image.exists(), row["mask"] and mask.is_file()
        except OSError:  # a name that is too long for any file
            image, has_image, has_mask = path, False, False
        if not has_image:
            place, remedy = image if row["image"] else path, "add it, or remove the line"
            problems.append(sinking("image-missing", place, f"image is missing {where}", remedy))
        elif not has_mask:
            problem = f"its mask is missing; looked for {mask} {where}"
            problem = problem if row["mask"] else f"its mask is missing, none is named {where}"
            problems.append(sinking("mask-missing", image, problem, _NO_MASK))
        elif lines.setdefault(name, line) != line:
            problem = f"its name stands in line {lines[name]} already {where}"
            problems.append(sinking("duplicate-name", image, problem, "list each image once"))
        else:
            patient = row.get("patient", "")
            cases.append(Case(name, _files(image), mask, patient or name, split, patient))
    for word, at in wrong.items():
        where = f"line {at[0]}" + (f" and {len(at) - 1} more" if len(at) > 1 else "")
        problem = f"split {word!r} is not train, val or test ({where})"
        problems.append(sinking("split", path, problem, "write one of these, or nothing"))
    if not cases and not problems:
        raise ScanError(path, _HEADER, "layout", "list an image and its mask in each line")
    return Dataset(root, tuple(cases), problems=tuple(problems))


def table_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines of a cases.csv that say anything, and their numbers; columns by their names in
    lower case. Raises ScanError."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    try:
        given = list(reader.fieldnames or [])
        reader.fieldnames = [name.strip().lower() for name in given]
        if not {"image", "mask"} <= set(reader.fieldnames):
            for sign, mark in ((";", "semicolons"), ("\t", "tabs")):
                if sign in "".join(given):
                    problem = f"its columns are separated by {mark}, {_HEADER}"
                    raise ScanError(path, problem, "layout", "separate the columns by commas")
            raise ScanError(path, _HEADER, "layout", "name the columns in its first line")
        rows = [
            (reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader
        ]
        if broken := [line for line, row in rows if "\n" in row["image"] + row["mask"]]:
            raise csv.Error(f"a name goes on over several lines, up to line {broken[0]}")
    except csv.Error as error:
        remedy = "look for a quotation mark that is not closed"
        raise ScanError(path, f"is no sound table ({error})", "layout", remedy) from error
    return [(line, row) for line, row in rows if any(row.values())]


def _from_folders(folder: Path, split: str, root: Path) -> Dataset:
    if (folder / "imagesTr").is_dir():
        return _from_nnunet(folder, split, root)
    images, masks = folder / "images", folder / "masks"
    missing = next((part.name for part in (images, masks) if not part.is_dir()), None)
    if (split, missing) == ("test", "masks"):
        return Dataset(root, (), notes=(f"{folder}: left out, it has no masks",))
    if missing:
        problem = f"{missing}/ is missing"
        remedy = (
            "expected images/ + masks/ (files of the same names), imagesTr/ + labelsTr/ + "
            "dataset.json, train/ val/ test/ above these, or cases.csv"
        )
        if found := _folders_of_scans(folder):
            problem += f"; found {found}"
            remedy = (
                "rename what holds the images to images/ and what holds the masks to masks/ (files "
                "of the same names), or list them in a cases.csv (image,mask,patient,split); also "
                "read: imagesTr/ + labelsTr/ + dataset.json, and train/ val/ test/ above these"
            )
        raise ScanError(folder, problem, "layout", remedy)
    prefix = f"{folder.relative_to(root).as_posix()}/" if folder != root else ""
    cases, problems = _pair(images, find_scans(images), masks, split, prefix)
    return Dataset(root, tuple(cases), problems=tuple(problems))


def _folders_of_scans(folder: Path) -> str:
    """The folders in it that hold scans or masks: "us/ (122 files) and annot/ (120 files)"."""
    counts = {
        part.name: sum(1 for p in part.rglob("*") if known_suffix(p))
        for part in sorted(folder.iterdir())
        if part.is_dir()
    }
    shown = [f"{name}/ ({n} file{'s' * (n > 1)})" for name, n in counts.items() if n][:_NAMED]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)


def _files(image: Path) -> tuple[Path, ...]:
    """The files of the one series that a folder holds; anything else is left to the reader."""
    try:
        entries = find_scans(image) if image.is_dir() else []
    except ScanError:
        entries = []
    return entries[0].paths if len(entries) == 1 else (image,)


def _pair(
    images: Path, entries: list[Entry], masks: Path, split: str, prefix: str = ""
) -> tuple[list[Case], list[Finding]]:
    found, problems = _by_name(entries)
    by_name, taken = _by_name(find_scans(masks))
    problems += taken
    cases = []
    others = _not_read(masks) if set(found) - set(by_name) else {}
    for name, paths in found.items():
        if name in by_name:
            cases.append(Case(prefix + name, paths, by_name[name][0], name, split))
            continue
        problem, remedy = f"its mask is missing; looked for {masks / name}.*", _NO_MASK
        if name in others:
            problem, remedy = f"its mask {others[name]} is of a format that is not read", _SAVE_AS
        problems.append(sinking("mask-missing", paths[0], problem, remedy))
    alone = sorted(set(by_name) - set(found))
    others = _not_read(images) if alone else {}
    for name in alone:
        problem, remedy = f"no image is called {name}", "add it, or remove the mask"
        if name in others:
            problem, remedy = f"its image {others[name]} is of a format that is not read", _SAVE_AS
        problems.append(Finding("error", "image-missing", by_name[name][0], problem, remedy))
    return cases, problems


def _not_read(folder: Path) -> dict[str, Path]:
    """Files of other formats, by the name that their case would have."""
    files = [p for p in folder.rglob("*") if p.is_file() and not known_suffix(p)]
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in files}


def _by_name(entries: list[Entry]) -> tuple[dict[str, tuple[Path, ...]], list[Finding]]:
    found: dict[str, tuple[Path, ...]] = {}
    problems = []
    for entry in entries:
        twin = found.setdefault(entry.name, entry.paths)
        if twin != entry.paths:
            problem = f"has the same name as {twin[0]}"
            problems.append(sinking("duplicate-name", entry.paths[0], problem, "rename one"))
    return found, problems


def _from_nnunet(folder: Path, split: str, root: Path) -> Dataset:
    channels = channel_count(*dataset_json(folder, root))
    masks = {entry.name for entry in find_scans(folder / "labelsTr")}
    names = {entry.name for entry in find_scans(folder / "imagesTr")} - masks
    # nnU-Net numbers every channel's file, also a single one; MSD leaves the number out.
    numbered = any(re.search(r"_\d{4}$", name) for name in names)
    channel_files = channels if numbered else 1
    cases: list[Case] = []
    problems: list[Finding] = []
    for part, name in (("Tr", split), ("Ts", "test")):
        images, labels = folder / f"images{part}", folder / f"labels{part}"
        if part == "Ts" and not (images.is_dir() and labels.is_dir()):
            continue
        entries = find_scans(images, channel_files)
        if numbered and channel_files == 1:
            entries = [Entry(e.name.removesuffix("_0000"), e.paths) for e in entries]
        paired, found = _pair(images, entries, labels, name)
        cases += (replace(c, declared=c.name) for c in paired)
        problems += found
    return Dataset(folder, tuple(cases), channel_files=channel_files, problems=tuple(problems))


def _guess_patients(cases: list[Case]) -> tuple[Case, ...]:
    """Slices of one patient must stay in one split: group by subfolder, or by "…_slice012".

    Where that makes one patient of all, each case is taken as a patient of its own.
    """
    for patient_of in (patient_by_folder, patient_by_name):
        guessed = [replace(case, patient=patient_of(case.patient)) for case in cases]
        if len({c.patient for c in guessed}) > 1:
            return tuple(guessed)
    return tuple(cases)


def patient_by_name(name: str) -> str:
    """Whose a case is by its name: that without a slice's number ("p7_slice012" → "p7")."""
    folder, slash, name = name.rpartition("/")
    return folder + slash + (_SLICE_NUMBER.sub("", name) or name)


def patient_by_folder(name: str) -> str:
    """Whose a case is by its subfolder; by its name where it lies in none."""
    return name.rpartition("/")[0] or patient_by_name(name)


def _dicom_patients(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases, those of DICOM whose patient nothing else declares with a label for the patient
    that their header names, never the name itself. One name for all is an anonymiser's."""
    owners = {c.images: dicom_owner(c.images[0]) for c in cases if not c.declared}
    known = dict.fromkeys(owner for owner in owners.values() if owner)
    if len(known) < 2:
        return tuple(cases)
    taken = {c.patient for c in cases}
    labels = (label for n in count(1) if (label := f"patient{n}") not in taken)
    label_of = {"": ""} | dict(zip(known, labels, strict=False))
    found = ((c, label_of[owners.get(c.images, "")]) for c in cases)
    return tuple(replace(c, patient=who, declared=who) if who else c for c, who in found)


def dicom_owner(image: Path) -> str:
    """Whom a DICOM header names; "" where it names nobody, and for anything else."""
    try:
        if file_kind(image) != "dicom":
            return ""
        from segapp.formats.dicomfile import read_header, sober

        header = read_header(image, ["PatientID", "IssuerOfPatientID"])
        with sober(image):
            name = str(header.get("PatientID") or "").strip()
            return f"{name}\0{header.get('IssuerOfPatientID') or ''}" if name else ""
    except (ScanError, OSError):
        return ""
