"""The drawings of an evaluation's page. Each is None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from segapp.figures import PER_CASE, CaseResult, Evaluation
from segapp.finding import counted
from segapp.report.page import ACCENT, INK, LINE, SECOND, SOFT, drawing, number, svg
from segapp.report.pictures import score
from segapp.scan import css

_WIDTH = 9.2  # inches, of the page's column
_MOST_DOTS = 150  # of a class; more would be a band, and a large page
_LONG_NAME = 26


def spread_of_cases(evaluation: Evaluation) -> Markup | None:
    """Dice of every case by class, and beside it the Hausdorff distance where surfaces were
    compared."""
    done = evaluation.done()
    if not done:
        return None
    figures = np.array([r.figures() for r in done])
    dice = figures[:, PER_CASE.index("dice"), 1:]
    units = {r.distance_unit for r in done}
    distance = figures[:, PER_CASE.index("hd95"), 1:]
    both = bool(len(units) == 1 and not np.isnan(distance).all())
    if np.isnan(dice).all():
        return None
    from matplotlib.figure import Figure

    names = [_short(c.name) for c in evaluation.classes[1:]]
    colours = [css(c.colour) for c in evaluation.classes[1:]]
    with drawing():
        height = 0.95 + (0.42 if len(names) <= 12 else 0.28) * len(names)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots(1, 2 if both else 1, sharey=True, squeeze=False)[0]
        _rows(axes[0], dice, colours)
        low = float(np.nanmin(dice))
        axes[0].set(title="Dice of each case", xlim=(max(-0.02, low - 0.05) if low > 0.3 else -0.02,
                    1.01))  # fmt: skip
        if both:
            _rows(axes[1], distance, colours)
            axes[1].set(title=f"95 % Hausdorff distance of each case, {units.pop()}")
            axes[1].set_xlim(left=min(0, -0.02 * axes[1].get_xlim()[1]))
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        return svg(figure, "spread", "Each case's figures by class; the table of classes has them")


def _rows(axes: Any, values: np.ndarray, colours: Sequence[str]) -> None:
    """A row of dots for each column of (cases, classes), with median and quartiles."""
    rng = np.random.default_rng(0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    for n, colour in enumerate(colours):
        known = np.sort(values[:, n][~np.isnan(values[:, n])])
        if not known.size:
            continue
        low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
        if known.size > _MOST_DOTS:  # all of the ends, some of the middle
            ends = _MOST_DOTS // 3
            spread = np.linspace(ends, known.size - ends - 1, ends).astype(int)
            known = np.concatenate([known[:ends], known[spread], known[-ends:]])
        y = n + rng.uniform(-0.17, 0.17, known.size)
        axes.plot(known, y, "o", color=colour, markersize=3.6, alpha=0.7, mew=0.3, mec=INK)
        axes.plot([low, high], [n + 0.3] * 2, color=SOFT, linewidth=2.2, solid_capstyle="butt")
        axes.plot([middle], [n + 0.3], "|", color=INK, markersize=9, mew=2)


def reliability(calibration: dict[str, Any]) -> Markup:
    """Accuracy against confidence, as the network says it and as its temperature corrects it."""
    from matplotlib.figure import Figure

    series = [("bins", f"temperature {calibration['temperature']:.2f}", ACCENT, "o-")]
    if calibration.get("bins_unscaled"):
        series.insert(0, ("bins_unscaled", "as the network says it", SECOND, "s--"))
    with drawing():
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        axes.plot([0, 1], [0, 1], color="#9aa4ad", linewidth=0.8)
        for key, label, colour, form in series:
            bins = np.array(calibration[key], float).reshape(-1, 3)
            axes.plot(bins[:, 0], bins[:, 1], form, color=colour, label=label, ms=4, lw=1.4)
        bins = np.array(calibration["bins"], float).reshape(-1, 3)
        share = bins[:, 2] / max(bins[:, 2].sum(), 1)
        counts.bar(bins[:, 0], share, width=0.04, color=ACCENT)
        ends = [min(b[:2]) for key, *_ in series for b in calibration[key]]
        low = float(min(ends, default=0.0))
        for each in (axes, counts):
            each.grid()
            each.set_xlim(max(0, np.floor(10 * low) / 10 - 0.02), 1.02)
        axes.set(ylabel="share that is right", ylim=(axes.get_xlim()[0], 1.02))
        axes.tick_params(axis="x", length=0)
        figure.legend(loc="outside upper left", ncols=2)
        counts.set(xlabel="confidence", ylabel="of pixels", ylim=(0, 1))
        counts.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        alt = f"Reliability: expected calibration error {number(calibration['ece'], 4)}"
        return svg(figure, "reliability", alt)


def estimates(done: Sequence[CaseResult]) -> Markup | None:
    """Estimated against true Dice of each case; those marked for review stand out."""
    known = [
        (r.estimated_dice, score(r), bool(r.review))
        for r in done
        if r.estimated_dice is not None and not np.isnan(score(r))
    ]
    if not known:
        return None
    from matplotlib.figure import Figure

    points = np.array(known, float)[:2000]
    low = max(0.0, float(np.floor(10 * points[:, :2].min()) / 10))
    with drawing():
        figure = Figure(figsize=(4.6, 4.3), layout="constrained")
        axes = figure.subplots()
        axes.plot([low, 1], [low, 1], color="#9aa4ad", linewidth=0.8)
        for marked, colour, form, label in (
            (False, ACCENT, "o", "not marked"),
            (True, SECOND, "D", "marked for review"),
        ):
            some = points[points[:, 2] == marked]
            axes.plot(some[:, 0], some[:, 1], form, color=colour, ms=4.5, alpha=0.8, label=label)
        axes.set(xlabel="estimated Dice", ylabel="true Dice", xlim=(low, 1.01), ylim=(low, 1.01))
        axes.grid()
        figure.legend(loc="outside upper left", ncols=2)
        marked = int(points[:, 2].sum())
        alt = f"Estimated against true Dice of {counted(len(points), 'case')}, "
        alt += f"{marked} marked for review"
        return svg(figure, "estimates", alt)


def confusion_map(evaluation: Evaluation) -> Markup | None:
    """The confusion of many classes as a map: the share of each true class that went where."""
    matrix = evaluation.matrix
    if not matrix.any():
        return None
    from matplotlib.figure import Figure

    names = [_short(c.name) for c in evaluation.classes]
    shares = shares_of_truth(matrix)
    with drawing():
        side = 1.6 + 0.2 * len(names)
        figure = Figure(figsize=(min(_WIDTH, side + 0.6), min(_WIDTH, side)), layout="constrained")
        axes = figure.subplots()
        axes.pcolormesh(np.nan_to_num(shares) ** 0.5, cmap="Blues", vmin=0, vmax=1, lw=0.3, ec=LINE)
        places = np.arange(len(names)) + 0.5
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)
        axes.set(ylim=(len(names), 0), xlabel="result", ylabel="mask", aspect="equal")
        axes.tick_params(length=0, labelsize=7.5)
        return svg(figure, "confusion", "Where each true class went; a list follows")


def shares_of_truth(matrix: np.ndarray) -> np.ndarray:
    """(classes, classes) share of each row's sum; NaN in a row without a pixel."""
    sums = matrix.sum(1, keepdims=True)
    return np.divide(matrix, sums, out=np.full(matrix.shape, np.nan), where=sums > 0)


def _short(name: str) -> str:
    return name if len(name) <= _LONG_NAME else f"{name[: _LONG_NAME - 1]}…"
