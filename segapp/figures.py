"""The figures of an evaluation: of each case, and over all of them with how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segapp import metrics
from segapp.boundary import Boundary
from segapp.cases import Case
from segapp.intervals import LEAST_PATIENTS, intervals, paired
from segapp.leakage import patients_from
from segapp.quality import Quality
from segapp.scan import Assessment, SegClass

SPLIT_WIDE = ("miou", "dice", "mean_case_miou", "mean_case_dice")
PER_CASE = ("iou", "dice", "sensitivity", "precision", "hd95", "msd", "nsd", "difference")


@dataclass
class CaseResult:
    """One case: its confusion (truth rows, prediction columns), or why it has none.

    boundary: of each class, () where it was not asked for. distance_unit: mm, or px where the
    spacing is unknown. voxel: size of one, in size_unit (ml, mm2 or voxels). soft, assessment: see
    Segmentation, soft without the voxels that the mask ignores, of which there are so many. nll:
    summed negative log-likelihood of the true classes of `counted` voxels.
    """

    case: Case
    matrix: np.ndarray
    error: str = ""
    warnings: tuple[str, ...] = ()
    boundary: tuple[Boundary, ...] = ()
    distance_unit: str = "px"
    voxel: float = 1.0
    size_unit: str = "voxels"
    soft: np.ndarray | None = None
    assessment: Assessment | None = None
    ignored: int = 0
    nll: float = 0.0
    counted: int = 0

    @property
    def estimated_dice(self) -> float | None:
        """The model's own estimate; None where it made none."""
        return self.assessment.estimated_dice if self.assessment else None

    @property
    def unlikeness(self) -> float | None:
        return self.assessment.unlikeness if self.assessment else None

    @property
    def review(self) -> tuple[str, ...]:
        """Why somebody should look at the result."""
        return self.assessment.review if self.assessment else ()

    def ranges(self) -> tuple[tuple[float, float] | None, ...]:
        """For each class where its true size lies, in size_unit; None where nothing is known."""
        known = self.assessment.ranges if self.assessment else (None,) * len(self.matrix)
        return tuple(ends and (ends[0] * self.voxel, ends[1] * self.voxel) for ends in known)

    def figures(self) -> np.ndarray:
        """(len(PER_CASE), classes); NaN where a figure says nothing: where neither mask nor
        prediction holds a class, sensitivity where the mask lacks it, precision where the
        prediction does. `difference` is the predicted size minus the true one."""
        m = self.matrix
        either = (m.sum(0) + m.sum(1)) > 0
        difference = np.where(either, (m.sum(0) - m.sum(1)) * self.voxel, np.nan)
        no_surfaces = np.full((3, len(m)), np.nan)
        surfaces = np.array(self.boundary, float).T if self.boundary else no_surfaces
        return np.stack(
            [
                *(metrics.iou(m), metrics.dice(m), metrics.sensitivity(m), metrics.precision(m)),
                *surfaces,
                difference,
            ]
        )


@dataclass
class Evaluation:
    """Results over cases."""

    classes: tuple[SegClass, ...]
    cases: list[CaseResult] = field(default_factory=list)
    tolerance: float | None = None  # of nsd, in mm or pixels; None: no surfaces were compared
    quality: Quality | None = None  # what the results were judged by

    @property
    def matrix(self) -> np.ndarray:
        """The summed confusion, (classes, classes)."""
        empty = np.zeros((len(self.classes),) * 2, np.int64)
        return sum((r.matrix for r in self.cases), empty)

    @property
    def nll(self) -> float:
        """Summed negative log-likelihood of `counted` voxels."""
        return sum(r.nll for r in self.cases)

    @property
    def counted(self) -> int:
        return sum(r.counted for r in self.cases)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the true class per voxel; NaN without a voxel."""
        return self.nll / self.counted if self.counted else float("nan")

    @property
    def miou(self) -> float:
        """Of the summed confusion, over all classes that occur; NaN if none does."""
        return metrics.mean_iou(self.matrix)

    @property
    def dice(self) -> float:
        """Of the summed confusion, over the foreground classes that occur; NaN if none does."""
        return metrics.mean_dice(self.matrix)

    def failed(self) -> list[CaseResult]:
        return [r for r in self.cases if r.error]

    def done(self) -> list[CaseResult]:
        return [r for r in self.cases if not r.error]


def summary(evaluation: Evaluation, split: str) -> dict[str, Any]:
    """Split-level miou and dice, figures per class, and counts, for a validation in passing.

    Classes that neither the masks nor the predictions hold are null and left out of the means.
    """
    matrix, done = evaluation.matrix, evaluation.done()
    per_class = {
        c.name: {"iou": number(i), "dice": number(d), "true_voxels": int(n)}
        for c, i, d, n in zip(
            evaluation.classes,
            metrics.iou(matrix),
            metrics.dice(matrix),
            matrix.sum(1),
            strict=True,
        )
    }
    of_cases = [[metrics.mean_iou(r.matrix), metrics.mean_dice(r.matrix)] for r in done]
    miou, dice = metrics.mean_of_known(np.array(of_cases, float).reshape(-1, 2).T)
    return {
        "split": split,
        "n": len(done),
        "n_failed": len(evaluation.cases) - len(done),
        "miou": number(evaluation.miou),
        "dice": number(evaluation.dice),
        "mean_case_miou": number(miou),
        "mean_case_dice": number(dice),
        "loss": number(evaluation.loss),
        "classes": per_class,
    }


def full_summary(evaluation: Evaluation, split: str) -> dict[str, Any]:
    """`summary`, with the patients' number, 95 % intervals over them beside every aggregate, and
    for each class the means of the cases' figures with what they leave out.

    Each of `cases` holds mean, interval and n, the cases that the mean is over. Means of what is in
    mm, pixels, ml, … are null where cases differ in the unit. A structure that mask
    or result lack counts as the image's diagonal in those of hd95 and msd. n_missed: cases whose
    mask has a class of which the result overlaps nothing; n_false_positive: where only it has one.
    """
    result, done = summary(evaluation, split), evaluation.done()
    names = [c.name for c in evaluation.classes]
    matrix = evaluation.matrix
    statistic = _Aggregates((matrix.sum(0) + matrix.sum(1)) > 0)
    sums, patients = per_patient(done, len(names))
    values = statistic(sums.sum(0, keepdims=True))[0]
    ends = intervals(sums, statistic, statistic.patients(sums)).T
    pairs = iter(zip(values, ends, strict=True))
    result["n_patients"] = len(patients)
    result["patients"] = patients_from([r.case for r in done])
    if len(patients) < LEAST_PATIENTS:
        result["why_no_intervals"] = f"fewer than {LEAST_PATIENTS} patients"
    for key in SPLIT_WIDE:
        result[f"{key}_interval"] = _interval(next(pairs)[1])
    for key in ("iou", "dice"):
        for name in names:
            result["classes"][name][f"{key}_interval"] = _interval(next(pairs)[1])
    distance, size = _unit(r.distance_unit for r in done), _unit(r.size_unit for r in done)
    units = dict.fromkeys(("hd95", "msd", "nsd"), distance) | {"difference": size}
    result["distance_unit"], result["size_unit"] = distance, size
    result["nsd_tolerance"] = evaluation.tolerance
    known = [~np.isnan(r.figures()) for r in done]
    counts = np.array(known, int).reshape(-1, len(PER_CASE), len(names)).sum(0)
    for name in names:
        result["classes"][name]["cases"] = {}
    for key, of_classes in zip(PER_CASE, counts.tolist(), strict=True):
        for name, n in zip(names, of_classes, strict=True):
            value, interval = next(pairs)
            if units.get(key) == "mixed":
                value, interval = np.nan, (np.nan, np.nan)
            row = {"mean": number(value), "interval": _interval(interval), "n": n}
            result["classes"][name]["cases"][key] = row
    true, given = (np.array([r.matrix.sum(axis) > 0 for r in done]) for axis in (1, 0))
    hit = np.array([np.diag(r.matrix) > 0 for r in done])
    for k, name in enumerate(names if done else ()):
        result["classes"][name] |= {
            "n_missed": int((true & ~hit)[:, k].sum()),
            "n_false_positive": int((given & ~true)[:, k].sum()),
            "n_absent": int((~true & ~given)[:, k].sum()),
        }
    return result


def comparison(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    """How much better the first of two models is, on the cases that both have segmented.

    For each of SPLIT_WIDE the difference, its 95 % interval over patients, a p value, and the
    smallest difference that the set could show (see `paired`). The split's miou and dice are here
    those of the classes that the masks hold, for both.
    """
    of_theirs = {r.case.images: r for r in theirs.done()}
    pairs = [(r, of_theirs[r.case.images]) for r in ours.done() if r.case.images in of_theirs]
    classes = len(ours.classes)
    matrix = sum((r.matrix for r, _ in pairs), np.zeros((classes, classes), np.int64))
    whole = _Aggregates(matrix.sum(1) > 0)
    first, patients = per_patient([a for a, _ in pairs], classes)
    second, _ = per_patient([b for _, b in pairs], classes)
    length, few = first.shape[1], len(SPLIT_WIDE)

    def figures(totals: np.ndarray) -> np.ndarray:
        return whole(totals)[:, :few]

    def differences(totals: np.ndarray) -> np.ndarray:
        return figures(totals[:, :length]) - figures(totals[:, length:])

    sums = np.concatenate([first, second], axis=1)
    having = np.minimum(whole.patients(first), whole.patients(second))[:few]
    values = differences(sums.sum(0, keepdims=True))[0]
    ends = intervals(sums, differences, having).T
    columns = zip(SPLIT_WIDE, values, ends, *paired(first, second, figures), strict=True)
    return {
        "n": len(pairs),
        "n_failed": len(theirs.failed()),
        "n_patients": len(patients),
        **{
            key: {
                "difference": number(value),
                "interval": _interval(interval),
                "p": number(p),
                "smallest_detectable": number(least),
            }
            for key, value, interval, p, least in columns
        },
    }


def per_patient(done: Sequence[CaseResult], classes: int) -> tuple[np.ndarray, list[str]]:
    """(patients, k) sums of what `_Aggregates` takes the totals of, and the patients."""
    rows: dict[str, np.ndarray] = {}
    for r in done:
        counts = [np.diag(r.matrix), r.matrix.sum(1), r.matrix.sum(0)]
        of_case = [metrics.mean_iou(r.matrix), metrics.mean_dice(r.matrix)]
        values = np.concatenate([of_case, r.figures().ravel()])
        row = np.concatenate([*counts, np.nan_to_num(values), ~np.isnan(values)])
        rows[r.case.patient] = rows.get(r.case.patient, 0) + row
    length = 3 * classes + 2 * (2 + len(PER_CASE) * classes)
    return np.array(list(rows.values()), float).reshape(-1, length), list(rows)


class _Aggregates:
    """Totals (B, k) → (B, 4 + 2 · classes + len(PER_CASE) · classes): SPLIT_WIDE, each class's IoU,
    its Dice, and each figure's mean over cases by class.

    there: (classes,) bool, those that means over classes are taken of. Where a resample lacks one
    of them, these means are NaN, as they would be those of other classes.
    """

    def __init__(self, there: np.ndarray):
        self.classes, self.there = len(there), there

    def __call__(self, totals: np.ndarray) -> np.ndarray:
        k = self.classes
        hit, true, given = (totals[:, n * k : (n + 1) * k] for n in range(3))
        iou, dice = metrics.ratio(hit, true + given - hit), metrics.ratio(2 * hit, true + given)
        values, counts = np.split(totals[:, 3 * k :], 2, axis=1)
        means = metrics.ratio(values, counts)
        of_split = [_mean(iou[:, self.there]), _mean(dice[:, 1:][:, self.there[1:]])]
        return np.concatenate(
            [np.stack(of_split, 1), means[:, :2], iou, dice, means[:, 2:]], axis=1
        )

    def patients(self, sums: np.ndarray) -> np.ndarray:
        """How many patients have each figure; a mean over classes is known as well as the class
        that fewest have, whoever has the others."""
        k = self.classes
        counts = np.count_nonzero(~np.isnan(self(sums)), axis=0)
        of_iou, of_dice = counts[4 : 4 + k][self.there], counts[5 + k : 4 + 2 * k][self.there[1:]]
        counts[:2] = of_iou.min(initial=len(sums)), of_dice.min(initial=len(sums))
        return counts


def _mean(values: np.ndarray) -> np.ndarray:
    """Along the last axis; NaN where there is nothing, or anything is NaN."""
    return values.mean(-1) if values.shape[-1] else np.full(len(values), np.nan)


def _unit(units: Any) -> str:
    found = sorted(set(units))
    return found[0] if len(found) == 1 else "mixed" if found else ""


def could_be_invented(of_class: Mapping[str, Any]) -> bool:
    """Whether any case's mask lacks a class, by its figures of `summary`: else no result can have
    found it where there is none."""
    return bool(of_class.get("n_false_positive", 0) + of_class.get("n_absent", 0))


def number(value: float) -> float | None:
    """Rounded to six decimals, or as many figures; None for NaN, which JSON lacks."""
    if np.isnan(value):
        return None
    return round(float(value), 6) if abs(value) > 1e-3 else float(f"{value:.6g}")


def _interval(ends: Any) -> list[float | None] | None:
    return None if np.isnan(ends).any() else [number(v) for v in ends]
