"""`segapp compare`: variants of a training, each with several seeds, measured and put side by side.

Each run is a process of its own, so that its peak memory is its own and a crash stops no other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from segapp.errors import ConfigError, DataError, Interrupted
from segapp.files import require_writable, write_table, write_text
from segapp.machine import catch_signals
from segapp.plan import make_plan
from segapp.progress import track
from segapp.report.comparison import (
    RUN_COLUMNS,
    Curve,
    Row,
    add_times_to_target,
    summarise,
    write_page,
)
from segapp.report.comparison_picture import draw
from segapp.settings import Settings
from segapp.trial import is_finished, read_result, run_figures, run_in_own_process
from segapp.variants import Comparison, RunKey

log = logging.getLogger("segapp")


def run_comparison(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Train and measure all runs that are not finished yet, one after the other; table and picture
    are written after each.

    Returns what --json prints; a run that failed stands in it with its reason and is tried again
    by the next call. Raises ConfigError where `out` holds another comparison, DataError and
    ConfigError for what would sink a run (before the first), OutputError, and Interrupted after
    Ctrl-C or SIGTERM, when the run under way has saved its state.
    """
    _refuse_other(comparison, out)
    todo = [key for key, s in comparison.runs.items() if not is_finished(s)]
    if todo:
        _check_data(comparison)
    require_writable(out)
    write_text(out / "comparison.yaml", comparison.to_yaml())
    failures: dict[RunKey, str] = {}
    log.info("%s", _announcement(comparison, todo))
    with catch_signals() as signals:
        for number, key in enumerate(comparison.runs, 1):
            if key not in todo:
                continue
            left = _time_left(comparison, todo[todo.index(key) :])
            log.info("run %d of %d: %s, seed %d%s", number, len(comparison.runs), *key, left)
            failure = "" if signals.stop else run_in_own_process(comparison.runs[key], signals)
            if failure:
                failures[key] = failure
                log.error("%s, seed %d: %s", *key, failure)
            _write_tables(comparison, failures, out)
            if is_finished(comparison.runs[key]):
                log.info("%s", _figures(comparison.runs[key]))
            if signals.stop or failure is None:
                raise Interrupted(
                    "stopped and saved; go on with: "
                    f"segapp compare {out / 'comparison.yaml'} --out {out}"
                )
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
        if is_finished(settings):
            known.setdefault(name, []).append(read_result(settings)["wall_seconds"])
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


def _figures(settings: Settings) -> str:
    row, _ = run_figures(settings)
    test = "" if row["test_miou"] is None else f", test {row['test_miou']:.4f}"
    return (
        f"  val mIoU {row['val_miou']:.4f}{test}, best epoch {row['best_epoch']} of "
        f"{row['epochs']}, {row['seconds_per_epoch']:.3g} s an epoch, "
        + (f"{row['images_per_second']:.3g} images/s, " if row["images_per_second"] else "")
        + f"{row['peak_memory_mb']:.0f} MB"
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
        row: Row = {"variant": name, "seed": seed, "folder": str(settings.run_folder)}
        if is_finished(settings):
            figures, curve = run_figures(settings)
            row |= {"status": "ok", **figures, "reason": ""}
            curves.setdefault(name, []).append(curve)
        elif (name, seed) in failures:
            row |= {"status": "failed", "reason": failures[name, seed]}
        else:
            row |= {"status": "to do", "reason": ""}
        rows.append(row)
    variants = list(comparison.variants)
    add_times_to_target(rows, curves, variants[0])
    write_table(out / "comparison.csv", RUN_COLUMNS, rows)
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
