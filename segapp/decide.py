"""What all cases come to together: what is wrong with them, what becomes of every data `auto`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segapp.contradictions import RESIDUAL_DECODERS
from segapp.declared import declared_modality
from segapp.errors import ScanError
from segapp.finding import Finding, finding_of, sinking
from segapp.fingerprint import CaseFacts, fit_preprocessing, sides_that_flips_swap
from segapp.inherit import inherit_network, inherit_preprocessing
from segapp.layout import Dataset
from segapp.modality import UNKNOWN, common
from segapp.patches import choose_depth, choose_foreground, choose_patch, network_size
from segapp.policies import resolved as resolved_policy
from segapp.preprocess import Preprocessing
from segapp.ranks import this_process
from segapp.scan import SegClass
from segapp.settings import WARM_UP, Settings
from segapp.verdicts import judge_classes, nothing_counted, other_channels

_BATCH_SIZE = 8
_LEAST_STEPS = 40  # an epoch of fewer steps validates more than it trains
_MOST_STEPS = 250  # nnU-Net's; after longer ones a crash would cost too much, and models are few


@dataclass(frozen=True)
class Verdict:
    """What is wrong with all cases together, and what training would make of them: settings without
    any `auto` about the data, the preprocessing that follows, and reasons; None where it can't be
    told. classes: () likewise; in_code: the cases whose masks hold nothing but their values."""

    findings: list[Finding]
    classes: tuple[SegClass, ...]
    in_code: list[CaseFacts]
    decided: tuple[Settings, Preprocessing, list[str]] | None = None


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
    if resolved.data.modality == "auto":
        resolved.data.modality, why = _choose_modality(training, preprocessing, dataset)
        if why:
            reasons.append(f"modality: {resolved.data.modality}, as {why}")
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


def _choose_modality(
    facts: Sequence[CaseFacts], preprocessing: Preprocessing, dataset: Dataset
) -> tuple[str, str]:
    """What took the scans, and how that is known: "unknown" and "" where it isn't."""
    if found := common([f.modality for f in facts]):
        return found, "their headers say"
    if found := declared_modality(dataset.root):
        return found, "dataset.json calls the channels"
    if preprocessing.normalisation == "ct":
        return "CT", "values are as low as air in CT"
    return UNKNOWN, ""


def steps_of_epoch(samples: int, settings: Settings) -> int:
    """What train.steps_per_epoch=auto becomes. samples: in one pass over the training slices;
    settings: with optim.batch_size decided."""
    steps = -(-samples // (int(settings.optim.batch_size) * settings.optim.accumulate))
    return min(max(_LEAST_STEPS, steps), _MOST_STEPS)
