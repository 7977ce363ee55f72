"""What a result is worth, said beside it: estimated Dice, size ranges, whether to look at it.

All of it is fitted once, on the validation cases and the training slices, and kept in the model
file; scans that were altered on purpose have no part in it.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from segapp.finding import counted
from segapp.metrics import mean_of_known, ratio
from segapp.novelty import Novelty
from segapp.scan import Assessment

JUDGED_NAME = "judged.jsonl"  # in a run folder: the validation cases, see `judged_text`
DOUBTS = 8  # patients' worth of belief that probabilities are right as they are
_PROMISED = 0.9  # share of the scans, at least, whose true size lies in its range
_LOW = 0.05  # share of the validation cases that are estimated lower than `least_dice`
LEAST_CASES = 5  # of validation, for any estimate
_FAR = 0.2  # Dice; estimates so much too high can't tell a good result from a poor one
_WRONG, _RIGHT = 0.5, 0.95  # estimates below are always marked, from there on never


@dataclass(frozen=True)
class Judged:
    """A validation case: its classes' true voxels and predicted ones (classes,), the mean Dice of
    its foreground, and what was expected of it (see `Segmentation.soft`)."""

    patient: str
    true: np.ndarray
    predicted: np.ndarray
    dice: float
    soft: np.ndarray


def judged_text(cases: Sequence[Judged]) -> str:
    """JSON of validation cases, a line each; patients are numbered, not named."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys(c.patient for c in cases))}
    rows = (
        {
            "patient": numbers[c.patient],
            "true": c.true.tolist(),
            "predicted": c.predicted.tolist(),
            "dice": None if np.isnan(c.dice) else c.dice,
            "soft": c.soft.tolist(),
        }
        for c in cases
    )
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def read_judged(path: Path) -> list[Judged]:
    """What `judged_text` made, patients named after the file as well, so that they differ from
    those of other files."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Judged(
            patient=f"{path}/{row['patient']}",
            true=np.array(row["true"]),
            predicted=np.array(row["predicted"]),
            dice=float("nan") if row["dice"] is None else row["dice"],
            soft=np.array(row["soft"]),
        )
        for row in rows
    ]


class Margin(BaseModel):
    """How far the true size of a class may be from the predicted one: `factor` times the doubtful
    voxels and one. factor None: too few patients to promise anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float | None
    promised: float  # share of new patients' scans whose true size is within
    patients: int
    cases: int


class Quality(BaseModel):
    """How results are judged, by the validation cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    novelty: Novelty | None
    offset: float  # true minus expected Dice
    least_dice: float | None  # estimates below are rarer than 1 in 20 among validation cases
    finds_always: bool  # no validation case is without foreground
    margins: tuple[Margin, ...]  # of each class
    patients_declared: bool
    patients: int
    cases: int
    dice: float | None = None  # the true one, mean over patients; None: not recorded
    bias: float | None = None  # mean of true minus expected Dice as it was


def fit_quality(
    cases: Sequence[Judged], classes: int, novelty: Novelty | None, patients_declared: bool
) -> Quality:
    """cases: of validation, each patient counting alike; there may be none."""
    expected = np.array([expected_dice(c.soft) for c in cases])
    differences = defaultdict(list)
    for case, value in zip(cases, expected, strict=True):
        if not np.isnan(value - case.dice):
            differences[case.patient].append(case.dice - value)
    means = [float(np.mean(d)) for d in differences.values()]
    reached = defaultdict(list)
    for case in cases:
        reached[case.patient].append(case.dice)
    dice = float(mean_of_known(np.array([mean_of_known(np.array(d)) for d in reached.values()])))
    offset = float(np.sum(means) / (len(means) + DOUBTS))
    known = ~np.isnan(expected)
    owners = [case.patient for case, there in zip(cases, known, strict=True) if there]
    least = _low_quantile(np.clip(expected[known] + offset, 0, 1), owners)
    return Quality(
        novelty=novelty,
        offset=offset,
        least_dice=least,
        finds_always=bool(cases) and all(c.true[1:].any() for c in cases),
        margins=tuple(_margin(cases, k) for k in range(classes)),
        patients_declared=patients_declared,
        patients=len({c.patient for c in cases}),
        cases=len(cases),
        dice=None if np.isnan(dice) else dice,
        bias=float(np.mean(means)) if means else None,
    )


def distrust(quality: Quality) -> str:
    """Why no estimate of this model's Dice can be believed, "" where they can: it was judged by
    fewer than five cases, or its results were far worse than its probabilities made expect."""
    many = counted(quality.cases, "case")
    said = f"this model was validated on {many}"
    if quality.dice is not None:
        said = f"this model reached a mean Dice of {quality.dice:.2f} in validation, on {many}"
    if quality.cases < LEAST_CASES:
        return f"{said}, too few to judge results by"
    if quality.bias is not None and quality.bias < -_FAR:
        return f"{said}, {-quality.bias:.2f} less than its probabilities make expect"
    return ""


def scaling_text(figures: Mapping[str, Any]) -> str:
    """Of what `judgement.Calibration` found: whether the temperature, which validation asked for,
    did harm on these cases, as words to go on with; "" where it did not."""
    before = figures.get("ece_unscaled")
    if before is None or round(figures["ece"], 4) <= round(before, 4):
        return ""
    return "; scaling made it worse on these cases"


def review_limit(quality: Quality) -> float:
    """The estimated Dice below which a result is marked for review: that of 19 in 20 validation
    cases, within 0.5 (of a lower one more is wrong than right) and 0.95 (where all validation cases
    come out perfect, what is lacking to 1 says nothing)."""
    return min(max(quality.least_dice or 0.0, _WRONG), _RIGHT)


def _low_quantile(values: np.ndarray, patients: Sequence[str]) -> float | None:
    """The value that 5 % are at or below, each patient counting alike; None for no values."""
    if not len(values):
        return None
    counts = Counter(patients)
    order: list[int] = np.argsort(values).tolist()
    weights = np.array([1 / (len(counts) * counts[patients[i]]) for i in order])
    return float(values[order[int((weights.cumsum() < _LOW - 1e-9).sum())]])


def expected_dice(soft: np.ndarray) -> float:
    """The Dice that probabilities make expect, 2 Σ p [chosen] / (Σ p + Σ [chosen]), its mean over
    the foreground classes that were chosen anywhere; NaN where none was. soft: (3, classes)."""
    chosen, expected, both = soft
    dice = np.where(chosen > 0, ratio(2 * both, chosen + expected), np.nan)
    return float(mean_of_known(dice[1:]))


def _doubtful(soft: np.ndarray) -> np.ndarray:
    """(classes,) voxels that are expected to be wrong about a class, missed or invented, and one:
    where nothing is doubtful there still may be an error."""
    chosen, expected, both = soft
    return np.maximum(chosen + expected - 2 * both, 0) + 1


def _margin(cases: Sequence[Judged], k: int) -> Margin:
    """The conformal margin of class k (split conformal prediction, Papadopoulos et al. 2002, Lei et
    al. 2018, with each patient's cases sharing one weight: Lee, Barber & Willett 2023).

    It promises 90 %, or with fewer than 9 patients what these can promise, n / (n + 1).
    """
    scores = [abs(float(c.true[k] - c.predicted[k])) / _doubtful(c.soft)[k] for c in cases]
    factor, promised = conformal_quantile(scores, [c.patient for c in cases])
    patients = len({c.patient for c in cases})
    return Margin(factor=factor, promised=promised, patients=patients, cases=len(cases))


def conformal_quantile(
    scores: Sequence[float], patients: Sequence[str]
) -> tuple[float | None, float]:
    """What the score of a new patient's case stays at or below, and with which probability: of n
    patients the smallest multiple of 1 / (n + 1) that is 90 % or more, or n / (n + 1) of fewer than
    nine. None, 0 of fewer than two."""
    counts = Counter(patients)
    n = len(counts)
    if n < 2:
        return None, 0.0
    promised = min(math.ceil(_PROMISED * (n + 1) - 1e-9), n) / (n + 1)
    order: list[int] = np.argsort(scores).tolist()
    weights = np.array([1 / ((n + 1) * counts[patients[i]]) for i in order])
    reached = np.flatnonzero(weights.cumsum() >= promised - 1e-9)
    return float(scores[order[reached[0]]]), promised


def doubted(found: Assessment | None, reasons: Sequence[str], classes: int) -> Assessment | None:
    """An assessment (None: of a model that judges nothing) of a scan that for these reasons is none
    for the model: neither an estimate nor ranges have a ground there."""
    if not reasons:
        return found
    nothing: tuple[None, ...] = (None,) * classes
    found = found or Assessment(None, None, (), nothing)
    review = (*reasons, *found.review)
    return replace(found, review=review, estimated_dice=None, ranges=nothing, promised=0.0)


def assess(quality: Quality, soft: np.ndarray, looks: Sequence[np.ndarray] = ()) -> Assessment:
    """Judge a result. soft: see `Segmentation.soft`; looks: `features` of some of its slices.

    Beyond what training knows an estimate has no ground: there it is divided by the unlikeness, and
    there are no ranges. Of a model whose estimates can't be believed (see `distrust`) there is
    none, and every result is marked.
    """
    unlikeness, what = None, ""
    if quality.novelty and len(looks):
        unlikeness, what = quality.novelty.unlikeness(np.stack(looks))
    expected, dice = expected_dice(soft) + quality.offset, None
    doubt, limit = distrust(quality), round(review_limit(quality), 2)
    if not np.isnan(expected) and not doubt:
        dice = float(np.clip(expected, 0, 1)) / max(1.0, unlikeness or 0.0)
    review = [doubt] if doubt else []
    if unlikeness is not None and unlikeness > 1:
        review.append(f"unlike the training scans ({what}): {unlikeness:.2f}, and 1 is the limit")
    elif dice is not None and round(dice, 2) < limit:  # as both are shown
        usual = f"nearly all validation cases have an estimate of {limit:.2f} or more"
        if limit == _WRONG:
            usual = "below 0.50 more of a structure is wrong than right"
        review.append(f"estimated Dice {dice:.2f}; {usual}")
    if quality.finds_always and not soft[0, 1:].any():
        review.append("nothing was found; every validation case holds something")
    if unlikeness is not None and unlikeness > 1:
        return Assessment(dice, unlikeness, tuple(review), (None,) * len(quality.margins))
    ranges = []
    for margin, count, doubtful in zip(quality.margins, soft[0], _doubtful(soft), strict=True):
        wide = None if margin.factor is None else margin.factor * doubtful
        low, high = (count - (wide or 0), count + (wide or 0))
        known = (max(0.0, float(low)), min(float(high), float(soft[0].sum())))
        ranges.append(None if wide is None else known)
    promised = min(margin.promised for margin in quality.margins)
    return Assessment(dice, unlikeness, tuple(review), tuple(ranges), promised)
