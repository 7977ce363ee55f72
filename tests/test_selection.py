"""Limits and folds: whole patients, nested draws, weights by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from segapp.cases import Case, Dataset, labels_to_indices
from segapp.errors import ConfigError, ScanError
from segapp.scan import make_classes
from segapp.selection import (
    balanced_weights,
    hold_every_class,
    limit_cases,
    limit_classes,
    pool_cases,
    split_fold,
)

CLASSES = make_classes(["background", "liver", "tumour", "spleen"], [0, 1, 2, 7])


def dataset(**counts: int) -> Dataset:
    """So many cases in each split, two slices a patient."""
    cases = [
        Case(f"{split}{n}", (Path(f"{split}{n}.png"),), Path("m.png"), f"{split}-p{n // 2}", split)
        for split, count in counts.items()
        for n in range(count)
    ]
    return Dataset(Path("data"), tuple(cases))


def names(data: Dataset, split: str) -> set[str]:
    return {c.name for c in data.split(split)}


def test_no_limit_is_the_data_set_itself() -> None:
    data = dataset(train=5, val=3, test=2)
    assert limit_cases(data, None, 0) is data
    assert limit_cases(data, ["liver"], 0) is data


def test_a_share_and_a_number_of_training_cases() -> None:
    data = dataset(train=10, val=4, test=5)
    for limit, train, val in ((0.25, 3, 3), (6, 6, 4), (99, 10, 4), (0.01, 1, 1)):
        less = limit_cases(data, limit, 0)
        assert (len(names(less, "train")), len(names(less, "val"))) == (train, val)
        assert not names(less, "test")
        assert names(less, "train") < names(data, "train") or train == 10
    assert limit_cases(data, 0.25, 0).notes[-1].startswith("data.limit: 3 of 10 train cases and 3")


def test_a_smaller_limit_is_part_of_a_larger_one_and_the_seed_chooses() -> None:
    data = dataset(train=30, val=8)
    small, large = (limit_cases(data, n, 4) for n in (5, 12))
    assert names(small, "train") < names(large, "train")
    assert names(limit_cases(data, 5, 5), "train") != names(small, "train")


def test_classes_outside_the_limit_become_background() -> None:
    kept, merged = limit_classes(CLASSES, ["spleen", "liver"])
    assert [c.name for c in kept] == ["background", "liver", "spleen"]
    assert merged == (2,)
    mask = np.array([[0, 1, 2, 7, 255]])
    assert labels_to_indices(mask, kept, 255, merged).tolist() == [[0, 1, 0, 2, 255]]
    with pytest.raises(ValueError, match="mask value 2 is outside the classes"):
        labels_to_indices(mask, kept, 255)


def test_a_limit_in_numbers_keeps_every_class() -> None:
    assert limit_classes(CLASSES, 0.1) == (CLASSES, ())
    assert limit_classes(CLASSES, None) == (CLASSES, ())


def test_a_limit_to_no_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no class is named 'kidney'; there is background, liv"):
        limit_classes(CLASSES, ["kidney"])
    with pytest.raises(ConfigError, match="that is the background"):
        limit_classes(CLASSES, ["background"])


def test_folds_divide_whole_patients_into_equal_parts() -> None:
    data = pool_cases(dataset(train=14, val=6, test=4))
    assert len(names(data, "train")) == 20
    folds = [split_fold(data, 5, n, seed=3) for n in range(1, 6)]
    seen = Counter(name for fold in folds for name in names(fold, "val"))
    assert seen == Counter({c.name: 1 for c in data.split("train")}), "each case once"
    for fold in folds:
        assert len(names(fold, "val")) == 4
        assert names(fold, "train") | names(fold, "val") == names(data, "train")
        assert names(fold, "test") == names(data, "test"), "never touched"
        patients = [{c.patient for c in fold.split(s)} for s in ("train", "val")]
        assert not patients[0] & patients[1]


def test_more_folds_than_patients_are_refused() -> None:
    data = pool_cases(dataset(train=6))
    with pytest.raises(ScanError, match=r"3 patients .* train\.folds=4"):
        split_fold(data, 4, 1, 0)


def test_weights_by_hand() -> None:
    """1 / ln(1.02 + share), Paszke et al. 2016: a class of half the pixels and one of none."""
    weights = balanced_weights([50, 50, 0])
    assert weights[0] == weights[1] == pytest.approx(1 / np.log(1.52), rel=1e-5)
    assert weights[2] == pytest.approx(50.4983, rel=1e-5)
    assert len(set(balanced_weights([0, 0]))) == 1


def test_val_is_drawn_again_where_it_lacks_a_class() -> None:
    data = dataset(train=8, val=2, test=1)
    with_lesion = {"train0", "train3", "train5"}
    values = {c.name: {0, 1, 2} if c.name in with_lesion else {0, 1} for c in data.cases}
    again = hold_every_class(data, values, seed=0)
    assert len(again.split("val")) == 2
    assert names(again, "val") & with_lesion
    assert names(again, "train") & with_lesion
    assert names(again, "test") == names(data, "test")
    assert "drawn again" in again.notes[-1]
    assert hold_every_class(data, values, seed=0) == again


def test_val_stays_where_it_holds_what_it_can() -> None:
    data = dataset(train=8, val=2)
    both = {c.name: {0, 1} for c in data.cases}
    assert hold_every_class(data, both, seed=0) is data
    once = {**both, "train0": {0, 1, 2}}  # in one patient alone: never in both
    assert hold_every_class(data, once, seed=0) is data


def test_what_one_patient_has_goes_to_train() -> None:
    data = dataset(train=8, val=2)
    values = {c.name: {0, 1} for c in data.cases} | {"val0": {0, 1, 2}}
    assert "val0" in names(hold_every_class(data, values, seed=0), "train")
