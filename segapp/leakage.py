"""One patient or one picture in two splits: figures on val and test that are too good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from segapp.check import shared_patients
from segapp.evidence import near_pairs
from segapp.finding import Finding
from segapp.layout import SPLITS, Case, Dataset

_SHOWN = 3
_REMEDY = "keep all that is of one patient in one split"


@dataclass(frozen=True)
class Print:
    """What tells a case's image from others: the hash of its bytes ("" if all voxels are equal),
    that of its picture (None if it says too little), and that of the patient its DICOM header
    names ("" where none does)."""

    case: Case
    content: str
    picture: np.ndarray | None
    patient: str = ""


def patients_in_two_splits(dataset: Dataset, prints: Sequence[Print]) -> list[Finding]:
    """One error for each patient that the data set itself puts into two splits, one warning for
    each pair of splits that share patients guessed from names."""
    cases = dataset.cases
    found: list[Finding] = []
    owners = {c.declared for c in cases} - {""}
    for owner in sorted(owners):
        its = [c for c in cases if c.declared == owner]
        found += _in_two_splits(its, f"patient {owner}")
    known = {p.patient for p in prints} - {""}
    for patient in sorted(known) if len(known) > 1 else ():  # one for all is an anonymiser's
        its = [p.case for p in prints if p.patient == patient]
        if len({c.declared for c in its}) > 1 or not its[0].declared:
            found += _in_two_splits(its, "one patient (by PatientID)")
    guessed = shared_patients(cases, lambda c: "" if c.declared else c.patient)
    for (a, b), patients in guessed.items():
        names = ", ".join(patients[:_SHOWN]) + (", …" if len(patients) > _SHOWN else "")
        problem = f"{len(patients)} names that may mean patients are in {a} and in {b} ({names})"
        remedy = f"if they are the same patients, {_REMEDY}; else all is well"
        found.append(Finding("warning", "leakage-guessed", dataset.root, problem, remedy))
    return found


def _in_two_splits(cases: Sequence[Case], who: str) -> list[Finding]:
    counts = {s: sum(c.split == s for c in cases) for s in SPLITS}
    splits = [s for s in SPLITS if counts[s]]
    if len(splits) < 2:
        return []
    where = " and ".join(f"in {s} ({counts[s]})" for s in splits)
    path = next(c.images[0] for c in cases if c.split == splits[-1])
    return [Finding("error", "leakage", path, f"{who} is {where}", _REMEDY)]


def same_images(prints: Sequence[Print], set_aside: bool) -> list[Finding]:
    """Images of the same bytes: an error where they lie in two splits, a warning where they lie in
    one, or in train and in the val split that training itself has set aside."""
    groups: dict[str, list[Case]] = {}
    for p in prints:
        if p.content:
            groups.setdefault(p.content, []).append(p.case)
    found: list[Finding] = []
    for group in groups.values():
        first, *others = sorted(group, key=lambda c: SPLITS.index(c.split))
        for case in others:
            across = case.split != first.split and not (set_aside and case.split == "val")
            problem = f"is byte for byte {first.images[0]}"
            problem += f", which is in {first.split}" if across else ""
            remedy = "keep one of them"
            level = "error" if across else "warning"
            found.append(Finding(level, "duplicate-image", case.images[0], problem, remedy))
    return found


def near_images(prints: Sequence[Print]) -> list[Finding]:
    """One warning for each pair of splits that hold nearly the same pictures."""
    found: list[Finding] = []
    for a, b in combinations(SPLITS, 2):
        left, right = ([p for p in prints if p.case.split == s] for s in (a, b))
        left, right = ([p for p in side if p.picture is not None] for side in (left, right))
        pairs = [
            (bits, left[i].case, right[j].case)
            for bits, i, j in near_pairs(
                [p.picture for p in left if p.picture is not None],
                [p.picture for p in right if p.picture is not None],
            )
            if left[i].content != right[j].content
            and not (left[i].case.declared and left[i].case.declared == right[j].case.declared)
        ]
        if pairs:
            shown = ", ".join(
                f"{one.name} and {other.name} ({bits} of 256 bits apart)"
                for bits, one, other in pairs[:_SHOWN]
            )
            many = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
            problem = f"{many} of pictures in {a} and {b} are nearly the same: {shown}"
            path = pairs[0][2].images[0]
            found.append(Finding("warning", "near-duplicate", path, problem, _REMEDY))
    return found
