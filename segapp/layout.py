"""Which image belongs to which mask, patient and split, for every layout the contract names."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

from segapp.declared import Names, dataset_json, declared_classes, read_text
from segapp.errors import DataError, ScanError
from segapp.finding import Finding, finding_of, sinking
from segapp.formats import Entry, find_scans, stem

SPLITS = ("train", "val", "test")
_NO_MASK = "add the mask, or remove the image"
_SLICE_NUMBER = re.compile(r"([_-]?(slice|slc|frame)|(^|[_-])z)[_-]?\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One labelled scan. `images`: one file, or several (channels, a series); `split` is "" where
    none is set; `declared`: whose it is by the data set's own word, "" where `patient` is a guess.
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
    declares names only (in the order of their values); None where it declares nothing. problems:
    what is no case because of a missing file, a name that is taken, a line that says nothing.
    """

    root: Path
    cases: tuple[Case, ...]
    class_names: Names | None = None
    ignore: int | None = None
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
    masks). What can't be paired is in `problems`. Raises DataError where there is none of these
    layouts, or where it holds no image.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the folder of a data set")
    if (root / "cases.csv").is_file():
        dataset = _from_csv(root)
    elif any((root / split).is_dir() for split in SPLITS):
        parts = [_from_folders(root / s, s, root) for s in SPLITS if (root / s).is_dir()]
        cases = tuple(case for part in parts for case in part.cases)
        notes = tuple(note for part in parts for note in part.notes)
        problems = tuple(problem for part in parts for problem in part.problems)
        dataset = replace(parts[0], root=root, cases=cases, notes=notes, problems=problems)
    else:
        dataset = _from_folders(root, "", root)
    if not dataset.cases and not dataset.problems:
        raise DataError(f"{root}: holds no images; expected images/ + masks/ or a cases.csv")
    dataset = replace(dataset, cases=_with_unique_names(dataset.cases, root))
    try:
        names, ignore = declared_classes(root)
    except ScanError as error:
        return replace(dataset, problems=(*dataset.problems, finding_of(error)))
    return replace(dataset, class_names=names, ignore=ignore)


def _with_unique_names(cases: tuple[Case, ...], root: Path) -> tuple[Case, ...]:
    """nnU-Net's imagesTr and imagesTs may number their cases alike: then the folder tells them."""
    if len({c.name for c in cases}) == len(cases):
        return cases
    folders = (c.images[0].parent.relative_to(root).as_posix() for c in cases)
    return tuple(replace(c, name=f"{f}/{c.name}") for c, f in zip(cases, folders, strict=True))


def _from_csv(root: Path) -> Dataset:
    path = root / "cases.csv"
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    cases: list[Case] = []
    problems: list[Finding] = []
    lines: dict[str, int] = {}  # name → line
    for row in reader:
        if not {"image", "mask"} <= set(row):
            break
        row = {key: value.strip() for key, value in row.items() if key and value}
        where, split = f"({path.name} line {reader.line_num})", row.get("split", "")
        if split not in ("", *SPLITS):
            problem = f"split {split!r} is not train, val or test {where}"
            problems.append(sinking("split", path, problem, "write one of these, or nothing"))
            split = ""
        image, mask = root / row.get("image", ""), root / row.get("mask", "")
        name = (Path(row.get("image", "")).parent / stem(image)).as_posix()
        if not image.exists() or not row.get("image"):
            problem, remedy = f"image is missing {where}", "add it, or remove the line"
            problems.append(sinking("image-missing", image, problem, remedy))
        elif not mask.is_file() or not row.get("mask"):
            problem = f"its mask is missing; looked for {mask} {where}"
            problems.append(sinking("mask-missing", image, problem, _NO_MASK))
        elif lines.setdefault(name, reader.line_num) != reader.line_num:
            problem = f"its name stands in line {lines[name]} already {where}"
            problems.append(sinking("duplicate-name", image, problem, "list each image once"))
        else:
            patient = row.get("patient", "")
            cases.append(Case(name, _files(image), mask, patient or name, split, patient))
    if not cases and not problems:
        raise DataError(f"{path}: expected a header image,mask[,patient,split] and lines below it")
    return Dataset(root, tuple(cases), problems=tuple(problems))


def _from_folders(folder: Path, split: str, root: Path) -> Dataset:
    if (folder / "imagesTr").is_dir():
        return _from_nnunet(folder, split, root)
    images, masks = folder / "images", folder / "masks"
    missing = next((part.name for part in (images, masks) if not part.is_dir()), None)
    if (split, missing) == ("test", "masks"):
        return Dataset(root, (), notes=(f"{folder}: left out, it has no masks",))
    if missing:
        raise DataError(
            f"{folder}: {missing}/ is missing; expected images/ + masks/ (same stems), "
            "imagesTr/ + labelsTr/ + dataset.json, train/ val/ test/ above these, or cases.csv"
        )
    prefix = f"{folder.relative_to(root).as_posix()}/" if folder != root else ""
    cases, problems = _pair(find_scans(images), masks, split, prefix)
    return Dataset(root, _guess_patients(cases), problems=tuple(problems))


def _files(image: Path) -> tuple[Path, ...]:
    """The files of the one series that a folder holds; anything else is left to the reader."""
    entries = find_scans(image) if image.is_dir() else []
    return entries[0].paths if len(entries) == 1 else (image,)


def _pair(
    entries: list[Entry], masks: Path, split: str, prefix: str = ""
) -> tuple[list[Case], list[Finding]]:
    images, problems = _by_name(entries)
    by_name, taken = _by_name(find_scans(masks))
    problems += taken
    cases = []
    for name, paths in images.items():
        if name in by_name:
            cases.append(Case(prefix + name, paths, by_name[name][0], name, split))
        else:
            problem = f"its mask is missing; looked for {masks / name}.*"
            problems.append(sinking("mask-missing", paths[0], problem, _NO_MASK))
    for name in sorted(set(by_name) - set(images)):
        problem, remedy = f"no image is called {name}", "add it, or remove the mask"
        problems.append(Finding("error", "image-missing", by_name[name][0], problem, remedy))
    return cases, problems


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
    _, info = dataset_json(folder, root)
    channels = info.get("channel_names") or info.get("modality") or {"0": "image"}
    masks = {entry.name for entry in find_scans(folder / "labelsTr")}
    names = {entry.name for entry in find_scans(folder / "imagesTr")} - masks
    # nnU-Net numbers every channel's file, also a single one; MSD leaves the number out.
    numbered = any(re.search(r"_\d{4}$", name) for name in names)
    channel_files = len(channels) if numbered else 1
    cases: list[Case] = []
    problems: list[Finding] = []
    for part, name in (("Tr", split), ("Ts", "test")):
        images, labels = folder / f"images{part}", folder / f"labels{part}"
        if part == "Ts" and not (images.is_dir() and labels.is_dir()):
            continue
        entries = find_scans(images, channel_files)
        if numbered and channel_files == 1:
            entries = [Entry(e.name.removesuffix("_0000"), e.paths) for e in entries]
        paired, found = _pair(entries, labels, name)
        cases += (replace(c, declared=c.name) for c in _guess_patients(paired))
        problems += found
    return Dataset(folder, tuple(cases), channel_files=channel_files, problems=tuple(problems))


def _guess_patients(cases: list[Case]) -> tuple[Case, ...]:
    """Slices of one patient must stay in one split: group by subfolder, or by "…_slice012".

    Where that makes one patient of all, each case is taken as a patient of its own.
    """

    def by_name(case: Case) -> str:
        folder, slash, name = case.patient.rpartition("/")
        return folder + slash + (_SLICE_NUMBER.sub("", name) or name)

    def by_folder(case: Case) -> str:
        return case.patient.rpartition("/")[0] or by_name(case)

    for patient in (by_folder, by_name):
        guessed = [replace(case, patient=patient(case)) for case in cases]
        if len({c.patient for c in guessed}) > 1:
            return tuple(guessed)
    return tuple(cases)
