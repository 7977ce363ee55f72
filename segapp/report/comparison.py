"""What `segapp compare` shows: a table with a verdict on each variant, a row a run, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from segapp.files import atomic_path, write_text

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
    target = _number(lines[0]["target_miou"], ".2f")
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
    best = _number(line["best_epoch"], ".0f")
    return [
        line["variant"].replace("|", "\\|"),
        f"{line['runs']}{failed}",
        _plus_minus(line["val_miou"], line["val_miou_sd"]),
        _plus_minus(line["test_miou"], line["test_miou_sd"]),
        _plus_minus(line["difference"], line["difference_sd"], "+"),
        line["verdict"],
        _number(line["gap"], "+.3f"),
        _number(line["seconds_to_target"], ".0f"),
        _number(line["seconds_per_epoch"], ".3g"),
        _number(line["images_per_second"], ".3g"),
        _number(line["peak_memory_mb"], ".0f"),
        best if best == "–" else f"{best} of {line['epochs']:.0f}",
    ]


def _plus_minus(mean: float | None, sd: float | None, sign: str = "") -> str:
    return _number(mean, f"{sign}.4f") + ("" if sd is None else f" ± {sd:.4f}")


def _number(value: float | None, form: str) -> str:
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


# Okabe and Ito's colours, told apart by everybody; the baseline is black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800")
_OTHERS = "#A8A8A8"


def draw(
    rows: Sequence[Row], curves: Mapping[str, Sequence[Curve]], variants: Sequence[str], path: Path
) -> None:
    """comparison.png: val mIoU a run and a variant, its way over time, time and memory.

    curves: for each variant those of its runs. With more variants than colours, the ones furthest
    from the baseline have one and the others are grey. Raises OutputError.
    """
    from matplotlib.figure import Figure  # half a second that only those pay who draw

    lines = summarise(rows, variants)
    colours = _colours(lines)
    figure = Figure(figsize=(15, max(3.6, 1.7 + 0.33 * len(variants))), layout="constrained")
    score, way, seconds, memory = figure.subplots(1, 4, width_ratios=(1.25, 1.3, 0.65, 0.65))
    _draw_scores(score, rows, lines, colours)
    _draw_ways(way, curves, variants, colours)
    _draw_bars(seconds, lines, "seconds_per_epoch", colours)
    _draw_bars(memory, lines, "peak_memory_mb", colours)
    score.set(title="Val mIoU: each run, mean ± sd", xlabel="val mIoU")
    seconds.set(title="Seconds an epoch", xlabel="s")
    memory.set(title="Peak memory", xlabel="MB")
    for axes in (score, seconds, memory):
        axes.set_yticks(range(len(variants)), [_short(name) for name in variants])
        axes.set_ylim(len(variants) - 0.4, -0.6)
    memory.tick_params(labelleft=False)
    for axes in (score, way, seconds, memory):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _colours(lines: Sequence[Row]) -> dict[str, str]:
    others = sorted(lines[1:], key=lambda line: -abs(line["difference"] or 0))
    chosen = {line["variant"] for line in others[: len(_COLOURS)]}
    spare = iter(_COLOURS)
    colours = {line["variant"]: _OTHERS for line in lines}
    for line in lines[1:]:
        if line["variant"] in chosen:
            colours[line["variant"]] = next(spare)
    return colours | {lines[0]["variant"]: "black"}


def _draw_scores(
    axes: Any, rows: Sequence[Row], lines: Sequence[Row], colours: dict[str, str]
) -> None:
    for y, line in enumerate(lines):
        colour = colours[line["variant"]]
        own = [r for r in rows if r["variant"] == line["variant"] and r["status"] == "ok"]
        dots = [r["val_miou"] for r in own if r["val_miou"] is not None]
        axes.plot(dots, [y] * len(dots), "o", color=colour, markersize=6, alpha=0.5, mew=0)
        if line["val_miou"] is None:
            continue
        axes.errorbar(
            line["val_miou"],
            y,
            xerr=line["val_miou_sd"] or None,
            fmt="|",
            color=colour,
            markersize=13,
            markeredgewidth=2.5,
            elinewidth=1.5,
        )
    if lines[0]["val_miou"] is not None:
        axes.axvline(lines[0]["val_miou"], color="black", linestyle=":", linewidth=1)
    axes.grid(axis="x", alpha=0.3)


def _draw_ways(
    axes: Any,
    curves: Mapping[str, Sequence[Curve]],
    variants: Sequence[str],
    colours: dict[str, str],
) -> None:
    means = {name: curve for name in variants if (curve := mean_curve(curves.get(name, ())))}
    last = max((curve[0][-1] for curve in means.values()), default=0)
    unit, name_of_unit = (60, "minutes") if last > 180 else (1, "seconds")
    grey = [name for name in means if colours[name] == _OTHERS]
    # The baseline is drawn last, over the others, and is the first in the legend.
    for name in [*grey, *(n for n in reversed(means) if n not in grey)]:
        label = "the others" if name in grey[:1] else None if name in grey else _short(name)
        times, scores = means[name]
        marker = "o" if len(times) == 1 else ""
        width = 1 if name in grey else 2.2 if name == variants[0] else 1.6
        axes.plot(
            np.asarray(times) / unit,
            scores,
            marker=marker,
            color=colours[name],
            label=label,
            linewidth=width,
        )
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[::-1], labels[::-1], frameon=False, loc="lower right", fontsize=8)
        # The steep beginning would hide what tells the variants apart.
        axes.set_ylim(bottom=min(np.interp(0.2 * last, *curve) for curve in means.values()) - 0.05)
    axes.set(title="Val mIoU over time, mean of the seeds", xlabel=name_of_unit)
    axes.grid(alpha=0.3)


def mean_curve(curves: Sequence[Curve]) -> Curve | None:
    """The mean of curves over the time that all of them cover, linear between their points; None
    without a point."""
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return None
    first, last = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
    if first >= last:  # no time in common: where they end
        return [fmean(c[0][-1] for c in curves)], [fmean(c[1][-1] for c in curves)]
    times = np.linspace(first, last, 100)
    return times.tolist(), np.mean([np.interp(times, *c) for c in curves], axis=0).tolist()


def _draw_bars(axes: Any, lines: Sequence[Row], key: str, colours: dict[str, str]) -> None:
    values = [line[key] or 0 for line in lines]
    names = [line["variant"] for line in lines]
    bars = axes.barh(range(len(lines)), values, color=[colours[n] for n in names], height=0.5)
    labels = [_number(line[key], ".3g" if (line[key] or 0) < 1000 else ".0f") for line in lines]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.locator_params(axis="x", nbins=3)
    axes.set_xlim(0, 1.3 * max([*values, 1e-9]))


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
