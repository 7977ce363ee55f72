"""From settings and a data set to a plan: what will be trained on what, every `auto` decided."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segapp.cases import (
    Case,
    Dataset,
    file_hash,
    find_cases,
    find_classes,
    image_hash,
    with_val_split,
)
from segapp.check import (
    inspect,
    no_foreground,
    nothing_counted,
    odd_masks,
    other_channels,
    shared_patients,
)
from segapp.checkpoint import DataRecord
from segapp.config import Settings
from segapp.errors import ConfigError, DataError
from segapp.files import require_writable
from segapp.finding import refuse
from segapp.fingerprint import CaseFacts, fit_preprocessing, sides_that_flips_swap
from segapp.likeness import TrainingRange, training_range
from segapp.preprocess import Preprocessing
from segapp.progress import track
from segapp.scan import SegClass

log = logging.getLogger("segapp")

_BATCH_SIZE = 8
_PATCH_SHARE = 0.75  # of the slice's median side: most of it in view, edges seen off-centre
_PATCH_LIMITS = (96, 256)


@dataclass(frozen=True)
class Plan:
    """Everything training needs to know. `reasons` say what was decided and why."""

    settings: Settings
    dataset: Dataset
    classes: tuple[SegClass, ...]
    ignore: int | None
    preprocessing: Preprocessing
    training: TrainingRange
    record: DataRecord
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    fresh: bool = True  # the run folder was empty when it was taken

    @property
    def out(self) -> Path:
        """The run folder."""
        assert self.settings.train.out is not None, "load_settings makes sure of it"
        return self.settings.train.out


def open_run(settings: Settings) -> Plan:
    """Take the run folder train.out, check the data and plan the training.

    Raises ConfigError for a folder that is not empty, OutputError for one that can't be written,
    DataError for data that can't be trained on. After an error the folder is as it was before.
    """
    out = settings.train.out
    assert out is not None, "load_settings makes sure of it"
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(
            f"{out}: the run folder is not empty; go on with segapp train --resume {out}, "
            "or choose another train.out"
        )
    is_new = not out.exists()
    require_writable(out)
    try:
        return make_plan(settings, lambda cases: track(cases, "reading the data"))
    except BaseException:
        if is_new:
            out.rmdir()  # nothing is in it yet
        raise


def reopen_run(settings: Settings) -> Plan | None:
    """Plan the rest of an interrupted run in train.out; None (and a message) for a finished one.

    A run killed before its first save starts again. Raises OutputError, DataError.
    """
    out = settings.train.out
    assert out is not None
    if (out / "metrics.json").is_file():
        log.info("%s is finished; nothing to do", out)
        return None
    if not (out / "log.txt").is_file():
        raise ConfigError(f"{out}: holds no run of segapp train; --resume takes a run folder")
    require_writable(out)
    plan = make_plan(settings, lambda cases: track(cases, "reading the data"))
    return replace(plan, fresh=False)


def make_plan(
    settings: Settings, progress: Callable[[Iterable[Case]], Iterable[Case]] = iter
) -> Plan:
    """Read the whole data set once, find what would sink a run, and decide every data `auto`.

    Raises DataError naming the first file at fault.
    """
    root = settings.data.root
    assert root is not None, "load_settings makes sure of it"
    dataset = with_val_split(find_cases(root), settings.data.val_share, settings.train.seed)
    ignore = settings.data.ignore if settings.data.ignore is not None else dataset.ignore
    facts, first_seen, warnings = inspect(dataset, progress, ignore)
    classes = find_classes(dataset, first_seen, settings.data.classes, ignore)
    training = [f for f in facts if f.case.split == "train"]
    if not training:
        raise DataError(f"{root}: no case is in the split train")
    refuse(no_foreground(training, classes, root))
    resolved, preprocessing, reasons = decide(facts, classes, ignore, settings, dataset)
    refuse(other_channels(facts, preprocessing.channels, preprocessing.channel_files))
    refuse(nothing_counted(facts, ignore, root))
    odd = [] if dataset.class_names or settings.data.classes else odd_masks(facts, None, ignore)
    counts = {s: len(dataset.split(s)) for s in ("train", "val", "test")}
    names = ", ".join(f"{c.value} {c.name}" for c in classes)
    reasons.insert(0, f"classes: {names}")
    reasons.insert(0, f"cases: {', '.join(f'{n} {s}' for s, n in counts.items())}")
    return Plan(
        settings=resolved,
        dataset=dataset,
        classes=classes,
        ignore=ignore,
        preprocessing=preprocessing,
        training=training_range(training, preprocessing),
        record=_record(dataset),
        reasons=(*dataset.notes, *reasons),
        warnings=(
            *warnings,
            *map(str, odd),
            *_shared_patients(dataset),
            *odd_background(classes),
        ),
    )


def decide(
    facts: Sequence[CaseFacts],
    classes: tuple[SegClass, ...],
    ignore: int | None,
    settings: Settings,
    dataset: Dataset,
) -> tuple[Settings, Preprocessing, list[str]]:
    """Settings without any `auto` about the data, the preprocessing that follows, and reasons.

    Raises ScanError for a case that can't be prepared so, such as a slice that becomes too large.
    """
    training = [f for f in facts if f.case.split == "train"]
    preprocessing, reasons = fit_preprocessing(training, settings, dataset.channel_files)
    for f in facts:
        network_size(f, preprocessing)
    resolved = settings.model_copy(deep=True)
    resolved.data.slice_axis = preprocessing.slice_axis
    resolved.data.classes = [c.name for c in classes]
    resolved.data.ignore = ignore
    resolved.preprocess.spacing_mm = preprocessing.spacing_mm or "none"
    resolved.preprocess.size = preprocessing.size or "native"
    resolved.preprocess.normalisation = preprocessing.normalisation
    if resolved.optim.batch_size == "auto":
        resolved.optim.batch_size = _BATCH_SIZE
    if resolved.optim.patch == "auto":
        resolved.optim.patch = _choose_patch(training, preprocessing)
        reasons.append(
            f"patches: {resolved.optim.patch}² pixels, three quarters of a slice, within 96…256"
        )
    if resolved.augment.flip_p == "auto":
        swapped = sides_that_flips_swap(training, preprocessing.slice_axis)
        resolved.augment.flip_p = 0.0 if swapped else 0.5
        if swapped:
            names = " and ".join(c.name for c in classes if c.value in swapped)
            reasons.append(f"flips: off, {names} lie on opposite sides and would be swapped")
    return resolved, preprocessing, reasons


def odd_background(classes: tuple[SegClass, ...]) -> list[str]:
    """What to say where no class has the mask value 0."""
    first = classes[0]
    if first.value == 0:
        return []
    return [
        f"no class has the mask value 0, so {first.name} (value {first.value}) is the background: "
        "it is not drawn, and not in Dice"
    ]


def _shared_patients(dataset: Dataset) -> list[str]:
    """What to say where the data set itself puts one patient into train and elsewhere."""
    shared = shared_patients(dataset.cases, lambda case: case.declared)
    return [
        f"patient {both[0]} is in train and in {split} ({len(both)} such patients); "
        f"the figures on {split} will be too good"
        for (first, split), both in shared.items()
        if first == "train"
    ]


def network_size(f: CaseFacts, preprocessing: Preprocessing) -> tuple[int, int]:
    """Rows and columns of the slices that a network gets. Raises ScanError."""
    axis = preprocessing.slice_axis
    return preprocessing.target_size(f.slice_sizes[axis], f.slice_spacings[axis], f.case.images[0])


def _choose_patch(facts: list[CaseFacts], preprocessing: Preprocessing) -> int:
    sides = [np.mean(network_size(f, preprocessing)) for f in facts]
    side = round(float(np.median(sides)) * _PATCH_SHARE / 32) * 32
    return int(np.clip(side, *_PATCH_LIMITS))


def _record(dataset: Dataset) -> DataRecord:
    record = DataRecord(root=str(dataset.root))
    for case in dataset.cases:
        record.images.setdefault(case.split, []).append(image_hash(case))
        record.masks.setdefault(case.split, []).append(file_hash(case.mask))
    return record
