"""What `segapp compare` shows: a table with a verdict on each variant, a row a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from segapp.files import write_text

RUN_COLUMNS = (
    *("variant", "seed", "status", "val_miou", "test_miou", "train_miou", "gap", "best_epoch"),
    *("epochs", "seconds_per_epoch", "target_miou", "seconds_to_target"),
    *("images_per_second", "peak_memory_mb", "wall_seconds", "starting_weights", "measured_on"),
    *("folder", "reason"),
)
_TARGET = 0.95  # of the baseline's mIoU
_MEANS = ("gap", "seconds_per_epoch", "images_per_second", "peak_memory_mb", "best_epoch", "epochs")
_WITHIN = "within the seeds' spread"
_OTHER_CASES = "measured on other cases or classes"
_ONE_SEED = "one seed: no spread known"
LEGEND = f"""\
- mIoU: mean IoU over all classes, background included; mean ± standard deviation over the seeds.
- difference: to {{baseline}}; mean ± standard deviation of the differences of runs of one seed.
- {_WITHIN}: the mean difference is no larger than that standard deviation, or than
  the one of either variant's mIoU over these seeds; chance alone may have made it. Of variants that
  change nothing, this still calls about 1 in 4 better or worse with 2 seeds, 1 in 6 with 3 and 1 in
  17 with 5: what counts deserves more seeds. Where the data set has no val split, each seed also
  sets other patients aside.
- val mIoU is that of the epoch it chose, so a little too good; the test split had no say.
- gap: mIoU of training cases minus val mIoU.
- s to X: seconds of the run until a validation first gave a mIoU of X, {{target:.0%}} of
  {{baseline}}'s; mean over the seeds, – where a run never did.
- s/epoch: median of the epochs, validation included; images/s: of the training steps.
- memory: the most that a run's process had, the GPU's where there is one.
- best epoch: the one whose weights became the model, of all; mean over the seeds."""

Row = dict[str, Any]
Curve = tuple[Sequence[float], Sequence[float]]  # seconds, val mIoU


def summarise(rows: Sequence[Row], variants: Sequence[str]) -> list[Row]:
    """A line for each variant from the runs' rows (RUN_COLUMNS; status ok, failed or to do).

    The first variant is the baseline: its difference and verdict are empty. Figures without a
    finished run are None; a standard deviation (n - 1) is None for fewer than two.
    """
    done = {(r["variant"], r["seed"]): r for r in rows if r["status"] == "ok"}
    baseline = {seed: r for (name, seed), r in done.items() if name == variants[0]}
    lines = []
    for variant in variants:
        own = [r for (name, _), r in done.items() if name == variant]
        failed = sum(r["variant"] == variant and r["status"] == "failed" for r in rows)
        line: Row = {"variant": variant, "runs": len(own), "failed": failed}
        for key in ("val_miou", "test_miou"):
            mean, sd = _mean_sd([r[key] for r in own])
            line |= {key: mean, f"{key}_sd": sd}
        line |= {"difference": None, "difference_sd": None, "verdict": "the baseline"}
        if variant != variants[0]:
            line |= _difference(baseline, {r["seed"]: r for r in own})
        times = [r.get("seconds_to_target") for r in own]
        line["seconds_to_target"] = None if None in times else _mean_sd(times)[0]
        line["target_miou"] = own[0].get("target_miou") if own else None
        lines.append(line | {key: _mean_sd([r[key] for r in own])[0] for key in _MEANS})
    return lines


def add_times_to_target(
    rows: Sequence[Row], curves: Mapping[str, Sequence[Curve]], baseline: str
) -> None:
    """Give each finished run of `rows` the target, 95 % of the baseline's mean val mIoU down to two
    digits, and the seconds after which it was reached: None where it never was, or without a
    baseline. curves: for each variant those of its finished runs, in the order of the rows."""
    done = [r for r in rows if r["status"] == "ok"]
    mean, _ = _mean_sd([r["val_miou"] for r in done if r["variant"] == baseline])
    target = None if mean is None else int(100 * _TARGET * mean) / 100
    ways = {name: iter(of_variant) for name, of_variant in curves.items()}
    for row in done:
        points = zip(*next(ways[row["variant"]]), strict=True)
        reached = (t for t, score in points if target is not None and score >= target)
        row |= {"target_miou": target, "seconds_to_target": next(reached, None)}


def _difference(baseline: Mapping[int, Row], own: Mapping[int, Row]) -> Row:
    seeds = sorted(own.keys() & baseline.keys())
    pairs = [(own[seed]["val_miou"], baseline[seed]["val_miou"]) for seed in seeds]
    if any(own[seed].get("measured_on") != baseline[seed].get("measured_on") for seed in seeds):
        return {"difference": None, "difference_sd": None, "verdict": _OTHER_CASES}
    mean, sd = _mean_sd([mine - theirs for mine, theirs in pairs])
    if mean is None:
        verdict = "no pair of runs yet"
    elif sd is None:
        verdict = _ONE_SEED
    else:
        spreads = (sd, *(_mean_sd(scores)[1] for scores in zip(*pairs, strict=True)))
        within = abs(mean) <= max(s for s in spreads if s is not None)
        verdict = _WITHIN if within else "better" if mean > 0 else "worse"
    return {"difference": mean, "difference_sd": sd, "verdict": verdict}


def _mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None, stdev(known) if len(known) > 1 else None


def table_text(lines: Sequence[Row]) -> str:
    """The lines of `summarise` as a Markdown table, its columns aligned for a terminal."""
    with_test = any(line["test_miou"] is not None for line in lines)
    titles = ["variant", "runs", "val mIoU", "test mIoU", "difference", "verdict", "gap"]
    target = number_text(lines[0]["target_miou"], ".2f")
    titles += [f"s to {target}", "s/epoch", "images/s", "memory MB", "best epoch"]
    cells = [titles, *(_cells(line) for line in lines)]
    if not with_test:
        cells = [[*row[:3], *row[4:]] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = [
        "| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def _cells(line: Row) -> list[str]:
    failed = f" ({line['failed']} failed)" if line["failed"] else ""
    best = number_text(line["best_epoch"], ".0f")
    return [
        line["variant"].replace("|", "\\|"),
        f"{line['runs']}{failed}",
        _plus_minus(line["val_miou"], line["val_miou_sd"]),
        _plus_minus(line["test_miou"], line["test_miou_sd"]),
        _plus_minus(line["difference"], line["difference_sd"], "+"),
        line["verdict"],
        number_text(line["gap"], "+.3f"),
        number_text(line["seconds_to_target"], ".0f"),
        number_text(line["seconds_per_epoch"], ".3g"),
        number_text(line["images_per_second"], ".3g"),
        number_text(line["peak_memory_mb"], ".0f"),
        best if best == "–" else f"{best} of {line['epochs']:.0f}",
    ]


def _plus_minus(mean: float | None, sd: float | None, sign: str = "") -> str:
    return number_text(mean, f"{sign}.4f") + ("" if sd is None else f" ± {sd:.4f}")


def number_text(value: float | None, form: str) -> str:
    """format(value, form); "–" for None."""
    return "–" if value is None else format(value, form)


def write_page(
    title: str,
    facts: str,
    rows: Sequence[Row],
    changes: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> None:
    """comparison.md: table, legend, picture, failures, and what each variant changes.

    facts: a paragraph about the data and the budget. Raises OutputError.
    """
    variants = list(changes)
    todo = sum(row["status"] == "to do" for row in rows)
    parts = [f"# {title}", facts, table_text(summarise(rows, variants))]
    parts += [f"{todo} of {len(rows)} runs are still to do."] if todo else []
    failed = [r for r in rows if r["status"] == "failed"]
    if failed:
        listed = [f"- {r['variant']}, seed {r['seed']}: {r['reason']}" for r in failed]
        parts.append("\n".join(["Failed runs:", "", *listed]))
    starts = sorted({row["starting_weights"] for row in rows if row.get("starting_weights")})
    if len(starts) > 1:
        parts.append(f"**The runs started from different weights**: {'; '.join(starts)}.")
    legend = LEGEND.format(baseline=variants[0], target=_TARGET)
    parts += [legend, "![figures of the runs](comparison.png)"]
    listed = [f"- {name}: {_words(changed)}" for name, changed in changes.items()]
    parts.append("\n".join(["What each variant sets:", "", *listed]))
    write_text(path, "\n\n".join(parts) + "\n")


def _words(changed: Mapping[str, Any]) -> str:
    return " ".join(f"`{key}={value}`" for key, value in changed.items()) or "nothing else"
