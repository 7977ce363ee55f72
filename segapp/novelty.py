"""How unlike the training slices a scan looks, as one number; above 1 somebody should look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict

from segapp.preprocess import Prepared
from segapp.selection import spread_over

_LEVELS = (5, 25, 50, 75, 90, 97)  # percentiles of intensity
_THUMBNAIL, _WAVES = 16, 5  # pixels a side; the highest order of cosines kept
_TEXTURE = ("noise", "sharpness", "direction of edges")
_TINY = 1e-6
_SLICES = 32  # of a scan that are looked at
_KEPT = 256  # training slices that the model file keeps
_FOLDS = 10
_LEAST = 5  # slices that a scan must be compared with
_SOFT = 0.03  # added to a feature's spread: data without any must not make a trifle infinite
_SHRUNK = 0.1  # share of the covariance that is taken as that of independent features
_SHARE = 0.05  # of scans like those of the training that are above 1


def features(image: np.ndarray) -> np.ndarray:
    """(C, H, W) normalised slice → (6 · C + 24,) float64: percentiles of each channel, then noise,
    sharpness and direction of edges, the layout in low cosine waves, and the shape of the slice.

    Layout and texture are those of the channels' mean, over its standard deviation.
    """
    rows, columns = image.shape[1:]
    some = (slice(None, None, max(1, rows // 64)), slice(None, None, max(1, columns // 64)))
    levels = [_levels(channel[some], _LEVELS) for channel in image]
    grey = np.ascontiguousarray(image.mean(0), np.float32) if len(image) > 1 else image[0]
    spread = float(cv2.meanStdDev(grey)[1][0, 0]) + _TINY
    edges = cv2.Laplacian(grey, cv2.CV_32F)
    across = cv2.norm(grey[:, 1:], grey[:, :-1], cv2.NORM_L1) + _TINY * grey.size
    along = cv2.norm(grey[1:], grey[:-1], cv2.NORM_L1) + _TINY * grey.size
    texture = [
        np.log(_levels(np.abs(edges[some]), (50,))[0] / spread + 1e-3),
        np.log(cv2.norm(edges, cv2.NORM_L1) / edges.size / spread + 1e-3),
        np.log(across / along),
    ]
    small = cv2.resize(grey, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    small = (small - small.mean()) / (small.std() + _TINY)
    waves = cv2.dct(small) / _THUMBNAIL
    layout = [waves[i, j] for i, j in _waves()]
    return np.concatenate([*levels, texture, layout, [np.log(rows / columns)]], dtype=np.float64)


def _levels(values: np.ndarray, percents: tuple[int, ...]) -> np.ndarray:
    """Percentiles, each a value that occurs: sorting is five times as fast as np.percentile."""
    ordered = np.sort(values, axis=None)
    return ordered[[round(p / 100 * (len(ordered) - 1)) for p in percents]]


def _waves() -> Iterator[tuple[int, int]]:
    orders = range(_WAVES + 1)
    return ((i, j) for i in orders for j in orders if 0 < i + j <= _WAVES)


def scan_features(prepared: Prepared) -> np.ndarray:
    """(n, F) features of up to 32 slices, evenly spaced, at the size that the network sees."""
    found = [prepared.network_input(k, k + 1) for k in looked_at(prepared)]
    return np.stack([features(own_slice(prepared, batch[0])) for batch in found])


def looked_at(prepared: Prepared) -> list[int]:
    """Which of a scan's slices are described."""
    return spread_over(range(len(prepared)), _SLICES)


def own_slice(prepared: Prepared, network_input: np.ndarray) -> np.ndarray:
    """(inputs, H', W') of a slice for the network → (C, H, W) without neighbours and padding."""
    channels = prepared.preprocessing.channels
    first, (height, width) = prepared.preprocessing.context * channels, prepared.target
    return network_input[first : first + channels, :height, :width]


class Novelty(BaseModel):
    """Training slices to compare with, in a space where their features are independent.

    Unlikeness is the distance to the nearest of them, over `limit`; of a scan the median of its
    slices'. limit: what 95 % of the training and validation scans stay below, each compared with
    those of other patients. (Nearest neighbours in whitened features: Mahalanobis' distance to a
    sample instead of a mean, as slices of a body are no single cloud.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    whitening: tuple[tuple[float, ...], ...]  # (F, F)
    kept: tuple[tuple[float, ...], ...]  # (n, F), whitened
    limit: float
    scans: int

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        found = (np.array(a) for a in (self.centre, self.spread, self.whitening, self.kept))
        return tuple(found)  # type: ignore[return-value]

    def unlikeness(self, of_slices: np.ndarray) -> tuple[float, str]:
        """(n, F) features of a scan's slices → its unlikeness, and in words what is most unlike."""
        centre, spread, whitening, kept = self._arrays
        standard = (of_slices - centre) / spread
        distances = _nearest(standard @ whitening, kept)
        typical = int(np.argsort(distances)[len(distances) // 2])
        return float(np.median(distances)) / self.limit, _words(standard[typical])


def fit_novelty(scans: Sequence[np.ndarray], patients: Sequence[str]) -> Novelty | None:
    """From the features (n, F) of each training and validation scan, and whose it is.

    None where some would have fewer than five slices of others to be compared with.
    """
    if len(scans) < 2:
        return None
    names = sorted(set(patients))
    groups = dict(zip(names, range(len(names)), strict=True))
    own = [groups[p] for p in patients] if len(names) > 1 else range(len(scans))
    folds = np.array([n % _FOLDS for n in own])
    counts = np.array([len(scan) for scan in scans])
    if min(counts[folds != fold].sum() for fold in np.unique(folds)) < _LEAST:
        return None
    held_out = []
    for fold in np.unique(folds):
        space = _space([scan for scan, f in zip(scans, folds, strict=True) if f != fold])
        for scan, f in zip(scans, folds, strict=True):
            if f == fold:
                centre, spread, whitening, kept = space
                moved = (scan - centre) / spread @ whitening
                held_out.append(float(np.median(_nearest(moved, kept))))
    limit = float(np.quantile(held_out, 1 - _SHARE, method="higher"))
    centre, spread, whitening, kept = (np.round(a, 5).tolist() for a in _space(scans))
    return Novelty(
        centre=centre,
        spread=spread,
        whitening=whitening,
        kept=kept,
        limit=max(limit, _TINY),
        scans=len(scans),
    )


def _space(scans: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centre, spread (F,) and whitening (F, F) of the slices' features, and up to 256 of them,
    whitened."""
    of_slices = np.concatenate(scans)
    centre, spread = of_slices.mean(0), of_slices.std(0) + _SOFT
    standard = (of_slices - centre) / spread
    covariance = standard.T @ standard / len(standard)
    mean = max(float(np.trace(covariance)) / len(covariance), _TINY)
    covariance = (1 - _SHRUNK) * covariance + _SHRUNK * mean * np.eye(len(covariance))
    whitening = np.linalg.cholesky(np.linalg.inv(covariance))
    # drawn, as every n-th slice may be the same place in every scan
    kept = np.sort(np.random.default_rng(0).permutation(len(standard))[:_KEPT])
    return centre, spread, whitening, standard[kept] @ whitening


def _nearest(points: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(n, F), (m, F) → (n,) distance to the nearest, per square root of the features' number."""
    squares = (points**2).sum(1)[:, None] - 2 * points @ kept.T + (kept**2).sum(1)
    return np.sqrt(np.maximum(squares.min(1), 0) / points.shape[1])


def _words(standard: np.ndarray) -> str:
    """What is most unlike the training slices, from features in their standard deviations."""
    levels = len(standard) - len(_TEXTURE) - len(list(_waves())) - 1
    named = chain(
        [("intensities", standard[:levels])],
        ((name, standard[levels + n : levels + n + 1]) for n, name in enumerate(_TEXTURE)),
        [("layout", standard[levels + len(_TEXTURE) : -1]), ("shape", standard[-1:])],
    )
    return max(named, key=lambda group: float(np.abs(group[1]).max()))[0]
