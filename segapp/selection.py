"""What of a data set a run takes: a first try on less of it, the folds of a cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np

from segapp.cases import Case, Dataset
from segapp.errors import ConfigError, ScanError
from segapp.scan import SegClass

T = TypeVar("T")


def spread_over(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread over them, in their order; [] of none."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[n] for n in places]


def limit_cases(dataset: Dataset, limit: float | int | list[str] | None, seed: int) -> Dataset:
    """The data set with a share (0…1, at least one case) or a number of its training cases, drawn
    with `seed`; a smaller limit's cases are among a larger one's.

    The val split keeps at most as many, and the test split is left out, so that a first answer
    needs to read no more. A list of names limits classes, not cases: see `limit_classes`.
    """
    if limit is None or isinstance(limit, list):
        return dataset
    n_train = len(dataset.split("train"))
    wanted = math.ceil(limit * n_train) if isinstance(limit, float) else min(limit, n_train)
    kept = {*_drawn(dataset.split("train"), wanted, seed)}
    kept |= {*_drawn(dataset.split("val"), wanted, seed)}
    counts = {split: sum(c.split == split for c in kept) for split in ("train", "val")}
    said = [f"{n} of {len(dataset.split(split))} {split} cases" for split, n in counts.items() if n]
    note = f"data.limit: {' and '.join(said)}, drawn with seed {seed}; the test split is left out"
    cases = tuple(c for c in dataset.cases if c in kept)
    return replace(dataset, cases=cases, notes=(*dataset.notes, note))


def _drawn(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    order = np.random.default_rng(seed).permutation(len(cases))
    return [cases[n] for n in order[:count]]


def limit_classes(
    classes: tuple[SegClass, ...], limit: float | int | list[str] | None
) -> tuple[tuple[SegClass, ...], tuple[int, ...]]:
    """The classes to learn, and the mask values of the others, which become background.

    Only a list of names limits them; the first class, the background, always stays. Raises
    ConfigError for a name that is no class, or a list of the background alone.
    """
    if not isinstance(limit, list):
        return classes, ()
    names = [c.name for c in classes]
    for name in limit:
        if name not in names:
            raise ConfigError(
                f"data.limit: no class is named {name!r}; there is {', '.join(names)}"
            )
    kept = tuple(c for n, c in enumerate(classes) if n == 0 or c.name in limit)
    if len(kept) < 2:
        raise ConfigError(f"data.limit={names[0]}: that is the background; name what to segment")
    return kept, tuple(c.value for c in classes if c not in kept)


def hold_every_class(dataset: Dataset, values: Mapping[str, set[int]], seed: int) -> Dataset:
    """The data set with its val split drawn again where train and val would not both hold a class
    that they could: of 50 draws of as many patients, the first that has the most in both. What a
    single patient has is better in train, where it can be learned.

    For a val split that `with_val_split` has drawn. values: case name → values in its mask.
    """
    held: dict[str, set[int]] = {}  # by each patient
    for case in (*dataset.split("train"), *dataset.split("val")):
        held.setdefault(case.patient, set()).update(values.get(case.name, ()))
    patients, drawn = sorted(held), {c.patient for c in dataset.split("val")}

    def shared_and_learned(val: set[str]) -> tuple[int, int]:
        aside = set().union(*(held[p] for p in patients if p in val))
        kept = set().union(*(held[p] for p in patients if p not in val))
        return len(aside & kept), len(kept)

    orders = (np.random.default_rng((seed, n)).permutation(patients) for n in range(1, 50))
    best = max((drawn, *(set(o[: len(drawn)].tolist()) for o in orders)), key=shared_and_learned)
    if best == drawn:
        return dataset
    cases = (
        replace(c, split="val" if c.patient in best else "train") if c.split != "test" else c
        for c in dataset.cases
    )
    note = "the patients set aside were drawn again, so that train and val hold more of the classes"
    return replace(dataset, cases=tuple(cases), notes=(*dataset.notes, note))


def pool_cases(dataset: Dataset) -> Dataset:
    """The data set with its val cases, and those without a split, as training cases."""
    cases = (replace(c, split="train") if c.split in ("val", "") else c for c in dataset.cases)
    return replace(dataset, cases=tuple(cases))


def split_fold(dataset: Dataset, folds: int, fold: int, seed: int) -> Dataset:
    """The pooled data set with the cases of `fold` (1…folds) as its val split.

    Whole patients, in an order drawn with `seed`, go to the fold with the fewest cases so far.
    Raises ScanError where there are fewer patients than folds.
    """
    patients: dict[str, int] = {}
    for case in dataset.split("train"):
        patients[case.patient] = patients.get(case.patient, 0) + 1
    if len(patients) < folds:
        raise ScanError(
            dataset.root,
            f"{len(patients)} patients in train and val, and train.folds={folds}",
            "val-split",
            "every fold needs at least one; set fewer folds",
        )
    sizes, chosen = [0] * folds, set[str]()
    for patient in np.random.default_rng(seed).permutation(sorted(patients)).tolist():
        smallest = sizes.index(min(sizes))
        sizes[smallest] += patients[patient]
        if smallest == fold - 1:
            chosen.add(patient)
    cases = (
        replace(c, split="val") if c.split == "train" and c.patient in chosen else c
        for c in dataset.cases
    )
    return replace(dataset, cases=tuple(cases))


def class_weights(
    given: Literal["none", "auto"] | list[float],
    classes: tuple[SegClass, ...],
    merged: tuple[int, ...],
    mask_counts: Sequence[Mapping[int, int]],
) -> Literal["none"] | list[float]:
    """loss.class_weights with `auto` as a weight for each class, from the pixels of all masks.

    merged: mask values that count as the first class. mask_counts: mask value → pixels, for each
    case. Raises ConfigError for a list of another length than the classes'.
    """
    if isinstance(given, list) and len(given) != len(classes):
        raise ConfigError(
            f"loss.class_weights: got {len(given)} numbers, and there are {len(classes)} classes: "
            + ", ".join(c.name for c in classes)
        )
    if given != "auto":
        return given
    values = [[c.value] for c in classes]
    values[0] += merged
    return balanced_weights([sum(m.get(v, 0) for m in mask_counts for v in of) for of in values])


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """A weight for each class from its number of pixels: 1 / ln(1.02 + its share), 1.4…50.5.

    Rare classes weigh more, but never without bound: Paszke et al. 2016 (ENet). No pixels at all:
    equal weights.
    """
    shares = np.array(counts, float) / max(1, sum(counts))
    return [float(f"{w:.6g}") for w in 1 / np.log(1.02 + shares)]
