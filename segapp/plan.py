"""From settings and a data set to a plan: what will be trained on what, every `auto` decided."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segapp.cases import Case, Dataset, find_cases, with_val_split
from segapp.check import survey
from segapp.checkpoint import DataRecord, record_of
from segapp.contradictions import RESIDUAL_DECODERS, refuse_contradictions
from segapp.errors import ConfigError, ScanError
from segapp.files import free_name, is_partial, require_writable, writable_folder
from segapp.finding import Finding, finding_of, refuse, sinking
from segapp.fingerprint import (
    CaseFacts,
    fit_preprocessing,
    sides_that_flips_swap,
    with_every_class,
)
from segapp.inherit import earlier_images, inherit_network, inherit_preprocessing
from segapp.leakage import declared_in_two_splits, names_alike
from segapp.likeness import TrainingRange, training_range
from segapp.patches import choose_depth, choose_foreground, choose_patch, network_size
from segapp.policies import resolved as resolved_policy
from segapp.preprocess import Flip, Preprocessing
from segapp.progress import track
from segapp.ranks import this_process
from segapp.scan import SegClass
from segapp.selection import (
    class_weights,
    limit_cases,
    limit_classes,
    pool_cases,
    split_fold,
)
from segapp.settings import WARM_UP, Settings
from segapp.verdicts import judge_classes, nothing_counted, other_channels

log = logging.getLogger("segapp")

_BATCH_SIZE = 8
BEGAN_NAME = "began.json"  # in a run folder, see `resume.first_sitting`


@dataclass(frozen=True)
class Verdict:
    """What is wrong with all cases together, and what training would make of them: settings without
    any `auto` about the data, the preprocessing that follows, and reasons; None where it can't be
    told. classes: () likewise; in_code: the cases whose masks hold nothing but their values."""

    findings: list[Finding]
    classes: tuple[SegClass, ...]
    in_code: list[CaseFacts]
    decided: tuple[Settings, Preprocessing, list[str]] | None = None


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
        training=training_range(training, preprocessing),
        record=record,
        reasons=(*dataset.notes, *reasons),
        warnings=tuple(warnings),
    )


def judge(dataset: Dataset, facts: Sequence[CaseFacts], settings: Settings) -> Verdict:
    """Judge the facts of all usable cases of a data set, as `segapp check` lists it and training
    refuses it."""
    root = dataset.root
    ignore = settings.data.ignore if settings.data.ignore is not None else dataset.ignore
    classes, in_code, found = judge_classes(dataset, facts, settings.data.classes, ignore)
    if dataset.cases and not any(c.split in ("train", "") for c in dataset.cases):
        remedy = "call the split of some cases train"
        found.append(sinking("no-training-cases", root, "no case is in the split train", remedy))
    if not any(f.case.split == "train" for f in in_code):
        return Verdict(found, classes, in_code)
    found += nothing_counted(facts, ignore, root)
    try:
        decided = _decide(in_code, classes, ignore, settings, dataset)
    except ScanError as error:
        found.append(replace(finding_of(error), kind="preprocessing"))
        return Verdict(found, classes, in_code)
    found += other_channels(facts, decided[1].channels, decided[1].channel_files)
    return Verdict(found, classes, in_code, decided)


def _decide(
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
    settings, start = inherit_network(settings)
    preprocessing, reasons = fit_preprocessing(training, settings, dataset.channel_files)
    inherited = inherit_preprocessing(settings, start, training, dataset.channel_files)
    if inherited:
        own = preprocessing.normalisation
        preprocessing, reasons = inherited, ["preprocessing: that of the model it goes on from"]
        if own != inherited.normalisation:
            reasons[0] += f" ({inherited.normalisation}; this data alone would take {own})"
    for f in facts:
        network_size(f, preprocessing)
        if preprocessing.normalisation == "imagenet":
            preprocessing.own_white(np.dtype(f.dtype), f.case.images[0])
    resolved = settings.model_copy(deep=True)
    resolved.data.slice_axis = preprocessing.slice_axis
    resolved.data.classes = [c.name for c in classes]
    resolved.data.ignore = ignore
    resolved.data.context_slices = preprocessing.context
    if resolved.model.residual == "auto":
        resolved.model.residual = resolved.model.architecture in RESIDUAL_DECODERS
    if resolved.model.full_resolution == "auto":
        resolved.model.full_resolution = resolved.model.architecture == "unet"
    resolved.preprocess.spacing_mm = preprocessing.spacing_mm or "none"
    resolved.preprocess.size = preprocessing.size or "native"
    resolved.preprocess.normalisation = preprocessing.normalisation
    if resolved.optim.warm_up == "auto":
        resolved.optim.warm_up = WARM_UP[resolved.optim.schedule]
    if resolved.optim.batch_size == "auto":
        count = this_process().count  # equal shares, of two images or more
        resolved.optim.batch_size = -(-max(_BATCH_SIZE, 2 * count) // count) * count
    if resolved.optim.patch == "auto":
        resolved.optim.patch = choose_patch(training, preprocessing)
        reasons.append(
            f"patches: {resolved.optim.patch}² pixels, three quarters of a slice, within 96…256 "
            "(64 for slices no larger)"
        )
    if resolved.model.encoder_depth == "auto":
        resolved.model.encoder_depth = depth = choose_depth(resolved)
        if depth < 5:
            reasons.append(
                f"encoder: {depth} of its 5 stages, further ones would see less than 12² pixels"
            )
    if resolved.model.encoder_depth < 5:  # each stage halves a slice's sides
        stride = 2**resolved.model.encoder_depth
        preprocessing = preprocessing.model_copy(update={"stride": stride})
    if resolved.augment.foreground_p == "auto":
        share = choose_foreground(training, preprocessing, resolved.optim.patch)
        resolved.augment.foreground_p = share
        if share:
            reasons.append(f"places: {share:.0%} about a class, as patches show little of a slice")
    given = resolved.augment.flip_p
    resolved.augment = resolved_policy(resolved.augment)
    swapped = sides_that_flips_swap(training, preprocessing.slice_axis)
    if given == "auto" and swapped:
        resolved.augment.flip_p = 0.0
        names = " and ".join(c.name for c in classes if c.value in swapped)
        reasons.append(f"flips: off, {names} lie on opposite sides and would be swapped")
    return resolved, preprocessing, reasons


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
