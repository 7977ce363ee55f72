"""Which image belongs to which mask, patient and split, for every layout the contract names."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segapp.errors import DataError
from segapp.files import sha256
from segapp.formats import Entry, find_scans, stem
from segapp.scan import SegClass, make_classes

SPLITS = ("train", "val", "test")
IGNORE_INDEX = 255  # a label that counts nowhere: not in the loss, not in the metrics
_UNKNOWN = 254  # marks a pixel that no class has claimed yet
_SLICE_NUMBER = re.compile(r"([_-]?(slice|slc|frame)|(^|[_-])z)[_-]?\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One labelled scan. `images`: one file, or one a channel; `split` is "" where none is set."""

    name: str
    images: tuple[Path, ...]
    mask: Path
    patient: str
    split: str = ""


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder, and what the folder itself says about its classes.

    class_names maps name → mask value where the data set declares both, name → None where it
    declares names only (in the order of their values); None where it declares nothing.
    """

    root: Path
    cases: tuple[Case, ...]
    class_names: dict[str, int | None] | None = None
    ignore: int | None = None
    channel_files: int = 1
    notes: tuple[str, ...] = field(default=())

    def split(self, name: str) -> tuple[Case, ...]:
        """Cases of one split, or of all of them for "all"."""
        return tuple(c for c in self.cases if name in ("all", c.split))


def find_cases(root: Path) -> Dataset:
    """Recognise the layout below `root` and pair images with masks.

    Layouts: `cases.csv`; `images/` + `masks/`; nnU-Net or MSD (`imagesTr/`, `labelsTr/`,
    `dataset.json`); either of the last two below `train/`, `val/`, `test/` (left out if it has no
    masks). Raises DataError where there is none of these, where it holds no image, where two cases
    have one name, or where a mask is missing (naming the image and where it was looked for).
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the folder of a data set")
    if (root / "cases.csv").is_file():
        dataset = _from_csv(root)
    elif any((root / split).is_dir() for split in SPLITS):
        parts = [_from_folders(root / s, s, root) for s in SPLITS if (root / s).is_dir()]
        cases = tuple(case for part in parts for case in part.cases)
        notes = tuple(note for part in parts for note in part.notes)
        dataset = replace(parts[0], root=root, cases=cases, notes=notes)
    else:
        dataset = _from_folders(root, "", root)
    if not dataset.cases:
        raise DataError(f"{root}: holds no images; expected images/ + masks/ or a cases.csv")
    declared, ignore = _declared_labels(*_dataset_json(root, root))
    if declared is None and (root / "classes.txt").is_file():
        declared = _read_classes_txt(root / "classes.txt")
    cases = _with_unique_names(dataset.cases, root)
    return replace(dataset, cases=cases, class_names=declared, ignore=ignore)


def _with_unique_names(cases: tuple[Case, ...], root: Path) -> tuple[Case, ...]:
    """nnU-Net's imagesTr and imagesTs may number their cases alike: then the folder tells them."""
    if len({c.name for c in cases}) == len(cases):
        return cases
    folders = (c.images[0].parent.relative_to(root).as_posix() for c in cases)
    return tuple(replace(c, name=f"{f}/{c.name}") for c, f in zip(cases, folders, strict=True))


def image_hash(case: Case) -> str:
    """SHA-256 of a case's image; of several channel files, one after the other."""
    return "+".join(sha256(path) for path in case.images)


def with_val_split(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Carve a missing `val` out of `train` by patient, at random with `seed`.

    Cases without a split count as `train`. A data set that has a val split is returned as it is.
    Raises DataError where there are fewer than two patients.
    """
    cases = tuple(c if c.split else replace(c, split="train") for c in dataset.cases)
    if any(c.split == "val" for c in cases):
        return replace(dataset, cases=cases)
    patients = sorted({c.patient for c in cases if c.split == "train"})
    if len(patients) < 2:
        raise DataError(
            f"{dataset.root}: {len(patients)} patient in train, and no val split; at least 2 are "
            "needed to set some aside (add val/, or a cases.csv with image,mask,patient,split)"
        )
    n_val = min(len(patients) - 1, max(1, round(share * len(patients))))
    chosen = {("train", p) for p in np.random.default_rng(seed).permutation(patients)[:n_val]}
    cases = tuple(replace(c, split="val") if (c.split, c.patient) in chosen else c for c in cases)
    note = f"no val split: {n_val} of {len(patients)} training patients set aside (seed {seed})"
    return replace(dataset, cases=cases, notes=(*dataset.notes, note))


def find_classes(
    dataset: Dataset, first_seen: dict[int, Path], names: list[str] | None, ignore: int | None
) -> tuple[SegClass, ...]:
    """The classes and the mask values that stand for them.

    first_seen: every value that the masks hold → a mask that holds it. `names` (data.classes) wins
    over what the data set declares. Names without values: the values 0…n-1 where every mask value
    is one of these, else the sorted values found, if there are as many. No names at all: one class
    for each value found. Raises DataError naming a mask with a value outside the classes.
    """
    values = sorted(set(first_seen) - {ignore})
    declared = dataset.class_names
    with_values = {n for n, value in (declared or {}).items() if value is not None}
    if names and set(names) != with_values:  # the same names, as of a resumed run, keep the values
        declared = dict.fromkeys(names)
    if declared is None:
        titles = [("background" if v == 0 else f"class_{v}") for v in values]
        classes = make_classes(titles, values)
    elif all(value is not None for value in declared.values()):
        ordered = sorted(declared.items(), key=lambda item: item[1] or 0)
        classes = make_classes([n for n, _ in ordered], [int(v or 0) for _, v in ordered])
    elif len(values) == len(declared) and not set(values) <= set(range(len(declared))):
        classes = make_classes(list(declared), values)  # e.g. 0/255 for background, lesion
    else:
        classes = make_classes(list(declared), list(range(len(declared))))
    if len({c.value for c in classes}) < len(classes):
        raise DataError(f"{dataset.root}: two classes are declared with the same mask value")
    outside = [v for v in values if v not in {c.value for c in classes}]
    if outside:
        known = ", ".join(f"{c.value} {c.name}" for c in classes)
        raise DataError(
            f"{first_seen[outside[0]]}: mask value {outside[0]} is outside the classes ({known}); "
            "name every value in data.classes, or leave one out with data.ignore"
        )
    if len(classes) < 2:
        raise DataError(f"{dataset.root}: the masks hold one value only ({values})")
    wrong = [c.value for c in classes if not 0 <= c.value <= 65535]
    if wrong or len(classes) > 250:
        where = first_seen.get(wrong[0] if wrong else classes[-1].value, dataset.root)
        raise DataError(f"{where}: mask values must lie in 0…65535, at most 250 of them")
    return classes


def labels_to_indices(
    mask: np.ndarray, classes: tuple[SegClass, ...], ignore: int | None
) -> np.ndarray:
    """Mask values → class indices as uint8; IGNORE_INDEX where the mask has `ignore`.

    Raises ValueError naming a value that belongs to no class.
    """
    result = np.full(mask.shape, _UNKNOWN, np.uint8)
    for index, seg_class in enumerate(classes):
        result[mask == seg_class.value] = index
    if ignore is not None:
        result[mask == ignore] = IGNORE_INDEX
    unknown = mask[result == _UNKNOWN]
    if unknown.size:
        raise ValueError(f"mask value {unknown[0]} is outside the classes")
    return result


def _from_csv(root: Path) -> Dataset:
    path = root / "cases.csv"
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), skipinitialspace=True)
    cases: list[Case] = []
    lines: dict[str, int] = {}  # name → line
    for row in reader:
        if not {"image", "mask"} <= set(row):
            break
        row = {key: value.strip() for key, value in row.items() if key and value}
        where, split = f"({path.name} line {reader.line_num})", row.get("split", "")
        if split not in ("", *SPLITS):
            raise DataError(f"{path}: split {split!r} is not train, val or test {where}")
        image, mask = root / row.get("image", ""), root / row.get("mask", "")
        if not image.is_file():
            raise DataError(f"{image}: image is missing {where}")
        if not mask.is_file():
            raise DataError(f"{image}: its mask is missing; looked for {mask} {where}")
        name = (Path(row["image"]).parent / stem(image)).as_posix()
        if lines.setdefault(name, reader.line_num) != reader.line_num:
            raise DataError(f"{image}: its name stands in line {lines[name]} already {where}")
        cases.append(Case(name, (image,), mask, row.get("patient", name), split))
    if not cases:
        raise DataError(f"{path}: expected a header image,mask[,patient,split] and lines below it")
    return Dataset(root, tuple(cases))


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
    return Dataset(root, _guess_patients(_pair(find_scans(images), masks, split, prefix)))


def _pair(entries: list[Entry], masks: Path, split: str, prefix: str = "") -> tuple[Case, ...]:
    by_name = _by_name(find_scans(masks))
    cases = []
    for name, images in _by_name(entries).items():
        if name not in by_name:
            raise DataError(f"{images[0]}: its mask is missing; looked for {masks / name}.*")
        cases.append(Case(prefix + name, images, by_name[name][0], name, split))
    return tuple(cases)


def _by_name(entries: list[Entry]) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for entry in entries:
        twin = found.setdefault(entry.name, entry.paths)
        if twin != entry.paths:
            raise DataError(f"{entry.paths[0]}: has the same name as {twin[0]}; rename one")
    return found


def _from_nnunet(folder: Path, split: str, root: Path) -> Dataset:
    _, info = _dataset_json(folder, root)
    channels = info.get("channel_names") or info.get("modality") or {"0": "image"}
    masks = {entry.name for entry in find_scans(folder / "labelsTr")}
    names = {entry.name for entry in find_scans(folder / "imagesTr")} - masks
    # nnU-Net numbers every channel's file, also a single one; MSD leaves the number out.
    numbered = any(re.search(r"_\d{4}$", name) for name in names)
    channel_files = len(channels) if numbered else 1
    cases: list[Case] = []
    for part, name in (("Tr", split), ("Ts", "test")):
        images, labels = folder / f"images{part}", folder / f"labels{part}"
        if part == "Ts" and not (images.is_dir() and labels.is_dir()):
            continue
        entries = find_scans(images, channel_files)
        if numbered and channel_files == 1:
            entries = [Entry(e.name.removesuffix("_0000"), e.paths) for e in entries]
        cases += _guess_patients(_pair(entries, labels, name))
    return Dataset(folder, tuple(cases), channel_files=channel_files)


def _dataset_json(folder: Path, root: Path) -> tuple[Path, dict[str, Any]]:
    places = [place / "dataset.json" for place in (folder, root, root / "train")]
    path = next((path for path in places if path.is_file()), None)
    try:
        return (path, dict(json.loads(_read_text(path)))) if path else (places[0], {})
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: not readable as a JSON object ({error})") from error


def _declared_labels(
    path: Path, info: dict[str, Any]
) -> tuple[dict[str, int | None] | None, int | None]:
    """Name → mask value, and the value to ignore, as a dataset.json declares them."""
    labels = info.get("labels")
    if not labels:
        return None, None
    try:
        if all(str(key).lstrip("-").isdigit() for key in labels):  # MSD: {"0": "background"}
            return {str(name): int(value) for value, name in labels.items()}, None
        regions = [name for name, value in labels.items() if isinstance(value, list)]
        if regions:
            raise DataError(f"{path}: region-based labels ({regions[0]}) are not supported")
        named: dict[str, int | None] = {name: int(value) for name, value in labels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f'{path}: labels should be like {{"background": 0}}') from error
    return named, named.pop("ignore", None)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as UTF-8 text ({error})") from error


def _read_classes_txt(path: Path) -> dict[str, int | None]:
    """One class a line: a name, or a mask value and a name ("255 lesion")."""
    names: dict[str, int | None] = {}
    for line in _read_text(path).splitlines():
        if match := re.fullmatch(r"\s*(?:(\d+)[\s:,]+)?(\S.*?)\s*", line):
            if match[2] in names:
                raise DataError(f"{path}: names {match[2]!r} twice")
            names[match[2]] = int(match[1]) if match[1] else None
    if len({value is None for value in names.values()}) > 1:
        raise DataError(f"{path}: either every line starts with its mask value, or none does")
    return names


def _guess_patients(cases: tuple[Case, ...]) -> tuple[Case, ...]:
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
    return cases
