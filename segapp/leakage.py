"""One patient or one picture in two splits: figures on val and test that are too good."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from segapp.evidence import near_pairs
from segapp.finding import Finding, counted
from segapp.layout import SPLITS, Case, Dataset

_SHOWN = 3
_CLEARLY_FEWER = 0.75  # prefixes of names, as a share of the names
_REMEDY = "keep all that is of one patient in one split"


@dataclass(frozen=True)
class Print:
    """What tells a case's image from others: the hash of its bytes, and that of its picture
    (None if it says too little)."""

    case: Case
    content: str
    picture: np.ndarray | None


def declared_in_two_splits(cases: Sequence[Case], but: Collection[Path] = ()) -> list[Finding]:
    """One error for each patient that the data set itself puts into two splits, leaving out the
    images `but`."""
    owned: dict[str, list[Case]] = {}
    for case in cases:
        if case.declared and case.split and case.images[0] not in but:
            owned.setdefault(case.declared, []).append(case)
    found: list[Finding] = []
    for owner, its in sorted(owned.items()):
        counts = Counter(c.split for c in its)
        if len(counts) > 1:
            splits = [s for s in SPLITS if counts[s]]
            where = " and ".join(f"in {s} ({counts[s]})" for s in splits)
            path = next(c.images[0] for c in its if c.split == splits[-1])
            found.append(Finding("error", "leakage", path, f"patient {owner} is {where}", _REMEDY))
    return found


def guessed_in_two_splits(dataset: Dataset) -> list[Finding]:
    """One warning for each pair of splits that share patients guessed from names."""
    owners = {s: {c.patient for c in dataset.split(s) if not c.declared} for s in SPLITS}
    found: list[Finding] = []
    for a, b in combinations(SPLITS, 2):
        if both := sorted(owners[a] & owners[b]):
            names = ", ".join(both[:_SHOWN]) + (", …" if len(both) > _SHOWN else "")
            which = "name that may mean a patient is"
            which = which if len(both) == 1 else "names that may mean patients are"
            problem = f"{len(both)} {which} in {a} and in {b} ({names})"
            remedy = f"if they are the same patients, {_REMEDY}; else all is well"
            found.append(Finding("warning", "leakage-guessed", dataset.root, problem, remedy))
    return found


def patients_from(cases: Sequence[Case]) -> str:
    """How it is known whose each case is: "declared"; "guessed" where a folder or a slice's number
    groups some by name; "one_a_case" where nothing does."""
    open_ones = [c for c in cases if not c.declared]
    if any(not c.name.endswith(c.patient) for c in open_ones):
        return "guessed"
    return "one_a_case" if open_ones else "declared"


def patients_by_name(dataset: Dataset) -> list[list[str]]:
    """The patients that images which each count as one of their own look by their names like, each
    with its names: "012_a" and "012_b". [] where these are not clearly fewer."""
    alone = [c for c in dataset.cases if not c.declared and c.name.endswith(c.patient)]
    groups: dict[str, list[str]] = {}
    for case in alone:
        prefix = re.split(r"[_-][^_-]*$", case.patient)[0]
        key = prefix if any(map(str.isdigit, prefix)) else case.patient
        groups.setdefault(key, []).append(case.patient)
    is_clear = 2 <= len(groups) <= _CLEARLY_FEWER * len(alone)
    return list(groups.values()) if is_clear else []


def names_alike(dataset: Dataset) -> list[Finding]:
    """The warning that there may be fewer patients, see `patients_by_name`. What "_a" means only
    the images' owner knows (in "001_01" the number may be a site's), so no rule takes it for
    granted."""
    groups = patients_by_name(dataset)
    if not groups:
        return []
    first = max(groups, key=len)[:2]
    problem = f"the names look like {len(groups)} patients ({', '.join(first)}, …), but each image "
    problem += f"counts as a patient of its own, {sum(map(len, groups))} in all"
    remedy = "if they are fewer, write a cases.csv (image,mask,patient,split), or figures on val "
    remedy += "and test will be too good"
    return [Finding("warning", "patients-alike", dataset.root, problem, remedy)]


def same_images(prints: Sequence[Print], set_aside: bool) -> tuple[list[Finding], set[Path]]:
    """Images of the same bytes: an error where they lie in two splits, a warning where they lie in
    one, or in train and in the val split that training itself has set aside. And those of one
    declared patient, whose leak is told with that."""
    groups: dict[str, list[Case]] = {}
    for p in prints:
        groups.setdefault(p.content, []).append(p.case)
    found: list[Finding] = []
    told: set[Path] = set()
    for group in groups.values():
        first, *others = sorted(group, key=lambda c: SPLITS.index(c.split))
        for case in others:
            across = case.split != first.split and not (set_aside and case.split == "val")
            problem = f"is byte for byte {first.images[0]}"
            problem += f", which is in {first.split}" if across else ""
            level = "error" if across else "warning"
            path = case.images[0]
            found.append(Finding(level, "duplicate-image", path, problem, "keep one of them"))
            if across and case.declared == first.declared:
                told.add(path)
    return found, told


def near_images(prints: Sequence[Print], but: Collection[Path]) -> list[Finding]:
    """One warning for each pair of splits that hold nearly the same pictures, leaving out the
    images `but` and pairs of one declared patient."""
    sides: dict[str, list[tuple[Case, np.ndarray]]] = {s: [] for s in SPLITS}
    for p in prints:
        if p.picture is not None and p.case.images[0] not in but:
            sides[p.case.split].append((p.case, p.picture))
    found: list[Finding] = []
    for a, b in combinations(SPLITS, 2):
        left, right = sides[a], sides[b]
        owners = [
            [case.declared or str(case.images[0]) for case, _ in side] for side in (left, right)
        ]
        count, nearest = near_pairs([h for _, h in left], [h for _, h in right], *owners)
        if count:
            shown = ", ".join(
                f"{left[i][0].name} and {right[j][0].name} ({bits} of 256 bits apart)"
                for bits, i, j in nearest
            )
            are = "is" if count == 1 else "are"
            problem = f"{counted(count, 'pair')} of pictures in {a} and {b} {are} nearly the same"
            problem += f": {shown}"
            path = right[nearest[0][2]][0].images[0]
            found.append(Finding("warning", "near-duplicate", path, problem, _REMEDY))
    return found
