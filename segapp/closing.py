"""The end of a training: what the model learns about itself, and what the run leaves to look at."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segapp import metrics
from segapp.assemble import Parts
from segapp.calibration import fit_temperature, judged_pixels, some_pixels
from segapp.cases import Case
from segapp.checkpoint import MODEL_NAME, ModelInfo, save_model
from segapp.data import SliceCache
from segapp.figures import Evaluation, summary
from segapp.files import write_text
from segapp.novelty import features, fit_novelty, scan_features
from segapp.pace import Clock
from segapp.plan import Plan
from segapp.predict import Predictor
from segapp.progress import inessential
from segapp.quality import JUDGED_NAME, Judged, Quality, distrust, fit_quality, judged_text
from segapp.report.run import write_run_page
from segapp.report.timeline import Timeline, shown_cases
from segapp.report.training import picture_names, write_comparison, write_curves
from segapp.resume import State
from segapp.scan import Segmentation
from segapp.selection import spread_over
from segapp.step import machine_facts
from segapp.validation import Validation

log = logging.getLogger("segapp")

_FEW_STEPS = 30
_PROBED = 30  # cases that the temperature is fitted to
_COMPARED = 1000  # cases, and slices, of which the looks are learned
_SLICES = 32  # of a case


def model_info(parts: Parts, state: State) -> ModelInfo:
    """What the model file of a run says, but how results are judged."""
    plan = parts.plan
    settings = plan.settings.model_dump(mode="json")
    same = plan.settings.train.deterministic  # equal runs make equal files, wherever and whenever
    if same:
        settings["train"]["out"] = None
    info = ModelInfo(
        architecture=parts.architecture,
        pruned=parts.pruned,
        preprocessing=plan.preprocessing,
        classes=plan.classes,
        ignore=plan.ignore,
        merged=plan.merged,
        flips=plan.flips,
        settings=settings,
        metrics={"epoch": state.best_epoch, **state.best_metrics},
        starting_weights=state.starting_weights,
        data=plan.record,
        training=plan.training,
        machine=machine_facts(parts.device),
    )
    return info.model_copy(update={"created": ""}) if same else info


def write_results(
    parts: Parts,
    state: State,
    best: dict[str, np.ndarray],
    predictor: Predictor,
    validation: Validation,
    timeline: Timeline,
    clock: Clock,
) -> None:
    """What the model knows of itself, pictures and the page, then metrics.json, whose being there
    says that the run is finished."""
    plan, out = parts.plan, parts.plan.out
    with inessential("curves.png"):
        write_curves(state.history, plan.classes, out / "curves.png")
    shown = picture_names(shown_cases(validation.cases))
    axis, in_the_end = plan.preprocessing.slice_axis, timeline.at_end(state.best_epoch)

    def draw(case: Case, segmentation: Segmentation, truth: np.ndarray) -> None:
        if case in shown:
            with inessential("a validation picture"):
                write_comparison(segmentation, truth, axis, out / "overlays" / shown[case])
            in_the_end(case, segmentation, truth)

    training = plan.dataset.split("train")
    result, judged, quality = _judge_model(
        predictor, validation, parts.cache, training, clock, draw
    )
    state.best_metrics = summary(result, "val") | {"every": validation.every}
    if doubt := distrust(quality):
        log.warning("every result of this model will be marked for review: %s", doubt)
    info = model_info(parts, state)
    info = info.model_copy(update={"temperature": predictor.temperature, "quality": quality})
    save_model(out / MODEL_NAME, best, info)
    write_text(out / JUDGED_NAME, judged_text(judged))
    figures = {
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(clock.elapsed(), 1),
        "starting_weights": state.starting_weights,
        "val": state.best_metrics,
    }
    doubts = doubts_about(plan, figures)
    for line in doubts:
        log.warning("%s", line)
    with inessential("report.html"):
        told = replace(plan, warnings=(*doubts, *plan.warnings))
        write_run_page(told, info, state.history, figures, shown, timeline)
    write_text(out / "metrics.json", json.dumps(figures, indent=2) + "\n")
    miou = state.best_metrics["miou"]
    log.info("the model is that of epoch %d: val mIoU %.4f", state.best_epoch, miou)


def doubts_about(plan: Plan, figures: Mapping[str, Any]) -> list[str]:
    """Why the network may have learned too little. figures: the run's metrics.json."""
    found, origin = [], figures["starting_weights"]
    if plan.settings.train.budget_minutes and figures["steps"] < _FEW_STEPS:
        steps = f"{figures['steps']} step{'' if figures['steps'] == 1 else 's'}"
        found.append(
            f"the network learned for {steps} only, too few for most data; give it more time or "
            "fewer pixels (train.budget_minutes, preprocess.size)"
        )
    if origin.startswith("none ("):  # they were asked for
        why = origin.removeprefix("none (").removesuffix(")")
        found.append(
            f"the encoder started from random weights ({why}), which takes more data and time; "
            "log.txt says how to get others"
        )
    return found


def _judge_model(
    predictor: Predictor,
    validation: Validation,
    cache: SliceCache,
    training: Sequence[Case],
    clock: Clock,
    draw: Callable[[Case, Segmentation, np.ndarray], None],
) -> tuple[Evaluation, list[Judged], Quality]:
    """Fit the predictor's temperature, validate it so, and fit how its results are judged.

    cache: the slices of `training`. draw: on_segmentation of the validation. Two passes over the
    validation cases, the first over at most thirty of them.
    """
    cases = validation.cases
    pixels: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def collect(case: Case, slab: np.ndarray, truth: np.ndarray) -> None:
        pixels[case.patient].append(some_pixels(*judged_pixels(slab, truth)))

    validation.cases = tuple(spread_over(cases, _PROBED))
    validation.run_alone(clock, on_slab=collect)
    validation.cases = cases
    predictor.temperature = fit_temperature(
        [
            (np.concatenate(p), np.concatenate(t))
            for p, t in (zip(*v, strict=True) for v in pixels.values())
        ]
    )
    scans: list[np.ndarray] = []
    patients: list[str] = []
    looked_at = {case.name for case in spread_over(cases, _COMPARED)}

    def look(case: Case, segmentation: Segmentation, truth: np.ndarray) -> None:
        draw(case, segmentation, truth)
        if case.name in looked_at:
            scans.append(scan_features(predictor.preprocessing.prepare(segmentation.scan)))
            patients.append(case.patient)

    result = validation.run_alone(clock, on_segmentation=look)
    judged = []
    for r in result.done():
        assert r.soft is not None, "a Predictor's segmentations have it"
        share = validation.shares.get(r.case.name, 1.0)  # sizes are those of whole scans
        true, predicted = share * r.matrix.sum(1), share * r.matrix.sum(0)
        dice = metrics.mean_dice(r.matrix)
        judged.append(Judged(r.case.patient, true, predicted, dice, share * r.soft))
    learned = list(_training_looks(cache, training))
    novelty = fit_novelty(
        [*(looks for looks, _ in learned), *scans], [*(name for _, name in learned), *patients]
    )
    declared = all(case.declared for case in cases)
    return result, judged, fit_quality(judged, len(predictor.classes), novelty, declared)


def _training_looks(
    cache: SliceCache, training: Sequence[Case]
) -> Iterator[tuple[np.ndarray, str]]:
    """What the slices of each training case look like, and whose it is; a thousand slices in all,
    so that it takes a second or two whatever the data."""
    spans = dict.fromkeys(cache.cases)  # one a case, in their order
    chosen = spread_over(list(zip(training, spans, strict=True)), _COMPARED)
    first = cache.context * cache.channels
    for case, span in chosen:
        slices = spread_over(span, min(_SLICES, max(1, _COMPARED // len(chosen))))
        images = (cache[k][0][first : first + cache.channels] for k in slices)
        yield np.stack([features(image) for image in images]), case.patient
