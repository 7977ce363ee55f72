"""What the pictures themselves say about a data set: masks that lie flipped, images that recur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, combinations

import cv2
import numpy as np

from segapp.scan import Scan

_VOXELS_2D, _VOXELS_3D = 256, 64  # along each axis are enough to see a flip
_NOISE, _GAIN = 0.02, 0.08  # shares of variance that say nothing, and that say much
_LEFTOVER = 1.3  # what the mask leaves unexplained, over what its flipped version does
_USUAL = 0.75  # a flipped mask explains at least this share of what masks usually explain
_MAJORITY, _LEAST_CASES = 0.8, 5
_SIDE = 16  # of a picture hash: 256 bits
_SHOWN = 3
_NEAR = 6  # bits between hashes of nearly the same picture


def explained(scan: Scan, mask: Scan) -> dict[str, float]:
    """Share of the intensities' variance that the mask's values explain (η², Fisher's correlation
    ratio), for the mask as it is ("") and for each way it may have been flipped or turned.

    Slices also rows for columns where they are square; volumes along i, j and k.
    """
    i, j, k = scan.shape
    most = _VOXELS_2D if k == 1 else _VOXELS_3D
    sample = np.ix_(*(np.linspace(0, n - 1, min(n, most)).round().astype(int) for n in scan.shape))
    values = np.mean([channel[sample] for channel in scan.voxels], axis=0, dtype=np.float64).ravel()
    values -= values.mean()
    total = float(values @ values)
    taken = mask.voxels[0][sample]
    codes = np.unique(taken, return_inverse=True)[1].reshape(taken.shape)
    found = {}
    for name, version in _versions(codes, square=k == 1 and i == j):
        labels = version.ravel()
        counts = np.bincount(labels)
        sums = np.bincount(labels, values)
        between = float((sums**2 / np.maximum(counts, 1)).sum())
        found[name] = between / total if total > 0 else 0.0
    return found


def _versions(array: np.ndarray, square: bool) -> Iterator[tuple[str, np.ndarray]]:
    """(I, J, K) as it is and in every flip of the same shape, with words for each."""
    flat = array.shape[2] == 1
    words = ("left to right", "top to bottom") if flat else ("along i", "along j", "along k")
    axes = [n for n, size in enumerate(array.shape) if size > 1]
    turns = {"": array, "rows for columns": array.transpose(1, 0, 2)}
    for turn in ("", "rows for columns") if square else ("",):
        for chosen in chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)):
            flip = " and ".join(words[n] for n in chosen)
            yield ", then ".join(w for w in (turn, flip) if w), np.flip(turns[turn], chosen)


def flipped(cases: Sequence[dict[str, float]]) -> tuple[dict[int, str], bool]:
    """Which of the cases' masks lie flipped, and how, given what `explained` found for each; and
    whether that is sure.

    A flip must explain much more than the mask as it is, and about what masks usually do. It is
    sure where the other masks leave no doubt: at least five, 80 % of all, fit as they are within
    noise; or so many agree on one and the same flip. Nothing where more than 20 % are neither.
    """
    best = [max([(v, n) for n, v in c.items() if n], default=(c[""], "")) for c in cases]
    usual = [c[""] for c, (value, _) in zip(cases, best, strict=True) if value - c[""] <= _NOISE]
    least = _USUAL * float(np.median(usual)) if usual else 0.0
    clear = {
        n: name
        for n, (case, (value, name)) in enumerate(zip(cases, best, strict=True))
        if value - case[""] > _GAIN and 1 - case[""] > _LEFTOVER * (1 - value) and value >= least
    }
    needed = max(_LEAST_CASES, _MAJORITY * len(cases))
    if len(usual) >= needed:
        return clear, True
    for name, count in Counter(clear.values()).items():
        if count >= needed:
            return {n: flip for n, flip in clear.items() if flip == name}, True
    return (clear if len(usual) + len(clear) >= needed else {}), False


def picture_hash(scan: Scan) -> np.ndarray | None:
    """256 bits that survive another size, contrast or compression (a difference hash, dHash, of
    the middle slice); None for a picture too plain to tell from others."""
    grey = scan.voxels[..., scan.shape[2] // 2].mean(axis=0, dtype=np.float32).T
    small = cv2.resize(grey, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return bits if 16 <= bits.sum() <= bits.size - 16 else None


def near_pairs(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    owners_a: Sequence[str],
    owners_b: Sequence[str],
) -> tuple[int, list[tuple[int, int, int]]]:
    """How many pairs of hashes of different owners are of nearly the same picture, and the nearest
    three: (bits apart, index in a, index in b)."""
    if not len(a) or not len(b):
        return 0, []
    left, right = (np.where(np.stack(side), 1, -1).astype(np.float32) for side in (a, b))
    _, codes = np.unique([*owners_a, *owners_b], return_inverse=True)
    count, nearest = 0, []
    for start in range(0, len(left), 1024):
        rows = slice(start, min(start + 1024, len(left)))
        apart = (left.shape[1] - left[rows] @ right.T) / 2
        apart[codes[: len(a)][rows, None] == codes[None, len(a) :]] = np.inf
        near = np.argwhere(apart <= _NEAR)
        count += len(near)
        bits = apart[tuple(near.T)]
        first = np.argsort(bits, kind="stable")[:_SHOWN]
        nearest += [(int(bits[n]), start + int(near[n, 0]), int(near[n, 1])) for n in first]
    return count, sorted(nearest)[:_SHOWN]
