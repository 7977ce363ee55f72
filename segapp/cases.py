"""The cases of a data set: found, divided into splits, their mask values turned into classes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from segapp.errors import DataError, ScanError
from segapp.files import sha256
from segapp.finding import Finding, refuse, sinking
from segapp.formats.source import open_binary
from segapp.layout import Case, Dataset, list_cases
from segapp.scan import SegClass, make_classes

IGNORE_INDEX = 255  # a label that counts nowhere: not in the loss, not in the metrics
_UNKNOWN = 254  # marks a pixel that no class has claimed yet
_LARGEST, _MOST = 65535, 250  # mask value, number of classes


def find_cases(root: Path) -> Dataset:
    """As `list_cases`, but raise DataError for the first problem that sinks a training, such as an
    image without a mask. A mask without an image is noted."""
    dataset = list_cases(root)
    refuse(dataset.problems)
    if not dataset.problems:
        return dataset
    unused = f"{len(dataset.problems)} masks have no image, such as {dataset.problems[0].path}"
    return replace(dataset, notes=(*dataset.notes, unused))


def image_hash(case: Case) -> str:
    """SHA-256 of a case's image; of several files, that of theirs. Raises OSError."""
    hashes = [file_hash(path) for path in case.images]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file or of an archive's member. Raises OSError."""
    if path.is_file():
        return sha256(path)
    with open_binary(path) as member:
        return hashlib.sha256(member.read()).hexdigest()


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
    """`choose_classes`, but raise DataError naming a mask with a value outside the classes.

    first_seen: every value that the masks hold → a mask that holds it.
    """
    values = sorted(set(first_seen) - {ignore})
    refuse(outside([v], first_seen[v], None) for v in values if not 0 <= v <= _LARGEST)
    classes = choose_classes(dataset, values, names)
    refuse(
        outside([v], first_seen[v], classes) for v in values if v not in {c.value for c in classes}
    )
    return classes


def outside(values: list[int], mask: Path, classes: tuple[SegClass, ...] | None) -> Finding:
    """What to say of a mask with `values` that none of the classes has, or no class may have."""
    shown = "mask value " + ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
    remedy = "name every value in data.classes, or leave one out with data.ignore"
    if classes is None:
        problem = f"{shown} lies beyond what a mask may hold, 0…{_LARGEST}"
    else:
        known = ", ".join(f"{c.value} {c.name}" for c in classes)
        problem = f"{shown} is outside the classes ({known})"
    return sinking("mask-value", mask, problem, remedy)


def choose_classes(
    dataset: Dataset, values: list[int], names: list[str] | None
) -> tuple[SegClass, ...]:
    """The classes and the mask values that stand for them, given the values that masks hold.

    `names` (data.classes) wins over what the data set declares. Names without values: the values
    0…n-1 where every mask value is one of these, else the sorted values found, if there are as
    many. No names at all: one class for each value found. Raises ScanError (kind "classes") for
    two classes of one value, fewer than two or more than 250, and values beyond 0…65535.
    """
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
    problem = ""
    if len({c.value for c in classes}) < len(classes):
        problem = "two classes are declared with the same mask value"
    elif len(classes) < 2:
        problem = f"the masks hold one value only ({values})"
    elif len(classes) > _MOST or any(not 0 <= c.value <= _LARGEST for c in classes):
        problem = f"mask values must lie in 0…{_LARGEST}, at most {_MOST} of them"
    if problem:
        raise ScanError(dataset.root, problem, "classes")
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
