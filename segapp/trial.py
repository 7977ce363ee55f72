"""One run of a comparison, trained and measured in a process of its own."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import yaml

from segapp import progress
from segapp.cases import Case
from segapp.checkpoint import read_info
from segapp.config import load_settings
from segapp.errors import DataError, Interrupted, SegappError
from segapp.evaluate import evaluate_cases
from segapp.figures import summary
from segapp.files import write_text
from segapp.machine import Signals
from segapp.plan import Plan, make_plan, open_run, reopen_run
from segapp.predict import Predictor
from segapp.report.comparison import Curve, Row
from segapp.selection import spread_over
from segapp.settings import Settings

log = logging.getLogger("segapp")

_RESULT = "comparison.json"  # its being there says that a run is finished and measured
_STOPPED = 130  # exit code of a run that was interrupted, its state saved


def is_finished(settings: Settings) -> bool:
    """Whether the run is trained and measured."""
    return (settings.run_folder / _RESULT).is_file()


def run_in_own_process(settings: Settings, signals: Signals) -> str | None:
    """Train and measure one run; why it failed, "" where it didn't, None where it was stopped."""
    run = settings.run_folder
    failure = run.parent / f"{run.name}.failed.txt"
    failure.unlink(missing_ok=True)
    # Only what was given: settings that nobody chose are left for the plan to decide.
    given = settings.model_dump(mode="json", exclude_unset=True)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run_child, args=(yaml.safe_dump(given), str(failure)))
    process.start()
    forwarded = False
    try:
        while process.is_alive():
            process.join(0.2)
            if signals.stop and not forwarded:
                process.terminate()  # it saves its state
                forwarded = True
    except KeyboardInterrupt:  # the second one
        process.kill()
        raise
    if process.exitcode == _STOPPED or (process.exitcode and signals.stop):
        return None
    if failure.is_file():
        return failure.read_text(encoding="utf-8").strip()
    if process.exitcode == 0:
        return ""
    code = process.exitcode or 0
    by = f"signal {-code}; out of memory?" if code < 0 else f"exit code {code}; a bug of segapp"
    return f"the run ended by {by}; see {run / 'log.txt'}"


def _run_child(settings_text: str, failure: str) -> None:
    """The process of one run. An error made for users goes into the file `failure`."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C goes to the parent alone, which hands it on once
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # No bars, and of the log lines only warnings: the run's log.txt has them all.
    progress.console = progress.Console(stderr=True, force_terminal=False)
    progress.log_to_console()
    for handler in log.handlers:
        handler.setLevel(logging.WARNING)
    settings = Settings.model_validate(yaml.safe_load(settings_text))
    try:
        train_and_measure(settings)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(_STOPPED)
    except SegappError as error:
        write_text(Path(failure), " ".join(str(error).splitlines()) + "\n")
        sys.exit(1)


def _end_with(parent: int) -> None:
    """Save and stop once the parent is gone: the next one would start this run again."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def train_and_measure(settings: Settings) -> None:
    """Train the run in train.out, or what is left of it, and write its comparison.json.

    The model is measured on the val split, on as many cases of the train split, and on the test
    split where there is one; a budget pays for the training alone. Raises what training raises.
    """
    from segapp.train import run_plan  # torch takes seconds, and the parent has no need of it

    run = settings.run_folder
    if all((run / name).is_file() for name in ("config.yaml", "log.txt")):
        settings = load_settings(run / "config.yaml", [])  # as it was decided when it began
        plan = reopen_run(settings)
    else:
        shutil.rmtree(run, ignore_errors=True)  # killed while it took its folder
        plan = open_run(settings)
    if plan:
        run_plan(plan, time.time())
    else:  # trained, but not measured
        plan = make_plan(settings)
    if plan.record != read_info(run).data:
        raise DataError(f"{settings.data.root}: the data changed since {run} was trained")
    began = time.time()
    predictor = Predictor.load(run)
    assert predictor.info is not None
    val, train, test = (plan.dataset.split(name) for name in ("val", "train", "test"))
    splits: dict[str, Sequence[Case]] = {"val": val, "train": spread_over(train, len(val))}
    splits |= {"test": test} if test else {}
    result: dict[str, Any] = {"seed": settings.train.seed, "measured_on": _measured_on(plan)}
    for name, cases in splits.items():
        info = predictor.info
        evaluation = evaluate_cases(predictor, cases, info.ignore, info.merged)
        for failed in evaluation.failed():
            raise DataError(f"{name}: {failed.error}")
        result[name] = summary(evaluation, name)
    trained = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["seconds"]
    sitting = time.time() - psutil.Process().create_time()  # imports included
    result["wall_seconds"] = round(max(sitting, trained + time.time() - began), 1)
    write_text(run / _RESULT, json.dumps(result, indent=2) + "\n")
    shutil.rmtree(run / "last", ignore_errors=True)  # three times the model, and done with


def _measured_on(plan: Plan) -> str:
    """Tells apart what figures on the val split are of: its images, masks, classes."""
    record = plan.record
    content = (record.images.get("val"), record.masks.get("val"), [str(c) for c in plan.classes])
    return hashlib.sha256(repr((content, plan.merged, plan.ignore)).encode()).hexdigest()[:16]


def read_result(settings: Settings) -> dict[str, Any]:
    """What `train_and_measure` wrote: seed, measured_on, val, train, maybe test, wall_seconds."""
    return json.loads((settings.run_folder / _RESULT).read_text(encoding="utf-8"))


def run_figures(settings: Settings) -> tuple[Row, Curve]:
    """The figures of a finished run (those of RUN_COLUMNS that it can tell), and its val mIoU over
    the seconds of the run."""
    run, result = settings.run_folder, read_result(settings)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    val, train = result["val"]["miou"], result["train"]["miou"]
    row: Row = {"val_miou": val, "train_miou": train}
    row["test_miou"] = result["test"]["miou"] if "test" in result else None
    row["gap"] = None if val is None or train is None else train - val
    row |= {"best_epoch": metrics["best_epoch"], "epochs": metrics["epochs"]}
    row |= {
        "starting_weights": metrics["starting_weights"],
        "measured_on": result.get("measured_on"),
    }
    row["seconds_per_epoch"] = median(float(e["seconds"]) for e in epochs)
    speeds = [float(e["images_per_second"]) for e in epochs if e["images_per_second"]]
    row["images_per_second"] = median(speeds) if speeds else None
    row["peak_memory_mb"] = max(float(e["peak_memory_mb"]) for e in epochs)
    row["wall_seconds"] = result["wall_seconds"]
    times = np.cumsum([float(e["seconds"]) for e in epochs])
    measured = [
        (t, float(e["val_miou"])) for t, e in zip(times, epochs, strict=True) if e["val_miou"]
    ]
    return row, ([float(t) for t, _ in measured], [score for _, score in measured])
