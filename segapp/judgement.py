"""How well a model judged its own results, measured on labelled cases."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from segapp import metrics
from segapp.calibration import BINS, calibration_error, judged_pixels, reliability, tempered
from segapp.cases import Case
from segapp.figures import CaseResult, Evaluation, number
from segapp.finding import counted
from segapp.quality import Quality

_LEAST_CASES = 5  # for a rank correlation


class Calibration:
    """Counts, in passing, how probabilities and truth agree: as they are, and without the
    temperature that they were scaled by."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.bins: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, BINS, 3)))  # by case

    def add(self, case: Case, slab: np.ndarray, truth: np.ndarray) -> None:
        """`on_slab` of an evaluation. Where slices were resized, or flips averaged, the second
        count is that of the averages brought back, which is nearly the same."""
        probabilities, true = judged_pixels(slab, truth)
        unscaled = tempered(probabilities, 1 / self.temperature)
        self.bins[case.name] += [reliability(p, true) for p in (probabilities, unscaled)]

    def figures(self) -> dict[str, Any]:
        """Expected calibration error over pixels of the foreground and its boundary, and for each
        bin that holds some the mean probability, the share that is right, and the pixels."""
        whole = sum((self.bins[name] for name in sorted(self.bins)), np.zeros((2, BINS, 3)))
        scaled, unscaled = whole
        return {
            "temperature": number(self.temperature),
            "ece": number(calibration_error(scaled)),
            "ece_unscaled": number(calibration_error(unscaled)),
            "n_pixels": int(scaled[:, 0].sum()),
            "bins": _bins(scaled),
            "bins_unscaled": _bins(unscaled),
        }


def _bins(counts: np.ndarray) -> list[list[float | None]]:
    return [[number(s / n), number(r / n), int(n)] for n, s, r in counts.tolist() if n]


def gate_figures(evaluation: Evaluation) -> dict[str, Any]:
    """How many cases are marked for review, and the rank correlation (Spearman) of estimated with
    true Dice, both means over foreground classes; None for fewer than 5 cases."""
    done = evaluation.done()
    pairs = [(r.estimated_dice, metrics.mean_dice(r.matrix)) for r in done]
    known = [(e, d) for e, d in pairs if e is not None and not np.isnan(d)]
    return {
        "n": len(done),
        "n_review": sum(bool(r.review) for r in done),
        "spearman": _rank_correlation(known),
        "n_estimated": len(known),
    }


def _rank_correlation(pairs: list[tuple[float, float]]) -> float | None:
    if len(pairs) < _LEAST_CASES or any(np.ptp(column) == 0 for column in zip(*pairs, strict=True)):
        return None
    from scipy.stats import spearmanr  # half a second that few need

    return number(spearmanr(*zip(*pairs, strict=True)).statistic)  # type: ignore[attr-defined]


def size_coverage(quality: Quality, done: list[CaseResult], k: int) -> dict[str, Any]:
    """How often the true size of class k was within its range, beside what was promised, and from
    how many patients' validation cases; or why there are no ranges. Scans of which the mask ignores
    a part are left out: their true sizes are not known."""
    margin = quality.margins[k]
    if margin.factor is None:
        return {
            "why_not": f"{counted(margin.patients, 'patient')} in validation can promise nothing"
        }
    covered = n = 0
    for r in done:
        ends = r.ranges()[k]
        if ends is not None and not r.ignored:
            n += 1
            covered += ends[0] <= r.matrix.sum(1)[k] * r.voxel <= ends[1]
    known = {"promised": number(margin.promised), "covered": int(covered), "n": n}
    return known | {"patients": margin.patients, "cases": margin.cases}
