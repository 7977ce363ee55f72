"""The cases of a data set: found, divided into splits, their mask values turned into classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from segapp.declared import Names
from segapp.errors import ScanError
from segapp.files import sha256
from segapp.finding import refuse
from segapp.formats.source import beside, head, open_binary
from segapp.layout import Case, Dataset, list_cases
from segapp.scan import SegClass, called_by, make_classes

IGNORE_INDEX = 255  # a label that counts nowhere: not in the loss, not in the metrics
_UNKNOWN = 254  # marks a pixel that no class has claimed yet
LARGEST_VALUE, MOST_CLASSES = 65535, 250


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
    """SHA-256 of a case's image, as `files_hash` has it. Raises ScanError."""
    return files_hash(case.images)


def files_hash(paths: Sequence[Path]) -> str:
    """SHA-256 of a scan's file; of several files, and of a header with its file of voxels, that of
    theirs. Raises ScanError."""
    hashes = [file_hash(part) for path in paths for part in (path, *_detached(path))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _detached(path: Path) -> tuple[Path, ...]:
    """The file of voxels beside a header of MetaImage or NRRD that names one; none for others."""
    if path.suffix.lower() not in (".mhd", ".nhdr"):
        return ()
    try:
        lines = head(path, 1 << 16).decode("latin-1").splitlines()
    except OSError:  # reading the header says what is wrong
        return ()
    for line in lines:
        key, _, name = line.replace(":", "=", 1).partition("=")
        if key.strip().lower() in ("elementdatafile", "data file", "datafile"):
            with suppress(ScanError):  # reading it says what is wrong
                return (beside(path, name.strip()),)
    return ()


def file_hash(path: Path) -> str:
    """SHA-256 of a file or of an archive's member. Raises ScanError."""
    try:
        if path.is_file():
            return sha256(path)
        with open_binary(path) as member:
            return hashlib.sha256(member.read()).hexdigest()
    except OSError as error:
        raise ScanError(path, f"can't be read ({error.strerror or error})") from error


def with_val_split(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Carve a missing `val` out of `train` by patient, at random with `seed`.

    Cases without a split count as `train`. A data set that has a val split is returned as it is.
    Raises ScanError where there are fewer than two patients.
    """
    cases = tuple(c if c.split else replace(c, split="train") for c in dataset.cases)
    if any(c.split == "val" for c in cases):
        return replace(dataset, cases=cases)
    patients = sorted({c.patient for c in cases if c.split == "train"})
    if len(patients) < 2:
        problem = f"{len(patients)} patient in train, and no val split"
        remedy = (
            "at least 2 are needed to set some aside (add val/, or a cases.csv with "
            "image,mask,patient,split)"
        )
        raise ScanError(dataset.root, problem, "val-split", remedy)
    n_val = min(len(patients) - 1, max(1, round(share * len(patients))))
    chosen = {("train", p) for p in np.random.default_rng(seed).permutation(patients)[:n_val]}
    cases = tuple(replace(c, split="val") if (c.split, c.patient) in chosen else c for c in cases)
    note = f"no val split: {n_val} of {len(patients)} training patients set aside (seed {seed})"
    return replace(dataset, cases=cases, notes=(*dataset.notes, note))


def declared_names(dataset: Dataset, names: list[str] | None) -> Names | None:
    """`names` (data.classes), which win over what the data set declares, or that. The same names as
    the data set's own, as of a resumed run, keep its values."""
    with_values = {n for n, value in (dataset.class_names or {}).items() if value is not None}
    return dict.fromkeys(names) if names and set(names) != with_values else dataset.class_names


def choose_classes(
    dataset: Dataset, values: list[int], names: list[str] | None
) -> tuple[SegClass, ...]:
    """The classes and the mask values that stand for them, given the values that masks hold.

    Names (see `declared_names`) without values: the values 0…n-1 where every mask value is one of
    these, else the sorted values found, if there are as many. No names at all: one class for each
    value found. Raises ScanError (kind "classes") for two classes of one value, fewer than two or
    more than 250, and values beyond 0…65535.
    """
    declared = declared_names(dataset, names)
    if declared is None:
        classes = make_classes([called_by(v) for v in values], values)
    elif declared and None not in declared.values():
        ordered = sorted(declared.items(), key=lambda item: item[1] or 0)
        classes = make_classes([n for n, _ in ordered], [int(v or 0) for _, v in ordered])
    elif fits_by_number(values, declared):
        classes = make_classes(list(declared), values)  # e.g. 0/255 for background, lesion
    else:
        classes = make_classes(list(declared), list(range(len(declared))))
    problem, remedy = "", "correct the names, or give them in data.classes"
    if len({c.value for c in classes}) < len(classes):
        problem = "two classes are declared with the same mask value"
    elif len(classes) < 2 and declared is not None:
        problem = f"names {len(classes) or 'no'} class, at least 2 are needed"
        remedy = "name the background and what to segment"
    elif len(classes) < 2:
        problem, remedy = f"the masks hold one value only ({values})", "nothing to learn"
    elif len(classes) > MOST_CLASSES or any(not 0 <= c.value <= LARGEST_VALUE for c in classes):
        problem = f"mask values must lie in 0…{LARGEST_VALUE}, at most {MOST_CLASSES} of them"
    if problem:
        raise ScanError(place_of_names(dataset, names), problem, "classes", remedy)
    return classes


def fits_by_number(values: list[int], declared: Names) -> bool:
    """Whether names without values stand for the values found, not for 0…n-1."""
    return len(values) == len(declared) and not set(values) <= set(range(len(declared)))


def place_of_names(dataset: Dataset, names: list[str] | None) -> Path:
    """The file that declares the classes; the data set where data.classes or nothing does."""
    own = dataset.declared_in if declared_names(dataset, names) is dataset.class_names else None
    return own or dataset.root


def labels_to_indices(
    mask: np.ndarray,
    classes: tuple[SegClass, ...],
    ignore: int | None,
    merged: tuple[int, ...] = (),
) -> np.ndarray:
    """Mask values → class indices as uint8; IGNORE_INDEX where the mask has `ignore`.

    merged: mask values of classes that are not learned, and count as the background (index 0).
    Raises ValueError naming a value that belongs to no class.
    """
    result = np.full(mask.shape, _UNKNOWN, np.uint8)
    for value in merged:
        result[mask == value] = 0
    for index, seg_class in enumerate(classes):
        result[mask == seg_class.value] = index
    if ignore is not None:
        result[mask == ignore] = IGNORE_INDEX
    unknown = mask[result == _UNKNOWN]
    if unknown.size:
        raise ValueError(f"mask value {unknown[0]} is outside the classes")
    return result
