"""The range that an image's values have: what normalisation subtracts, divides by and clips to.

Images of 8 and 16 bits are counted value by value, which takes a fraction of the time.
"""

from __future__ import annotations

import math

import numpy as np

_PIECE = 1 << 20
_LEAST_SHARE = 0.01  # of an image's pixels: fewer non-zero ones say nothing about its range
_OUTER = (0.5, 99.5)  # percentiles

Spread = tuple[float, float, float, float]


def spread(x: np.ndarray, kind: str, nonzero: bool) -> Spread:
    """(shift, scale, low, high) of one channel, for the kinds zscore and percentile.

    nonzero: zeros don't count, unless there is nothing else. A constant gives its value, scale 1.
    """
    values, counts = _counted(x, nonzero)
    return _range(*((values, counts) if len(values) else _counted(x, False)), kind)


def telling_spread(x: np.ndarray, kind: str, nonzero: bool) -> Spread | None:
    """`spread`; None where it means nothing: of a constant, or where almost no pixel counts."""
    values, counts = _counted(x, nonzero)
    size = len(values) if counts is None else int(counts.sum())
    if size < _LEAST_SHARE * x.size or values.min() == values.max():
        return None
    return _range(values, counts, kind)


def outer_percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile of (n,) values, as np.percentile gives them."""
    if values.dtype not in (np.uint8, np.uint16):
        return _outer(values, None)
    counts = _counts(values)
    return _outer(np.flatnonzero(counts), counts[counts > 0])


def _counted(x: np.ndarray, nonzero: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The values of an image, or its different ones and how often each occurs."""
    if x.dtype not in (np.uint8, np.uint16):
        return (x[x != 0] if nonzero else x.ravel()), None
    counts = _counts(x)
    if nonzero:
        counts[0] = 0
    values = np.flatnonzero(counts)
    return values, counts[values]


def _counts(x: np.ndarray) -> np.ndarray:
    """How often each value from 0 on occurs; in pieces, as np.bincount makes int64 of what it
    counts."""
    values, most = x.ravel(), int(np.iinfo(x.dtype).max) + 1
    counts = np.zeros(most, np.int64)
    for piece in np.array_split(values, values.size // _PIECE + 1):
        counts += np.bincount(piece, minlength=most)
    return counts


def _range(values: np.ndarray, counts: np.ndarray | None, kind: str) -> Spread:
    if kind != "zscore":
        low, high = _outer(values, counts)  # becomes -1…1
        return (low + high) / 2, float(np.float32((high - low) / 2)) or 1.0, low, high
    if counts is None:
        mean = values.mean(dtype=np.float64)
        pieces = np.array_split(values, values.size // _PIECE + 1)  # a volume in float64 is large
        variance = sum(float(np.square(p - mean).sum()) for p in pieces) / values.size
    else:
        size = int(counts.sum())
        mean = int(values @ counts) / size
        variance = float(np.square(values - mean) @ counts) / size
    return float(mean), float(np.float32(math.sqrt(variance))) or 1.0, 0.0, 0.0


def _outer(values: np.ndarray, counts: np.ndarray | None) -> tuple[float, float]:
    """The outer percentiles of values (where counted, in order) that occur `counts` times."""
    if counts is None:
        low, high = np.percentile(values, _OUTER)
        return float(low), float(high)
    up_to = counts.cumsum()  # how many are no larger
    found = []
    for percent in _OUTER:
        place = percent / 100 * (up_to[-1] - 1)
        ranks = (int(place), math.ceil(place))
        below, above = values[np.searchsorted(up_to, ranks, side="right")].tolist()
        found.append(float(below + (place - int(place)) * (above - below)))
    return found[0], found[1]
