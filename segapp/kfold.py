"""Cross-validation: a model for each fold, and their ensemble as one model file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segapp.checkpoint import MODEL_NAME, ModelInfo, read_info, read_weights, record_of, save_model
from segapp.closing import doubts_about
from segapp.errors import ConfigError, Interrupted, ModelFileError
from segapp.files import write_text
from segapp.machine import log_file
from segapp.plan import Plan, withdraw_run
from segapp.progress import inessential
from segapp.quality import JUDGED_NAME, Quality, fit_quality, read_judged
from segapp.report.run import write_folds_page
from segapp.resume import first_sitting
from segapp.selection import split_fold

log = logging.getLogger("segapp")


def run_folds(
    plan: Plan, run_plan: Callable[[Plan, float | None], Path], started: float | None = None
) -> Path:
    """Train train.folds models, each validated on the patients the others learn from.

    plan: of all cases, as `open_run` makes it where train.fold is not set; run_plan trains one
    fold. Each fold is a run of its own in out/fold1…, with an equal part of a budget; finished ones
    are left, one begun goes on. The ensemble of all is out/model.safetensors; out/metrics.json has
    the folds' val figures, their mean and standard deviation. Returns the run folder. Raises what
    `run_plan` raises, and Interrupted after the fold under way was saved.
    """
    s, out = plan.settings, plan.out
    folds = s.train.folds
    assert folds, "open_run was asked for folds"
    write_text(out / "config.yaml", s.to_yaml())
    runs = [out / f"fold{n}" for n in range(1, folds + 1)]
    with log_file(out / "log.txt"):
        plan = first_sitting(plan)
        for number, run in enumerate(runs, 1):
            if (run / "metrics.json").is_file():
                log.info("fold %d of %d is finished", number, folds)
                continue
            log.info("fold %d of %d", number, folds)
            try:
                run_plan(_plan_of_fold(plan, number, run), started)
            except Interrupted as error:
                raise Interrupted(
                    f"stopped in fold {number} of {folds} and saved; go on with: "
                    f"segapp train --resume {out}"
                ) from error
            except ConfigError:
                withdraw_run(plan)
                raise
            started = None  # the reading is paid for by the first fold
        _write_ensemble(plan, runs)
    return out


def _plan_of_fold(plan: Plan, number: int, run: Path) -> Plan:
    settings = plan.settings.model_copy(deep=True)
    assert settings.train.folds
    settings.train.fold, settings.train.out = number, run
    if settings.train.budget_minutes:
        settings.train.budget_minutes /= settings.train.folds
    dataset = split_fold(plan.dataset, settings.train.folds, number, settings.train.seed)
    sizes = ", ".join(f"{len(dataset.split(s))} {s}" for s in ("train", "val", "test"))
    return replace(
        plan,
        settings=settings,
        dataset=dataset,
        record=record_of(dataset, plan.record.earlier),
        reasons=(f"cases: {sizes}", *plan.reasons[1:]),
        fresh=not run.exists(),
    )


def _write_ensemble(plan: Plan, runs: list[Path]) -> None:
    """One model file with the networks of all folds, then metrics.json."""
    infos = [read_info(run) for run in runs]
    first = infos[0]
    for run, info in zip(runs, infos, strict=True):
        if (info.architecture, info.preprocessing) != (first.architecture, first.preprocessing):
            raise ModelFileError(
                f"{run}: its network or preprocessing is not that of {runs[0]}; remove the folder "
                f"{run} and train it again with --resume {plan.out}"
            )
    weights = {
        f"members.{n}.{name}": array
        for n, run in enumerate(runs)
        for name, array in read_weights(run).items()
    }
    figures = _figures(runs)
    info = first.model_copy(
        update={
            "architecture": first.architecture.model_copy(update={"members": len(runs)}),
            "settings": _settings_of_all(first.settings, plan),
            "metrics": figures["val"],
            "data": plan.record,
            # averaging softens as a temperature does, and nothing is left to fit one to
            "temperature": 1.0,
            "quality": _quality(runs, first),
        }
    )
    save_model(plan.out / MODEL_NAME, weights, info)
    each = [doubts_about(plan, fold) for fold in figures["folds"]]
    doubts = dict.fromkeys(
        line if all(line in of for of in each) else f"{run.name}: {line}"
        for run, found in zip(runs, each, strict=True)
        for line in found
    )
    with inessential("report.html"):
        told = replace(plan, warnings=(*doubts, *plan.warnings))
        write_folds_page(told, info, figures, runs)
    write_text(plan.out / "metrics.json", json.dumps(figures, indent=2) + "\n")
    val = figures["val"]
    log.info(
        "cross-validation over %d folds: val mIoU %.4f ± %.4f; the model is their ensemble",
        *(len(runs), val["miou"], val["miou_sd"]),
    )


def _quality(runs: list[Path], first: ModelInfo) -> Quality | None:
    """From every fold's validation cases, each judged by the model that did not learn from it. All
    folds together have seen the same slices, so the first one's novelty is that of all."""
    if first.quality is None:
        return None
    judged = [case for run in runs for case in read_judged(run / JUDGED_NAME)]
    declared = first.quality.patients_declared
    return fit_quality(judged, len(first.classes), first.quality.novelty, declared)


def _settings_of_all(of_fold: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A fold's settings, in which every `auto` is decided, as those of the whole run."""
    train = {**of_fold["train"], "fold": None, "out": str(plan.out)}
    if train["deterministic"]:  # as in a run's own model file
        train["out"] = None
    train["budget_minutes"] = plan.settings.train.budget_minutes
    return {**of_fold, "train": train}


def _figures(runs: list[Path]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) over the folds of their runs' metrics.json."""
    each = [json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in runs]
    val: dict[str, Any] = {"n": sum(m["val"]["n"] for m in each)}
    for name in ("miou", "dice"):
        values = [m["val"][name] for m in each if m["val"][name] is not None]
        val |= {name: round(float(np.mean(values)), 6) if values else None}
        val |= {f"{name}_sd": round(float(np.std(values, ddof=1)), 6) if values[1:] else None}
    seconds = round(sum(m["seconds"] for m in each), 1)
    return {"folds": each, "seconds": seconds, "val": val}
