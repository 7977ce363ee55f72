"""From settings and a data set to a plan: what will be trained on what, in which run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segapp.cases import Case, Dataset, find_cases, with_val_split
from segapp.check import survey
from segapp.checkpoint import DataRecord, record_of
from segapp.contradictions import refuse_contradictions
from segapp.decide import judge
from segapp.errors import ConfigError
from segapp.files import free_name, is_partial, require_writable, writable_folder
from segapp.finding import refuse
from segapp.fingerprint import CaseFacts, sides_that_flips_swap, with_every_class
from segapp.inherit import earlier_images
from segapp.leakage import declared_in_two_splits, names_alike
from segapp.likeness import TrainingRange, training_range
from segapp.preprocess import Flip, Preprocessing
from segapp.progress import track
from segapp.scan import SegClass
from segapp.selection import class_weights, limit_cases, limit_classes, pool_cases, split_fold
from segapp.settings import Settings

log = logging.getLogger("segapp")

BEGAN_NAME = "began.json"  # in a run folder, see `resume.first_sitting`


@dataclass(frozen=True)
class Plan:
    """Everything training needs to know. `reasons` say what was decided and why."""

    settings: Settings
    dataset: Dataset
    classes: tuple[SegClass, ...]
    ignore: int | None
    merged: tuple[int, ...]  # mask values of classes that are not learned
    preprocessing: Preprocessing
    training: TrainingRange
    record: DataRecord
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    fresh: bool = True  # the run folder was empty when it was taken
    command: str = ""  # what was typed to train this

    @property
    def flips(self) -> tuple[Flip, ...]:
        """What predictions are averaged over: the flips of the training, if they should be."""
        shares: dict[Flip, Any] = {
            "horizontal": self.settings.augment.flip_p,
            "vertical": self.settings.augment.vertical_flip_p,
        }
        return tuple(f for f, p in shares.items() if p) if self.settings.model.tta else ()

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.settings.run_folder


def open_run(settings: Settings) -> Plan:
    """Take the run folder train.out, check the data and plan the training.

    Raises ConfigError for a folder that is not empty, OutputError for one that can't be written,
    DataError for data that can't be trained on. After an error the folder is as it was before.
    """
    out = settings.run_folder
    if out.is_file() or (out.is_dir() and any(not is_partial(p) for p in out.iterdir())):
        raise ConfigError(
            f"{out}: the run folder is not empty; go on with segapp train --resume {out}, "
            f"or choose another, such as train.out={free_name(out)}"
        )
    with writable_folder(out):
        return make_plan(settings, lambda cases: track(cases, "reading the data"))


def reopen_run(settings: Settings) -> Plan | None:
    """Plan the rest of an interrupted run in train.out; None (and a message) for a finished one.

    A run killed before its first save starts again. Raises OutputError, DataError.
    """
    out = settings.run_folder
    if (out / "metrics.json").is_file():
        further = f"model.init_from={out} train.out={free_name(out)}"
        data = f"segapp train data.root={settings.data.root}"
        log.info("%s is finished; to train further: %s %s", out, data, further)
        return None
    others = {p.name for p in out.iterdir() if not (is_partial(p) or p.name.startswith("."))}
    others -= {"config.yaml"}
    if others and not (out / "log.txt").is_file():
        raise ConfigError(f"{out}: holds no run of segapp train; --resume takes a run folder")
    require_writable(out)
    return replace(make_plan(settings, lambda cases: track(cases, "reading the data")), fresh=False)


def make_plan(
    settings: Settings, progress: Callable[[Iterable[Case]], Iterable[Case]] = iter
) -> Plan:
    """Read the whole data set once, find what would sink a run, and decide every data `auto`.

    Raises DataError naming the first file at fault.
    """
    root = settings.data.root
    assert root is not None, "load_settings makes sure of it"
    s, seed = settings, settings.train.seed
    dataset = find_cases(root)
    declares_val = bool(dataset.split("val"))
    if s.train.folds:  # everything is decided from all cases, so that the folds fit together
        dataset = pool_cases(dataset)
    else:
        dataset = with_val_split(dataset, s.data.val_share, seed)
    dataset = limit_cases(dataset, s.data.limit, seed)
    ignore = settings.data.ignore if settings.data.ignore is not None else dataset.ignore
    facts, findings = survey(dataset, progress, ignore)
    if not s.train.folds and not declares_val:
        dataset, facts = with_every_class(dataset, facts, seed)
    refuse(findings, "more that can't be used")
    verdict = judge(dataset, facts, settings)
    refuse(verdict.findings)
    assert verdict.decided, "nothing else keeps it from being decided"
    resolved, preprocessing, reasons = verdict.decided
    classes, merged = limit_classes(verdict.classes, s.data.limit)
    if merged:
        reasons.append(f"data.limit: {len(merged)} other classes count as {classes[0].name}")
    if s.train.folds and s.train.fold:
        dataset = split_fold(dataset, s.train.folds, s.train.fold, seed)
    training = [f for f in facts if f.case.split == "train"]
    warnings = [str(f) for f in (*findings, *verdict.findings, *names_alike(dataset))]
    if leaks := declared_in_two_splits(dataset.cases):
        more = f" (and {len(leaks) - 1} more patients)" if len(leaks) > 1 else ""
        warnings.append(f"{leaks[0]}{more}; figures on val and test will be too good")
    counts = {s: len(dataset.split(s)) for s in ("train", "val", "test")}
    names = ", ".join(f"{c.value} {c.name}" for c in classes)
    reasons.insert(0, f"classes: {names}")
    reasons.insert(0, f"cases: {', '.join(f'{n} {s}' for s, n in counts.items())}")
    voxels = [f.mask_counts for f in training]
    resolved.loss.class_weights = class_weights(s.loss.class_weights, classes, merged, voxels)
    refuse_contradictions(resolved)
    warnings += _doubtful(resolved, preprocessing, dataset, facts, classes)
    record = record_of(dataset, earlier_images(settings))
    others = {*record.images.get("val", ()), *record.images.get("test", ())}
    if known := others & set(record.earlier):
        warnings.append(
            f"the model of model.init_from was trained on {len(known)} of the val and test images; "
            "figures on them will be too good"
        )
    return Plan(
        settings=resolved,
        dataset=dataset,
        classes=classes,
        ignore=ignore,
        merged=merged,
        preprocessing=preprocessing,
        training=training_range(training, preprocessing, resolved.data.modality),
        record=record,
        reasons=(*dataset.notes, *reasons),
        warnings=tuple(warnings),
    )


def _doubtful(
    s: Settings,
    preprocessing: Preprocessing,
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    classes: tuple[SegClass, ...],
) -> list[str]:
    """Warnings about settings that were asked for and may do harm with this data."""
    found = []
    training = [f for f in facts if f.case.split == "train"]
    val = {c.name for c in dataset.split("val")}
    held = {v for f in facts if f.case.name in val for v in f.mask_counts}
    if val and (lacking := [c.name for c in classes[1:] if c.value not in held]):
        chosen = "the others" if len(lacking) < len(classes) - 1 else "none: the last epoch's it is"
        found.append(f"val holds no {' or '.join(lacking)}; the model is chosen by {chosen}")
    if s.augment.flip_p and sides_that_flips_swap(training, preprocessing.slice_axis):
        found.append(
            "augment.flip_p: classes seem to lie on opposite sides, and flips swap them"
            + (", in predictions too (model.tta)" if s.model.tta else "")
        )
    if preprocessing.context and all(1 in f.shape for f in facts):
        found.append("the model of model.init_from looks at neighbouring slices; there are none")
    if isinstance(s.data.limit, int | float) and dataset.class_names is None:
        found.append(
            "data.limit: the classes are those of the masks it leaves; data.classes names all"
        )
    return found


def withdraw_run(plan: Plan) -> None:
    """Leave a run folder that is not worth going on with as `open_run` found it."""
    if not plan.fresh:
        return
    for name in ("config.yaml", "log.txt", ".launch", BEGAN_NAME):
        (plan.out / name).unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's file is in it by now
        plan.out.rmdir()
