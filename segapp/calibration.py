"""Whether probabilities are what they say: reliability, and the temperature that mends it.

All of this is over pixels of the foreground and its boundary: easy background, of which there may
be any amount, would hide everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.optimize import minimize_scalar

from segapp.quality import DOUBTS

BINS = 15
_BAND = 2  # pixels around the foreground that count as its boundary
_MOST = 500  # pixels of a slab that a temperature is fitted to
_LOWEST = 1e-7
_RANGE = (-1.5, 2.0)  # of the logarithm of a temperature


def judged_pixels(slab: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that are foreground in mask or result, or within two pixels of it.

    slab: (n, classes, H, W) probabilities; truth: (n, H, W) class indices, others are ignored.
    Returns their probabilities (m, classes) float32 and true classes (m,); m may be 0.
    """
    counted = truth < slab.shape[1]
    either = (((truth > 0) & counted) | (slab[:, 0] < slab[:, 1:].max(1))).astype(np.uint8)
    around = np.ones((2 * _BAND + 1,) * 2, np.uint8)
    near = np.stack([cv2.dilate(plane, around) for plane in either]) > 0
    chosen = near & counted
    return np.moveaxis(slab, 1, -1)[chosen], truth[chosen].astype(np.int64)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(m, classes) probabilities of logits → those of the logits over `temperature`."""
    powers = np.maximum(probabilities, _LOWEST) ** np.float32(1 / temperature)
    return powers / powers.sum(1, keepdims=True)


def some_pixels(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 500 of them, evenly spaced, so that volumes fit into memory."""
    step = max(1, -(-len(truth) // _MOST))
    return probabilities[::step], truth[::step]


def fit_temperature(patients: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The temperature that logits should be divided by (Guo et al. 2017), from the probabilities
    (m, classes) and true classes (m,) of each validation patient's pixels; 1 for none.

    It is that of the least negative log-likelihood, each patient counting alike, drawn towards 1 as
    if eight more patients had asked for 1: two or three differ too much from others to be believed.
    """
    known = [_logits(p, truth) for p, truth in patients if len(truth)]
    if not known:
        return 1.0

    def loss(log_temperature: float) -> float:
        cold = np.exp(-log_temperature)
        of_patients = [np.log(np.exp(x * cold).sum(1)) - true * cold for x, true in known]
        return float(np.mean([of_pixels.mean() for of_pixels in of_patients]))

    found = minimize_scalar(loss, bounds=_RANGE, method="bounded")
    asked = found.x  # type: ignore[attr-defined]
    return float(np.exp(asked * len(known) / (len(known) + DOUBTS)))


def _logits(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (m, classes), the highest 0, and those of the true classes (m,)."""
    logits = np.log(np.maximum(probabilities, _LOWEST)).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits, np.take_along_axis(logits, truth[:, None], 1)[:, 0]


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(BINS, 3): for equal bins of the chosen class's probability the pixels, the sum of that
    probability, and how many were right."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    columns = (None, sure.astype(np.float64), right.astype(np.float64))
    return np.stack([np.bincount(bins, c, minlength=BINS).astype(float) for c in columns], 1)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015) of what `reliability` counted; NaN for
    nothing."""
    total = bins[:, 0].sum()
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / total) if total else float("nan")
