"""What the pictures themselves say about a data set: masks that lie flipped, images that recur."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import cv2
import numpy as np

from segapp.scan import Scan

_VOXELS_2D, _VOXELS_3D = 256, 64  # along each axis are enough to see a flip
_NOISE, _GAIN = 0.02, 0.08  # shares of variance that say nothing, and that say much
_LEFTOVER = 1.3  # what the mask leaves unexplained, over what its flipped version does
_USUAL = 0.75  # a flipped mask explains at least this share of what masks usually explain
_MAJORITY, _LEAST_CASES = 0.8, 5
_SIDE = 16  # of a picture hash: 256 bits
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
    if array.shape[2] == 1:
        words = {(): "", (1,): "top to bottom", (0,): "left to right", (0, 1): "by 180°"}
        for axes, name in words.items():
            yield name, np.flip(array, axes)
        if square:
            for axes, name in words.items():
                name = f"rows for columns, then {name}" if name else "rows for columns"
                yield name, np.flip(array.transpose(1, 0, 2), axes)
        return
    for flips in product((False, True), repeat=3):
        axes = tuple(n for n, flip in enumerate(flips) if flip)
        yield " and ".join(f"along {'ijk'[n]}" for n in axes), np.flip(array, axes)


def flipped(cases: Sequence[dict[str, float]]) -> dict[int, str]:
    """Which of the cases' masks lie flipped, and how, given what `explained` found for each.

    Only where the other masks leave no doubt: at least five, 80 % of all, fit as they are within
    noise, and the flipped version explains much more and about what masks usually do. Where 80 %
    agree on one and the same flip that fits much better, these are all flipped.
    """
    best = [max((v, name) for name, v in case.items() if name) for case in cases]
    usual = [c[""] for c, (value, _) in zip(cases, best, strict=True) if value - c[""] <= _NOISE]
    clear = {
        n: name
        for n, (case, (value, name)) in enumerate(zip(cases, best, strict=True))
        if value - case[""] > _GAIN and 1 - case[""] > _LEFTOVER * (1 - value)
    }
    needed = max(_LEAST_CASES, _MAJORITY * len(cases))
    if len(usual) >= needed:
        least = _USUAL * float(np.median(usual))
        return {n: name for n, name in clear.items() if best[n][0] >= least}
    for name in set(clear.values()):
        same = {n: name for n, flip in clear.items() if flip == name}
        if len(same) >= needed:
            return same
    return {}


def picture_hash(scan: Scan) -> np.ndarray | None:
    """256 bits that survive another size, contrast or compression (a difference hash, dHash, of
    the middle slice); None for a picture too plain to tell from others."""
    grey = scan.voxels[..., scan.shape[2] // 2].mean(axis=0, dtype=np.float32).T
    small = cv2.resize(grey, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return bits if 16 <= bits.sum() <= bits.size - 16 else None


def near_pairs(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> list[tuple[int, int, int]]:
    """(bits apart, index in a, index in b) of hashes of nearly the same picture, nearest first."""
    if not len(a) or not len(b):
        return []
    left, right = (np.where(np.stack(side), 1, -1).astype(np.float32) for side in (a, b))
    found = []
    for start in range(0, len(left), 1024):
        apart = (left.shape[1] - left[start : start + 1024] @ right.T) / 2
        for i, j in np.argwhere(apart <= _NEAR):
            found.append((int(apart[i, j]), int(start + i), int(j)))
    return sorted(found)
