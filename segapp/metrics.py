"""Figures from a confusion matrix. A class that neither mask nor prediction holds has no score.

Such a class is NaN and left out of means, so that it can neither flatter nor hurt; a class that
only one of the two holds scores 0. Matrices may be stacked: (…, classes, classes).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_PIECE = 1 << 20  # values that are counted at once


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64 counts: rows the truth's class, columns the prediction's.

    truth, prediction: integer class indices of one shape. Truth outside 0…classes-1 (the ignore
    index) counts nowhere. Empty arrays give zeros. The memory is that of a piece of them.
    """
    matrix = np.zeros(classes * classes, np.int64)
    for true, predicted in _pieces(truth, prediction):
        counted = (true >= 0) & (true < classes)
        pairs = true[counted].astype(np.int64) * classes + predicted[counted]
        matrix += np.bincount(pairs, minlength=classes * classes)
    return matrix.reshape(classes, classes)


def _pieces(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Arrays of one shape in pieces of up to about _PIECE values, cut as the first lies in
    memory."""
    flat = [np.atleast_1d(array.squeeze()) for array in arrays]
    axis = int(np.argmax(np.abs(flat[0].strides)))
    flat = [np.moveaxis(array, axis, 0) for array in flat]
    step = max(1, _PIECE * len(flat[0]) // max(1, flat[0].size))
    for start in range(0, len(flat[0]), step):
        yield tuple(array[start : start + step] for array in flat)


def iou(matrix: np.ndarray) -> np.ndarray:
    """(…, classes) intersection over union; NaN for a class that is in neither."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    return ratio(hit, matrix.sum(-2) + matrix.sum(-1) - hit)


def dice(matrix: np.ndarray) -> np.ndarray:
    """(…, classes) Dice coefficient, 2 |A∩B| / (|A| + |B|); NaN for a class that is in neither."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    return ratio(2 * hit, matrix.sum(-2) + matrix.sum(-1))


def sensitivity(matrix: np.ndarray) -> np.ndarray:
    """(…, classes) share of the truth that was found; NaN for a class that the truth lacks."""
    return ratio(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1))


def precision(matrix: np.ndarray) -> np.ndarray:
    """(…, classes) share of the prediction that is true; NaN for a class never predicted."""
    return ratio(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-2))


def mean_iou(matrix: np.ndarray) -> float:
    """Mean IoU over all classes, background included, that occur; NaN if none does."""
    return float(mean_of_known(iou(matrix)))


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
    return float(mean_of_known(dice(matrix)[1:]))


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """(…) mean along the last axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def ratio(share: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """share / whole, NaN where the whole is 0."""
    return np.divide(share, whole, out=np.full(np.shape(whole), np.nan), where=np.greater(whole, 0))
