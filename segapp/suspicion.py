"""How suspect a mask is: what a model that did not learn from it makes of it, as one number.

The family is confident learning (Northcutt, Jiang and Chuang 2021): a label is doubted where a
model that never saw it is sure of another, measured against what the model itself expects, so that
cases that are hard are not taken for cases that are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from segapp import metrics
from segapp.predict import most_probable, soft_counts

_LEAST = 1e-6  # probability: no single pixel can surprise by more than 13.8
_RADIUS = 3.0  # pixels, of slices up to _SIZE, where contours differ by less between any two people
_SIZE = 512  # larger slices are scaled down for the network, and its doubts are wider by as much


@dataclass(frozen=True)
class Tally:
    """A mask and a model's probabilities compared; the tallies of two slabs can be added.

    What the mask ignores counts nowhere. matrix: (classes, classes) int64 confusion, rows the mask.
    soft: see `soft_counts`. score: how suspect the mask is, in nats: its surprise, -log p(its
    class) less what the model expects of that (the entropy), averaged around the pixel where it is
    greatest (Gaussian, sigma 3 pixels in the slice); of volumes in the worst slice. peak: that
    pixel's (slice, row, column). One mean over a whole mask would drown a hole in the doubts along
    its contours.
    """

    matrix: np.ndarray
    soft: np.ndarray
    score: float
    peak: tuple[int, int, int]
    slices: int

    def __add__(self, other: Tally) -> Tally:
        """Of a slab and the one that follows it."""
        score, peak = self.score, self.peak
        if other.score > score:
            score, (k, row, column) = other.score, other.peak
            peak = (self.slices + k, row, column)
        return Tally(
            self.matrix + other.matrix,
            self.soft + other.soft,
            *(score, peak, self.slices + other.slices),
        )

    @property
    def differs(self) -> bool:
        """Whether the model's result is another than the mask, be it in one pixel."""
        return bool(self.matrix.sum() > np.trace(self.matrix))

    @property
    def dice(self) -> float:
        """Mean over the foreground classes that mask or result holds; NaN without any."""
        return metrics.mean_dice(self.matrix)

    @property
    def expected_dice(self) -> float:
        """The same, of a mask that is what the model's probabilities say: for each class
        2 Σ p [chosen] / (Σ p + Σ [chosen]), a ratio of expectations; NaN without any foreground."""
        held = self.matrix.sum(0) + self.matrix.sum(1) > 0
        chosen, expected, both = self.soft
        expected = metrics.ratio(2 * both, chosen + expected)
        return float(metrics.mean_of_known(np.where(held, expected, np.nan)[1:]))


def tally(probabilities: np.ndarray, truth: np.ndarray) -> Tally:
    """Compare a mask with a model's probabilities: (n, classes, H, W) float32 and class indices
    (n, H, W), beyond the classes where the mask ignores. No slices, or all ignored: zeros."""
    classes = probabilities.shape[1]
    labels, best = most_probable(probabilities)
    counted = truth < classes
    surprise = np.zeros(truth.shape, np.float32)
    for index in range(classes):
        p = np.where(counted, probabilities[:, index], 0)
        surprise -= ((truth == index) - p) * np.log(np.maximum(p, _LEAST))
    sigma = radius(truth.shape)
    around = ndimage.gaussian_filter(surprise, (0, sigma, sigma), mode="constant")
    peak = np.unravel_index(around.argmax(), around.shape) if around.size else (0, 0, 0)
    return Tally(
        metrics.confusion(truth, labels, classes),
        soft_counts(probabilities * counted[:, None], np.where(counted, labels, classes), best),
        float(around[peak]) if around.size else 0.0,
        (int(peak[0]), int(peak[1]), int(peak[2])),
        len(truth),
    )


def radius(shape: tuple[int, ...]) -> float:
    """How far around a pixel the score looks: a Gaussian's sigma in pixels; shape: (K, H, W)."""
    return _RADIUS * max(1, max(shape[1:]) / _SIZE)
