"""Figures from a confusion matrix. A class that neither mask nor prediction holds has no score.

Such a class is NaN and left out of means, so that it can neither flatter nor hurt; a class that
only one of the two holds scores 0.
"""

from __future__ import annotations

import numpy as np


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64 counts: rows the truth's class, columns the prediction's.

    truth, prediction: integer class indices of one shape. Truth outside 0…classes-1 (the ignore
    index) counts nowhere. Empty arrays give zeros.
    """
    counted = (truth >= 0) & (truth < classes)
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def iou(matrix: np.ndarray) -> np.ndarray:
    """(classes,) intersection over union; NaN for a class that is in neither."""
    hit, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)


def dice(matrix: np.ndarray) -> np.ndarray:
    """(classes,) Dice coefficient, 2 |A∩B| / (|A| + |B|); NaN for a class that is in neither."""
    hit, total = 2 * np.diag(matrix), matrix.sum(0) + matrix.sum(1)
    return np.divide(hit, total, out=np.full(len(hit), np.nan), where=total > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean IoU over all classes, background included, that occur; NaN if none does."""
    return _mean(iou(matrix))


def selection_score(matrix: np.ndarray) -> float:
    """What epochs are judged by: the mean IoU over the classes that the masks hold; 0 where these
    hold no foreground, NaN where they hold nothing.

    Unlike `mean_iou` it leaves out what is only predicted: a class that the validation masks lack
    would score nothing until one pixel of it is predicted and 0 from then on, so that the best
    epoch were one that never finds it.
    """
    held = matrix.sum(1) > 0
    if not held[1:].any():
        return 0.0 if held.any() else float("nan")
    return float(iou(matrix)[held].mean())


def mean_dice(matrix: np.ndarray) -> float:
    """Mean Dice over the foreground classes that occur; NaN if none does."""
    return _mean(dice(matrix)[1:])


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
