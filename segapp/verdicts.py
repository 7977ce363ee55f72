"""What the facts of all cases say: masks and images that do not belong to the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segapp.cases import choose_classes, outside
from segapp.check import no_foreground, odd_masks
from segapp.errors import ScanError
from segapp.finding import Finding, finding_of
from segapp.fingerprint import CaseFacts
from segapp.layout import Dataset
from segapp.plan import odd_background
from segapp.scan import SegClass

_FEW_PATIENTS = 5
_RARE_SHARE, _RARE_CASES = 1e-4, 3
_MANY_VALUES = 32
_SPACING_FACTOR = 1.5


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


def judge_classes(
    dataset: Dataset, facts: Sequence[CaseFacts]
) -> tuple[tuple[SegClass, ...], list[CaseFacts], list[Finding]]:
    """The classes, the cases whose masks are written in their values, and what is wrong."""
    declared, ignore = dataset.class_names, dataset.ignore
    allowed = None
    if declared:
        values = [value for value in declared.values() if value is not None]
        allowed = set(values or range(len(declared))) - {0}
        if not values and not any(allowed & set(f.mask_counts) for f in facts):
            allowed = None  # names only, for masks such as 0 and 255
    found = odd_masks(facts, allowed, ignore)
    odd = {f.path for f in found}
    usual = [f for f in facts if f.case.mask not in odd]
    beyond = {v for f in usual for v in f.mask_counts if not 0 <= v <= 65535} - {ignore}
    values = sorted({v for f in usual for v in f.mask_counts} - {ignore} - beyond)
    if not values:
        return (), [], found
    try:
        classes = choose_classes(dataset, values, None)
    except ScanError as error:
        return (), [], [*found, finding_of(error)]
    known = {c.value for c in classes} | {ignore}
    for f in usual:
        if wrong := sorted(set(f.mask_counts) - known):
            found.append(outside(wrong, f.case.mask, classes))
    if not declared and len(classes) > _MANY_VALUES:
        problem = f"the masks hold {len(classes)} values, and each counts as a class"
        remedy = "were they resampled with interpolation? If not, name the classes in classes.txt"
        found.append(Finding("warning", "many-classes", dataset.root, problem, remedy))
    found += [Finding("warning", "no-background", dataset.root, w) for w in odd_background(classes)]
    in_code = [f for f in usual if set(f.mask_counts) <= known]
    return classes, in_code, found


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
    known = [(_pixel_mm(f), f) for f in facts if f.spacing_mm]
    if known and len(known) < len(facts):
        path = next(f.case.images[0] for f in facts if not f.spacing_mm)
        problem = f"{len(facts) - len(known)} of {len(facts)} images have no spacing"
        found.append(Finding("warning", "spacing-mixed", path, problem))
    if known:
        (low, _), (high, widest) = (pick(known, key=lambda k: k[0]) for pick in (min, max))
        if high > _SPACING_FACTOR * low:
            problem = f"pixels measure {low:.3g} to {high:.3g} mm over the data set"
            remedy = "consider preprocess.spacing_mm=auto"
            path = widest.case.images[0]
            found.append(Finding("warning", "spacing-mixed", path, problem, remedy))
    return found


def _pixel_mm(f: CaseFacts) -> float:
    mm = f.slice_spacings[f.thickest]
    return float(np.sqrt(mm[1] * mm[2])) if mm else 0.0


def few_patients(dataset: Dataset) -> list[Finding]:
    """The finding that too few are left to set a val split aside, if that is so."""
    patients = {c.patient for c in dataset.cases if c.split in ("train", "val")}
    if not 2 <= len(patients) < _FEW_PATIENTS:
        return []
    problem = f"no val split, and {len(patients)} patients to set one aside from"
    remedy = "its figures will say little; add cases"
    return [Finding("warning", "few-patients", dataset.root, problem, remedy)]


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


def rare_classes(
    facts: Sequence[CaseFacts], classes: Sequence[SegClass], root: Path
) -> list[Finding]:
    """Classes that training masks hold hardly or not at all."""
    training = [f for f in facts if f.case.split == "train"]
    found = no_foreground(training, classes, root)
    for c, row in zip(classes[1:], frequencies(training, classes)[1:], strict=True):
        what = f"class {c.name} (mask value {c.value}) is in "
        if found or (row["cases"] >= _RARE_CASES and row["share"] >= _RARE_SHARE):
            continue
        if not row["cases"]:
            problem, kind = what + "no training mask", "class-missing"
        else:
            kind, n = "class-rare", row["cases"]
            problem = (
                f"{what}{n} training mask{'s' * (n > 1)}, {100 * row['share']:.2g}% of the voxels"
            )
        remedy = "the model may not learn it; add cases, or leave the class out"
        found.append(Finding("warning", kind, root, problem, remedy))
    return found
