"""`segapp compare`: variants of a training, each with several seeds, measured and put side by side.

Each run is a process of its own, so that its peak memory is its own and a crash stops no other.
"""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import psutil
import yaml

from segapp import progress
from segapp.cases import Case
from segapp.errors import ConfigError, DataError, Interrupted, SegappError
from segapp.evaluate import evaluate_cases, summary
from segapp.files import require_writable, write_text
from segapp.machine import catch_interrupt
from segapp.plan import make_plan, open_run, reopen_run
from segapp.predict import Predictor
from segapp.progress import track
from segapp.report.comparison import Curve, Row, draw, summarise, write_page, write_runs
from segapp.settings import Settings
from segapp.variants import Comparison, RunKey

log = logging.getLogger("segapp")

_RESULT = "comparison.json"  # its being there says that a run is finished and measured
_STOPPED = 130  # exit code of a run that was interrupted, its state saved


def run_comparison(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Train and measure all runs that are not finished yet, one after the other; table and picture
    are written after each.

    Returns what --json prints; a run that failed stands in it with its reason and is tried again
    by the next call. Raises ConfigError where `out` holds another comparison, DataError and
    ConfigError for what would sink a run (before the first), OutputError, and Interrupted after
    Ctrl-C or SIGTERM, when the run under way has saved its state.
    """
    _refuse_other(comparison, out)
    todo = [key for key, s in comparison.runs.items() if not _is_finished(s)]
    if todo:
        _check_data(comparison)
    require_writable(out)
    write_text(out / "comparison.yaml", comparison.to_yaml())
    failures: dict[RunKey, str] = {}
    log.info("%s", _announcement(comparison, todo))
    with catch_interrupt() as interrupted:
        for number, key in enumerate(comparison.runs, 1):
            if key not in todo:
                continue
            left = _time_left(comparison, todo[todo.index(key) :])
            log.info("run %d of %d: %s, seed %d%s", number, len(comparison.runs), *key, left)
            failure = "" if interrupted else _in_own_process(comparison.runs[key], interrupted)
            if interrupted or failure is None:
                raise Interrupted(
                    "stopped and saved; go on with: "
                    f"segapp compare {out / 'comparison.yaml'} --out {out}"
                )
            if failure:
                failures[key] = failure
                log.error("%s, seed %d: %s", *key, failure)
            _write_tables(comparison, failures, out)
            if not failure:
                log.info("%s", _figures(comparison.runs[key]))
    return _write_tables(comparison, failures, out)


def _refuse_other(comparison: Comparison, out: Path) -> None:
    """Raise ConfigError unless `out` is empty or holds this comparison, maybe with fewer seeds."""
    path = out / "comparison.yaml"
    if not path.is_file():
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise ConfigError(f"{out}: is not empty and holds no comparison; choose another --out")
        return
    try:
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
        seeds = int(there["compare"].pop("seeds"))
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: can't be read ({error}); choose another --out") from error
    here = yaml.safe_load(comparison.to_yaml())
    if here["compare"].pop("seeds") < seeds or here != there:
        raise ConfigError(
            f"{out}: holds a different comparison, see {path}; go on with that one "
            f"(segapp compare {path} --out {out}) or choose another --out"
        )


def _check_data(comparison: Comparison) -> None:
    """Plan the first run of each variant, once for all that make the same of the data."""
    seen: list[dict[str, Any]] = []
    for (name, seed), settings in comparison.runs.items():
        matters: dict[str, Any] = {"data": True, "preprocess": True, "model": True}
        matters |= {"loss": {"class_weights"}, "train": {"folds", "fold"}}
        matters |= {"augment": True} if settings.model.tta else {}  # it averages over the flips
        about_data = settings.model_dump(include=matters)
        if seed or about_data in seen:
            continue
        seen.append(about_data)
        try:
            make_plan(settings, lambda cases: track(cases, "reading the data"))
        except (ConfigError, DataError) as error:
            kind = ConfigError if isinstance(error, ConfigError) else DataError
            raise kind(f"variant {name}: {error}") from error


def _is_finished(settings: Settings) -> bool:
    return (_folder(settings) / _RESULT).is_file()


def _folder(settings: Settings) -> Path:
    assert settings.train.out is not None, "read_comparison sets it"
    return settings.train.out


def _announcement(comparison: Comparison, todo: Sequence[RunKey]) -> str:
    shape = f"{len(comparison.variants)} variants × {_seeds(comparison)}"
    done = len(comparison.runs) - len(todo)
    finished = f", {done} finished before" if done else ""
    left = _time_left(comparison, todo) or ", how long they take shows after the first"
    return f"{len(comparison.runs)} runs ({shape}){finished}{left if todo else ''}"


def _time_left(comparison: Comparison, todo: Sequence[RunKey]) -> str:
    """ ", about 12 min left" for the runs to do, from finished ones, else from the budgets; ""
    where neither tells it."""
    known: dict[str, list[float]] = {}
    for (name, _), settings in comparison.runs.items():
        if _is_finished(settings):
            known.setdefault(name, []).append(_read_result(settings)["wall_seconds"])
    everything = [seconds for times in known.values() for seconds in times]
    total = 0.0
    for name, seed in todo:
        budget = comparison.runs[name, seed].train.budget_minutes
        if name in known:
            total += fmean(known[name])
        elif budget is not None:
            total += 60 * budget
        elif everything:
            total += fmean(everything)
        else:
            return ""
    return f", about {total / 60:.0f} min left" if total > 90 else f", about {total:.0f} s left"


def _in_own_process(settings: Settings, interrupted: list[int]) -> str | None:
    """Train and measure one run; why it failed, "" where it didn't, None where it was stopped."""
    run = _folder(settings)
    failure = run.parent / f"{run.name}.failed.txt"
    failure.unlink(missing_ok=True)
    # Only what was given: settings that nobody chose are left for the plan to decide.
    given = settings.model_dump(mode="json", exclude_unset=True)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run_child, args=(yaml.safe_dump(given), str(failure)))
    process.start()
    forwarded = False
    while process.is_alive():
        process.join(0.2)
        # The terminal sends Ctrl-C to both processes, but SIGTERM comes to this one alone.
        if signal.SIGTERM in interrupted and not forwarded:
            process.terminate()
            forwarded = True
    if process.exitcode == _STOPPED or (process.exitcode and interrupted):
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


def train_and_measure(settings: Settings) -> None:
    """Train the run in train.out, or what is left of it, and write its comparison.json.

    The model is measured on the val split, on as many cases of the train split, and on the test
    split where there is one; a budget pays for the training alone. Raises what training raises.
    """
    from segapp.train import run_plan  # torch takes seconds, and the parent has no need of it

    run = _folder(settings)
    plan = reopen_run(settings) if (run / "log.txt").is_file() else open_run(settings)
    if plan:
        run_plan(plan, time.time())
    else:  # trained, but not measured
        plan = make_plan(settings)
    began = time.time()
    predictor = Predictor.load(run)
    assert predictor.info is not None
    val, train, test = (plan.dataset.split(name) for name in ("val", "train", "test"))
    shown = np.unique(np.linspace(0, len(train) - 1, min(len(val), len(train))).round().astype(int))
    splits: dict[str, Sequence[Case]] = {"val": val, "train": [train[n] for n in shown]}
    splits |= {"test": test} if test else {}
    result: dict[str, Any] = {"seed": settings.train.seed}
    for name, cases in splits.items():
        info = predictor.info
        evaluation = evaluate_cases(predictor, cases, info.ignore, info.merged)
        for failed in evaluation.failed():
            log.warning("%s: %s", name, failed.error)
        result[name] = summary(evaluation, name)
    trained = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["seconds"]
    sitting = time.time() - psutil.Process().create_time()  # imports included
    result["wall_seconds"] = round(max(sitting, trained + time.time() - began), 1)
    write_text(run / _RESULT, json.dumps(result, indent=2) + "\n")


def _read_result(settings: Settings) -> dict[str, Any]:
    return json.loads((_folder(settings) / _RESULT).read_text(encoding="utf-8"))


def run_figures(settings: Settings) -> tuple[Row, Curve]:
    """The figures of a finished run (those of RUN_COLUMNS that it can tell), and its val mIoU over
    the seconds of the run."""
    run, result = _folder(settings), _read_result(settings)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    val, train = result["val"]["miou"], result["train"]["miou"]
    row: Row = {"val_miou": val, "train_miou": train}
    row["test_miou"] = result["test"]["miou"] if "test" in result else None
    row["gap"] = None if val is None or train is None else train - val
    row |= {"best_epoch": metrics["best_epoch"], "epochs": metrics["epochs"]}
    row["seconds_per_epoch"] = median(float(e["seconds"]) for e in epochs)
    row["images_per_second"] = median(float(e["images_per_second"]) for e in epochs)
    row["peak_memory_mb"] = max(float(e["peak_memory_mb"]) for e in epochs)
    row["wall_seconds"] = result["wall_seconds"]
    times = np.cumsum([float(e["seconds"]) for e in epochs])
    measured = [
        (t, float(e["val_miou"])) for t, e in zip(times, epochs, strict=True) if e["val_miou"]
    ]
    return row, ([float(t) for t, _ in measured], [score for _, score in measured])


def _figures(settings: Settings) -> str:
    row, _ = run_figures(settings)
    test = "" if row["test_miou"] is None else f", test {row['test_miou']:.4f}"
    return (
        f"  val mIoU {row['val_miou']:.4f}{test}, best epoch {row['best_epoch']} of "
        f"{row['epochs']}, {row['seconds_per_epoch']:.3g} s an epoch, "
        f"{row['images_per_second']:.3g} images/s, {row['peak_memory_mb']:.0f} MB"
    )


def _facts(comparison: Comparison) -> str:
    """Data and length of the runs, in a line."""
    lengths, roots = set(), set()
    for settings in comparison.runs.values():
        budget, epochs = settings.train.budget_minutes, settings.train.epochs
        lengths.add(f"{epochs} epochs" if epochs else f"{budget:g} minutes of training")
        roots.add(str(settings.data.root))
    said = f"{lengths.pop()} for each" if len(lengths) == 1 else "not equally long"
    return (
        f"Data: {', '.join(sorted(roots))}. Runs: {said}; {_seeds(comparison)} a variant, one run "
        "after the other."
    )


def _seeds(comparison: Comparison) -> str:
    return "1 seed" if comparison.seeds == 1 else f"{comparison.seeds} seeds"


def _write_tables(comparison: Comparison, failures: dict[RunKey, str], out: Path) -> dict[str, Any]:
    """Write comparison.md, .csv and .png of what there is; returns it."""
    rows: list[Row] = []
    curves: dict[str, list[Curve]] = {}
    for (name, seed), settings in comparison.runs.items():
        row: Row = {"variant": name, "seed": seed, "folder": str(_folder(settings))}
        if _is_finished(settings):
            figures, curve = run_figures(settings)
            row |= {"status": "ok", **figures, "reason": ""}
            curves.setdefault(name, []).append(curve)
        elif (name, seed) in failures:
            row |= {"status": "failed", "reason": failures[name, seed]}
        else:
            row |= {"status": "to do", "reason": ""}
        rows.append(row)
    variants = list(comparison.variants)
    write_runs(rows, out / "comparison.csv")
    draw(rows, curves, variants, out / "comparison.png")
    page = out / "comparison.md"
    write_page(comparison.title, _facts(comparison), rows, comparison.variants, page)
    return {
        "title": comparison.title,
        "baseline": variants[0],
        "variants": summarise(rows, variants),
        "runs": rows,
        "n_failed": len(failures),
        "page": str(page),
    }
