"""How sure figures over patients are: bootstrap intervals, and a paired test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

LEAST_PATIENTS = 5  # with the figure; below, resampling says nothing
_LEAST_PAIRS = 6  # fewer can't be told from chance at 5 %, however they differ
_RESAMPLES = 4000
_LEVEL = 0.95
_POWER = 0.8

Statistic = Callable[[np.ndarray], np.ndarray]


def intervals(
    sums: np.ndarray, statistic: Statistic, having: np.ndarray | None = None
) -> np.ndarray:
    """95 % intervals of figures over patients: (2, m), lower and upper ends.

    sums: (n, k), what each patient adds to the totals that the figures are taken of; statistic:
    totals (B, k) → figures (B, m), NaN where a figure has no cases. Patients, not their cases, are
    drawn with replacement, as cases of one patient are no independent witnesses.

    BCa (Efron 1987), which follows bias and skew, with the quantiles widened as a t distribution
    of n - 1 degrees of freedom asks (Hesterberg 2015, "expanded"): plain ones are too short for
    few patients. n is the number of patients who have the figure, (m,) `having`, or those for whom
    `statistic` has one; NaN where these are fewer than 5. The same numbers give the same intervals.
    """
    n = len(sums)
    sums = np.asarray(sums, float)
    whole = statistic(sums.sum(0, keepdims=True))[0]
    found = np.full((2, len(whole)), np.nan)
    if n < LEAST_PATIENTS:
        return found
    known = np.count_nonzero(~np.isnan(statistic(sums)), axis=0) if having is None else having
    drawn, without = statistic(_draws(n) @ sums), statistic(sums.sum(0) - sums)
    ends = np.array([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    for index in np.flatnonzero(~np.isnan(whole) & (known >= LEAST_PATIENTS)):
        value, count = whole[index], known[index]
        some, left = (x[~np.isnan(x)] for x in (drawn[:, index], without[:, index]))
        same = np.isclose(some, value, rtol=1e-12, atol=1e-12)
        below = (np.count_nonzero((some < value) & ~same) + np.count_nonzero(same) / 2) / len(some)
        bias = ndtri(np.clip(below, 1 / len(some), 1 - 1 / len(some)))
        off = left.mean() - left
        spread = np.square(off).sum() ** 1.5
        skew = (off**3).sum() / (6 * spread) if spread > 0 else 0.0
        wide = np.sqrt(count / (count - 1)) * stdtrit(count - 1, ends)
        shares = ndtr(bias + (bias + wide) / np.maximum(1 - skew * (bias + wide), 1e-3))
        found[:, index] = np.quantile(some, shares)
    return found


def paired(
    first: np.ndarray, second: np.ndarray, statistic: Statistic
) -> tuple[np.ndarray, np.ndarray]:
    """How a figure differs between two models on the same patients: p values of "no difference",
    and the smallest differences that so many patients would show, (m,) each.

    first, second: (n, k) sums as for `intervals`, a row for each patient. The p value is two-sided,
    by swapping the models' rows of patients at random (Fisher's randomisation test). The smallest
    difference is the one that a t test at 5 % finds in 80 % of data sets with this scatter, which
    is taken from the bootstrap. NaN for fewer than 6 patients.
    """
    n = len(first)
    whole = _difference(first.sum(0, keepdims=True), second.sum(0, keepdims=True), statistic)[0]
    if n < _LEAST_PAIRS:
        return np.full(len(whole), np.nan), np.full(len(whole), np.nan)
    swapped = np.random.default_rng(0).integers(0, 2, (_RESAMPLES, n)).astype(float)
    change = swapped @ (second - first)
    by_chance = _difference(first.sum(0) + change, second.sum(0) - change, statistic)
    as_large = np.abs(by_chance) >= np.abs(whole) * (1 - 1e-9) - 1e-12
    p = (1 + np.count_nonzero(as_large, axis=0)) / (1 + _RESAMPLES)
    times = _draws(n)
    drawn = _difference(times @ first, times @ second, statistic)
    needed = stdtrit(n - 1, (1 + _LEVEL) / 2) + stdtrit(n - 1, _POWER)
    scatter = np.nanstd(drawn, axis=0) * np.sqrt(n / (n - 1))
    return np.where(np.isnan(whole), np.nan, p), needed * scatter


def _difference(first: np.ndarray, second: np.ndarray, statistic: Statistic) -> np.ndarray:
    return statistic(first) - statistic(second)


def _draws(n: int) -> np.ndarray:
    """How often each of n patients is in each resample, (resamples, n)."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float)
