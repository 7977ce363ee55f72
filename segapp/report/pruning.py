"""The picture of a pruned network's trade-off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segapp.files import atomic_path

if TYPE_CHECKING:
    from segapp.prune import Point

_COLOURS = {"original": "black", "channels": "#0072B2", "weights": "#E69F00"}


def draw_curve(points: Sequence[Point], chosen: Point, least: float, path: Path) -> None:
    """mIoU over the share of weights that is gone, and over the time of a slice; PNG.

    points: the original first. least: mIoU below which no network is chosen. Raises OutputError.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_share, by_time = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(p.method for p in points))
    for method in methods:
        own = [p for p in points if p.method in (method, "original")]
        label = {"channels": "fewer channels", "weights": "weights set to zero"}.get(method, method)
        for axes, across in (
            (by_share, [100 * p.sparsity for p in own]),
            (by_time, [p.ms for p in own]),
        ):
            style = "o" if method == "original" else "o-"
            axes.plot(across, [p.miou for p in own], style, color=_COLOURS[method], label=label)
            for x, p in zip(across, own, strict=True):
                if p.method == method != "original":
                    axes.annotate(f" {p.amount:g}", (x, p.miou), fontsize=8)
    for axes, x in ((by_share, 100 * chosen.sparsity), (by_time, chosen.ms)):
        axes.axhline(least, color="#999999", linestyle=":", label="least that is chosen")
        axes.plot(x, chosen.miou, "o", mfc="none", mec="#D55E00", ms=14, mew=2, label="chosen")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    by_share.set(xlabel="weights gone or zero, %", ylabel="val mIoU")
    by_time.set(xlabel="ms per slice", xlim=(0, None))
    by_share.legend(frameon=False, loc="lower left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
