"""What a finished run leaves beside its model: pictures, a page, figures."""

from __future__ import annotations

import json
import logging

import numpy as np

from segapp.cases import Case
from segapp.checkpoint import ModelInfo
from segapp.files import write_text
from segapp.pace import Clock
from segapp.plan import Plan
from segapp.report.run import write_run_page
from segapp.report.timeline import Timeline, shown_cases
from segapp.report.training import write_comparison, write_curves
from segapp.resume import State
from segapp.scan import Segmentation
from segapp.validation import Validation

log = logging.getLogger("segapp")


def write_results(
    state: State,
    info: ModelInfo,
    validation: Validation,
    timeline: Timeline,
    plan: Plan,
    clock: Clock,
) -> None:
    """Pictures and the page, then metrics.json, whose being there says that the run is finished."""
    out = plan.out
    write_curves(state.history, plan.classes, out / "curves.png")
    validation.cases = shown_cases(validation.cases)
    axis, in_the_end = plan.preprocessing.slice_axis, timeline.at_end(state.best_epoch)

    def draw(case: Case, segmentation: Segmentation, truth: np.ndarray) -> None:
        write_comparison(case, segmentation, truth, axis, out / "overlays")
        in_the_end(case, segmentation, truth)

    validation.run(clock, on_segmentation=draw)
    figures = {
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(clock.elapsed(), 1),
        "starting_weights": state.starting_weights,
        "val": state.best_metrics,
    }
    write_run_page(plan, info, state.history, figures, validation.cases, timeline)
    write_text(out / "metrics.json", json.dumps(figures, indent=2) + "\n")
    miou = state.best_metrics["miou"]
    log.info("the model is that of epoch %d: val mIoU %.4f", state.best_epoch, miou)
