"""Which cases a model has seen, and which ones to measure it on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from segapp.cases import Case, image_hash
from segapp.checkpoint import DataRecord, ModelInfo
from segapp.errors import DataError, ScanError
from segapp.layout import Dataset

log = logging.getLogger("segapp")


Hashes = Mapping[tuple[Path, ...], str]


def hashes_of(cases: Iterable[Case]) -> Hashes:
    """Each case's images → their hash; those that can't be read are left out."""
    found = {}
    for case in cases:
        try:
            found[case.images] = image_hash(case)
        except ScanError:  # who reads the case says so
            continue
    return found


def cases_to_measure(
    dataset: Dataset, info: ModelInfo, split: str | None, hashes: Hashes
) -> tuple[tuple[Case, ...], str]:
    """The cases of a split, and its name.

    Where the data set declares no split, or no val, cases have the split in which this model's
    training took them, known by their hash. split None means test where there is one; else val,
    unless there are cases of no split, new to the model; else all. Raises DataError for a data set
    without that split.
    """
    asked = info.settings
    folds = bool(asked.get("train", {}).get("folds"))
    known = splits_in_training(dataset.cases, info.data, hashes)
    cases = tuple(
        _with_split_of_training(case, splits, folds)
        for case, splits in zip(dataset.cases, known, strict=True)
    )
    dataset = replace(dataset, cases=cases)
    if split is None:
        split = "test" if dataset.split("test") else "all"
        limit = asked.get("data", {}).get("limit")
        limited = isinstance(limit, int | float)  # cases that training left out
        if split == "all" and dataset.split("val"):
            split = "val" if limited or all(c.split for c in cases) else "all"
    chosen = dataset.split(split)
    if not chosen:
        there = ", ".join(sorted({c.split for c in cases if c.split})) or "none"
        raise DataError(f"{dataset.root}: no case is in the split {split}; there is: {there}")
    return chosen, split


def count_seen(cases: Sequence[Case], info: ModelInfo, hashes: Hashes, which: str = "this") -> int:
    """How many cases the model was trained or chosen on; warned about where there are any."""
    known = splits_in_training(cases, info.data, hashes)
    seen = sum(bool(splits & {"train", "val", "earlier"}) for splits in known)
    if seen:
        log.warning("%s", seen_text(seen, len(cases), which))
    return seen


def seen_text(seen: int, count: int, which: str = "this") -> str:
    """That so many of the cases measured are no new ones to a model, and what to do about it."""
    said = f"used to train or choose {which} model; its figures on them say little about new scans"
    if seen < count:
        return f"{seen} of these {count} cases {'was' if seen == 1 else 'were'} {said}"
    who = f"all {count} cases were" if count > 1 else "the only case was"
    how = "by test in the split column of a cases.csv, or in a test/ folder"
    return f"{who} {said}: keep some patients apart ({how}), and train again"


def splits_in_training(cases: Sequence[Case], record: DataRecord, hashes: Hashes) -> list[set[str]]:
    """For each case the splits in which the model's training had this very image; `earlier` where
    that of the model it went on from had it."""
    splits_of: dict[str, set[str]] = {}
    for split, of_split in (*record.images.items(), ("earlier", record.earlier)):
        for known in of_split:
            splits_of.setdefault(known, set()).add(split)
    return [splits_of.get(hashes.get(c.images, ""), set()) for c in cases]


def _with_split_of_training(case: Case, splits: set[str], folds: bool) -> Case:
    """A case the data set leaves open goes where training had it; twins of a training image, such
    as black slices, count as trained on. Folds made training cases of the data set's val split."""
    splits = splits - {"earlier"}
    declared = ("test",) if folds else ("val", "test")
    if case.split in declared or not splits:
        return case
    return replace(case, split="train" if "train" in splits else sorted(splits)[-1])
