"""What the facts of all cases say: masks and images that do not belong to the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segapp.cases import (
    LARGEST_VALUE,
    choose_classes,
    declared_names,
    fits_by_number,
    place_of_names,
)
from segapp.errors import ScanError
from segapp.finding import Finding, counted, finding_of, sinking
from segapp.fingerprint import CaseFacts
from segapp.intervals import LEAST_PATIENTS
from segapp.layout import Dataset
from segapp.quality import LEAST_CASES
from segapp.scan import SegClass

_NAMED = 4  # classes in a note
_RARE_SHARE, _RARE_CASES = 1e-4, 3
_MANY_VALUES = 32
_SPACING_FACTOR = 1.5
_WHITE = (255, 65535)  # "on" in masks that were saved as pictures
_NAME_THEM = "name every value in classes.txt, dataset.json or data.classes, or data.ignore one"


def judge_classes(
    dataset: Dataset, facts: Sequence[CaseFacts], names: list[str] | None, ignore: int | None
) -> tuple[tuple[SegClass, ...], list[CaseFacts], list[Finding]]:
    """The classes, the cases whose masks hold only their values, and what is wrong with masks,
    declared classes and their frequency in training. () and none where classes can't be told."""
    found: list[Finding] = []
    within: list[CaseFacts] = []
    for f in facts:
        held = set(f.mask_counts) - {ignore}
        if beyond := _listed(v for v in held if not 0 <= v <= LARGEST_VALUE):
            problem = f"mask value {beyond} lies beyond what a mask may hold, 0…{LARGEST_VALUE}"
            found.append(sinking("mask-value", f.case.mask, problem, _NAME_THEM))
        else:
            within.append(f)
    declared = declared_names(dataset, names)
    values = _values(within, ignore)
    allowed, by_name = None, declared is not None and None in declared.values()
    if declared and not by_name:
        allowed = {v for v in declared.values() if v is not None} - {0}
    elif declared and not fits_by_number(values, declared):
        allowed = set(range(1, len(declared)))
    odd = odd_masks(within, allowed, ignore, by_name)
    their_masks = {f.path for f in odd}
    usual = [f for f in within if f.case.mask not in their_masks]
    if not usual:
        return (), [], found + odd
    if by_name and allowed and not set(values) <= allowed | {0}:
        values = _values(usual, ignore)
    try:
        classes = choose_classes(dataset, values, names)
    except ScanError as error:
        return (), [], [*found, *odd, finding_of(error)]
    known = {c.value for c in classes} | {ignore}
    in_code = [f for f in within if set(f.mask_counts) <= known]
    fitting = {f.case.mask for f in in_code}
    found += (replace(f, sinks=f.path not in fitting) for f in odd)
    found += _outside(usual, classes, known, place_of_names(dataset, names))
    if not declared and len(classes) > _MANY_VALUES:
        problem = f"the masks hold {len(classes)} values, and each counts as a class"
        remedy = "were they resampled with interpolation? If not, name the classes in classes.txt"
        found.append(Finding("warning", "many-classes", dataset.root, problem, remedy))
    if classes[0].value != 0 and 0 not in values:
        problem = f"no class has the mask value 0, so {classes[0].name} (value {classes[0].value})"
        problem += " is the background: it is not drawn, and not in Dice"
        remedy = "make sure that this is what you want"
        found.append(Finding("warning", "no-background", dataset.root, problem, remedy))
    training = [f for f in in_code if f.case.split == "train" and f.case.mask not in their_masks]
    if training and (declared or len(classes) <= _MANY_VALUES):
        seen = {c.value for c in classes} if declared else set(_values(usual, ignore))
        rows = [row for row in frequencies(training, classes)[1:] if row["value"] in seen]
        found += _rare_classes(rows, len(training), dataset.root)
    return classes, in_code, found


def _values(facts: Iterable[CaseFacts], ignore: int | None) -> list[int]:
    return sorted({v for f in facts for v in f.mask_counts} - {ignore})


def odd_masks(
    facts: Sequence[CaseFacts], allowed: set[int] | None, ignore: int | None, by_name: bool = False
) -> list[Finding]:
    """Masks that write their classes as other numbers than most do, such as 255 among masks of 1.

    Masks that share a foreground value are of one kind; what shares none with the largest kind is
    odd if it holds no `allowed` value (with `by_name` those of the largest kind, where that holds
    none of them) or, where nothing is declared (None), if one side is a picture's white and the
    other counts from 1, or its values are far beyond 1…n.
    """
    groups: list[tuple[set[int], list[CaseFacts]]] = []
    for f in facts:
        values, members = set(f.mask_counts) - {0, ignore}, [f]
        if not values:
            continue
        for group in [g for g in groups if g[0] & values]:
            values, members = values | group[0], group[1] + members
            groups.remove(group)
        groups.append((values, members))
    if len(groups) < 2:
        return []
    groups.sort(key=lambda g: (-len(g[1]), max(g[0])))
    most = groups[0][0]
    if allowed and by_name and not most & allowed:
        allowed = most
    most = most & allowed if allowed else most
    return [
        Finding(
            "error",
            "mask-values-differ",
            f.case.mask,
            f"holds the values {_listed(f.mask_counts)}, most masks {_listed(most | {0})}",
            "save it with the values that the others use",
        )
        for values, members in groups[1:]
        if (not values & allowed if allowed else _another_code(values, most))
        for f in members
    ]


def _another_code(values: set[int], most: set[int]) -> bool:
    count = len(most)
    return (
        (max(values) in _WHITE and max(most) < 128)
        or (max(most) in _WHITE and max(values) <= count)
        or (most == set(range(1, count + 1)) and min(values) > 2 * count + 1)
    )


def _outside(
    facts: Sequence[CaseFacts], classes: Sequence[SegClass], known: set[int | None], place: Path
) -> list[Finding]:
    """Masks with values of no class: each of them, but one finding at `place`, which declares the
    classes, for what most masks hold."""
    wrong = {f.case.mask: set(f.mask_counts) - known for f in facts}
    counts = Counter(v for values in wrong.values() for v in values)
    common = {v for v, n in counts.items() if 2 * n > len(facts)}
    alone = {mask: values - common for mask, values in wrong.items() if values - common}
    outside = f"outside the classes ({', '.join(f'{c.value} {c.name}' for c in classes)})"
    found = []
    if common and len(facts) > 1:
        mask = next(mask for mask, values in wrong.items() if values & common)
        problem = f"most masks hold mask value {_listed(common)}, {outside}, such as {mask}"
        found.append(sinking("mask-value", place, problem, _NAME_THEM))
        alone = alone if 2 * len(alone) < len(facts) else {}
    elif common:
        alone = wrong
    for mask, values in alone.items():
        problem = f"mask value {_listed(values)} is {outside}"
        found.append(sinking("mask-value", mask, problem, _NAME_THEM))
    return found


def _listed(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return ", ".join(map(str, ordered[:6])) + (", …" if len(ordered) > 6 else "")


def _rare_classes(rows: Sequence[dict[str, Any]], masks: int, root: Path) -> list[Finding]:
    """Those of these foreground classes that so many training masks hold hardly or not at all."""
    if not any(row["cases"] for row in rows):
        problem = "no training mask holds any foreground"
        return [sinking("class-missing", root, problem, "nothing to learn")]
    found = []
    for row in rows:
        n, what = row["cases"], f"class {row['name']} (mask value {row['value']}) is in "
        if n >= min(_RARE_CASES, masks) and row["share"] >= _RARE_SHARE:
            continue
        kind, problem = "class-missing", what + "no training mask"
        if n:
            kind, share = "class-rare", f"{100 * row['share']:.2g}% of the voxels"
            problem = f"{what}{n} training mask{'s' * (n > 1)}, {share}"
        remedy = "the model may not learn it; add cases, or leave the class out"
        found.append(Finding("warning", kind, root, problem, remedy))
    return found


def frequencies(facts: Sequence[CaseFacts], classes: Sequence[SegClass]) -> list[dict[str, Any]]:
    """Of each class its share of the voxels and the number of cases that hold it."""
    counts: Counter[int] = Counter()
    for f in facts:
        counts.update(f.mask_counts)
    total = sum(counts[c.value] for c in classes) or 1
    return [
        {
            "name": c.name,
            "value": c.value,
            "share": counts[c.value] / total,
            "cases": sum(c.value in f.mask_counts for f in facts),
        }
        for c in classes
    ]


def nothing_counted(facts: Sequence[CaseFacts], ignore: int | None, root: Path) -> list[Finding]:
    """The finding that validation would have no voxel to count, if that is so."""
    val = [f for f in facts if f.case.split == "val"]
    if not val or any(set(f.mask_counts) - {ignore} for f in val):
        return []
    problem = f"every voxel of the val masks is ignored ({ignore})"
    return [sinking("val-ignored", root, problem, "label some, or choose other cases for val")]


def other_channels(facts: Sequence[CaseFacts], channels: int, channel_files: int) -> list[Finding]:
    """Cases whose channels a model of `channels` can't take; grey and RGB adapt."""
    return [
        sinking(
            "channels-differ",
            f.case.images[0],
            f"has {counted(f.channels, 'channel')}, most training images {channels}",
            "bring all images to the same channels",
        )
        for f in facts
        if f.channels != channels and not (channel_files == 1 and {f.channels, channels} == {1, 3})
    ]


def empty_cases(facts: Sequence[CaseFacts], ignore: int | None) -> list[Finding]:
    """Images of one value, masks without any foreground."""
    found = []
    for f in facts:
        is_empty = not set(f.mask_counts) - {0, ignore}
        if is_empty:
            problem, remedy = "holds no foreground", "make sure that there is none in the image"
            found.append(Finding("warning", "empty-mask", f.case.mask, problem, remedy))
        if f.minimum == f.maximum:
            level = "warning" if is_empty else "error"
            problem = f"every voxel has the value {f.minimum:g}"
            remedy = "export it again, or remove the case"
            found.append(Finding(level, "constant-image", f.case.images[0], problem, remedy))
    return found


def mixed_cases(facts: Sequence[CaseFacts]) -> list[Finding]:
    """Types and spacings that differ from case to case."""
    found = []
    dtypes = Counter(f.dtype for f in facts)
    if len(dtypes) > 1:
        kinds = {np.dtype(d).kind for d in dtypes}
        kind = "bit-depth-mixed" if len(kinds) == 1 else "dtype-mixed"
        rarest = min(dtypes, key=lambda d: dtypes[d])
        path = next(f.case.images[0] for f in facts if f.dtype == rarest)
        said = ", ".join(f"{n} of {dtype}" for dtype, n in dtypes.most_common())
        remedy = "make sure that the same values mean the same in all of them"
        found.append(Finding("warning", kind, path, f"images differ in type: {said}", remedy))
    known = [(_pixel_mm(f), f.case.images[0]) for f in facts if f.spacing_mm]
    if known and len(known) < len(facts):
        path = next(f.case.images[0] for f in facts if not f.spacing_mm)
        count = len(facts) - len(known)
        problem = f"{count} of {len(facts)} images {'has' if count == 1 else 'have'} no spacing"
        remedy = "use a format that holds it, e.g. NIfTI"
        found.append(Finding("warning", "spacing-mixed", path, problem, remedy))
    if known and max(known)[0] > _SPACING_FACTOR * min(known)[0]:
        (low, _), (high, path) = min(known), max(known)
        problem = f"pixels measure {low:.3g} to {high:.3g} mm over the data set"
        remedy = "consider preprocess.spacing_mm=auto"
        found.append(Finding("warning", "spacing-mixed", path, problem, remedy))
    return found


def _pixel_mm(f: CaseFacts) -> float:
    mm = f.slice_spacings[f.thickest]
    return float(np.sqrt(mm[1] * mm[2])) if mm else 0.0


def few_patients(dataset: Dataset, set_aside: bool) -> list[Finding]:
    """The finding that val is too small for its figures, or for the model to judge results by, if
    that is so. set_aside: training has drawn it itself."""
    patients = {c.patient for c in dataset.cases if c.split in ("train", "val")}
    count = len(dataset.split("val"))
    if set_aside and 2 <= len(patients) < LEAST_PATIENTS:
        problem = f"no val split, and {len(patients)} patients to set one aside from"
        remedy = "its figures will say little; add cases"
    elif 0 < count < LEAST_CASES:
        problem = f"val holds {counted(count, 'case')}; with fewer than {LEAST_CASES} a model does "
        problem += "not judge its results, and marks every one for review"
        remedy = "add patients, or train with train.folds=5, where all cases count"
    else:
        return []
    return [Finding("warning", "few-patients", dataset.root, problem, remedy)]


def few_to_measure(dataset: Dataset) -> list[str]:
    """The note that what `segapp evaluate` will measure has too few patients for intervals, if that
    is so."""
    split = "test" if dataset.split("test") else "val"
    patients = len({c.patient for c in dataset.split(split)})
    if not 0 < patients < LEAST_PATIENTS:
        return []
    said = f"{split} holds {counted(patients, 'patient')}: evaluate gives no intervals for fewer "
    said += f"than {LEAST_PATIENTS}; add some to it (a cases.csv has a split column), or quote a "
    return [said + "cross-validation (train.folds=5), which measures all patients of train and val"]


def never_without(facts: Sequence[CaseFacts], classes: Sequence[SegClass]) -> list[str]:
    """The note that no training image lacks some of the classes, if that is so. Of volumes nothing
    is said: they have slices without."""
    training = [f for f in facts if f.case.split == "train"]
    always = [c.name for c in classes[1:] if all(c.value in f.mask_counts for f in training)]
    if not always or len(training) < 2 or any(1 not in f.shape for f in training):
        return []
    names = ", ".join(always[:_NAMED]) + (", …" if len(always) > _NAMED else "")
    which = "it" if len(always) == 1 else "one of them"
    said = f"every training image holds {names}: results on images without {which} can't be "
    return [said + "vouched for; if such images will come, add some to the data"]


def unnamed(dataset: Dataset, classes: Sequence[SegClass]) -> list[str]:
    """The note how classes are named that are called by their values, if that is so."""
    if dataset.class_names or len(classes) < 2:
        return []
    lines = f'"{classes[0].value} background" and "{classes[1].value} NAME"'
    more = ", …" if len(classes) > 2 else ""
    return [f"classes are called by their values; lines in a classes.txt name them: {lines}{more}"]
