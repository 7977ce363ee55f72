"""The picture of `segapp compare`: val mIoU of each run and variant, its way over time, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from segapp.files import atomic_path
from segapp.report.comparison import Curve, Row, number_text, summarise

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
    labels = [number_text(line[key], ".3g" if (line[key] or 0) < 1000 else ".0f") for line in lines]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.locator_params(axis="x", nbins=3)
    axes.set_xlim(0, 1.3 * max([*values, 1e-9]))


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
