"""How a mask and a model's result differ, in words: swapped, shifted, a hole, or just where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import ndimage

from segapp import metrics
from segapp.finding import counted
from segapp.scan import SegClass

NO_DIFFERENCE = "no difference"
_SQUARE = np.ones((1, 3, 3), bool)  # within a slice: slices may be thick
_GAIN = 0.1  # of Dice, that a shift or a swap must bring to be named
_ENCLOSED = 0.8  # of a piece's neighbours, that are foreground around a hole
_SLICES = 8  # that a shift is looked for in


def reason(
    truth: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[SegClass],
    around: tuple[slice, slice, slice],
    look_for_shift: bool = False,
) -> str:
    """What is different, in words; NO_DIFFERENCE where there is none.

    truth, labels: (K, H, W) class indices of the mask and of the model's result; the mask's ignored
    voxels count nowhere. around: the most suspect place, which is spoken of first. look_for_shift:
    takes longer, see `best_shift`.
    """
    matrix = metrics.confusion(truth, labels, len(classes))
    disputed = int(matrix.sum() - np.trace(matrix))
    if not disputed:
        return NO_DIFFERENCE
    changes = [_swap(matrix, classes)]
    changes += [_shift(truth, labels, matrix)] if look_for_shift else []
    gain, change = max(changes)
    if gain > _GAIN:
        before = metrics.mean_dice(matrix)
        return f"{change} would raise Dice from {before:.2f} to {before + gain:.2f}"
    unit = "pixel" if len(truth) == 1 else "voxel"
    said, told = [], -1
    off = matrix * (1 - np.eye(len(classes), dtype=np.int64))
    piece = piece_at(truth, labels, len(classes), around)
    if piece is not None:
        pairs = metrics.confusion(truth[piece], labels[piece], len(classes))
        told = int(pairs.argmax())
        is_hole = told < len(classes) and _is_enclosed(piece, truth, len(classes))
        hole = " (a hole?)" if is_hole else ""
        said.append(f"{_pair(told, classes)}: {counted(piece.sum(), unit)} in one piece{hole}")
        off = off - pairs
    for index in np.argsort(-off, axis=None, kind="stable")[: 2 - len(said)].tolist():
        if count := off.flat[index]:
            of_another = f"{_pair(index, classes)}: {counted(count, unit)}"
            said.append(f"{count} elsewhere" if index == told else of_another)
    return "; ".join(said)


def _pair(index: int, classes: Sequence[SegClass]) -> str:
    """index: into a flat confusion matrix, whose rows are the mask's classes."""
    of, seen = divmod(index, len(classes))
    return f"{classes[of].name} where the model sees {classes[seen].name}"


def _swap(matrix: np.ndarray, classes: Sequence[SegClass]) -> tuple[float, str]:
    """By how much exchanging two classes in the mask would raise Dice at best, and which."""
    before, best = metrics.mean_dice(matrix), (0.0, "")
    for a, b in combinations(range(1, len(matrix)), 2):
        if min(matrix[a, b], matrix[b, a]) <= max(matrix[a, a], matrix[b, b]):
            continue
        order = np.arange(len(matrix))
        order[[a, b]] = b, a
        gain = metrics.mean_dice(matrix[order]) - before
        if gain > best[0]:
            best = gain, f"{classes[a].name} and {classes[b].name} swapped? exchanging them"
    return best


def _shift(truth: np.ndarray, labels: np.ndarray, matrix: np.ndarray) -> tuple[float, str]:
    """By how much moving the mask would raise Dice at best, and where to."""
    rows, columns = best_shift(truth, labels, len(matrix))
    moved = metrics.confusion(moved_by(truth, rows, columns), labels, len(matrix))
    gain = metrics.mean_dice(moved) - metrics.mean_dice(matrix)
    ways = [(columns, ("right", "left")), (rows, ("down", "up"))]
    where = " and ".join(f"{abs(n)} {names[n < 0]}" for n, names in ways if n)
    return (gain, f"shifted? moving the mask {where} (pixels)") if where else (0.0, "")


def moved_by(truth: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(K, H, W) with every slice moved down and right; background comes in at the edges."""
    moved = np.zeros_like(truth)
    height, width = truth.shape[1:]
    to, at = (_overlap(n, size) for n, size in ((rows, height), (columns, width)))
    source_to, source_at = (_overlap(-n, size) for n, size in ((rows, height), (columns, width)))
    moved[:, to, at] = truth[:, source_to, source_at]
    return moved


def _overlap(by: int, size: int) -> slice:
    return slice(min(max(by, 0), size), max(min(size + by, size), 0))


def best_shift(truth: np.ndarray, labels: np.ndarray, classes: int) -> tuple[int, int]:
    """(rows, columns) by which to move the mask so that it agrees best with the labels: mean Dice
    over the foreground classes, of equals the smallest move; within an eighth of the slice.

    truth, labels: (K, H, W) class indices. Of many slices it looks at eight that hold foreground.
    All moves at once: the intersections are a cross-correlation, computed by FFT. (0, 0) where
    either has no foreground.
    """
    filled = np.flatnonzero(((truth > 0) & (truth < classes)).any((1, 2)))
    chosen = filled[np.linspace(0, len(filled) - 1, min(_SLICES, len(filled))).astype(int)]
    height, width = truth.shape[1:]
    reach = max(height, width) // 8
    size = (height + reach, width + reach)
    offsets = np.arange(-reach, reach + 1)
    scores = []
    for index in range(1, classes):
        mask, result = ((a[chosen] == index).astype(np.float32) for a in (truth, labels))
        total = mask.sum() + result.sum()
        if total:
            both = np.fft.rfft2(result, size) * np.conj(np.fft.rfft2(mask, size))
            hits = np.fft.irfft2(both.sum(0), size)[np.ix_(offsets, offsets)]
            scores.append(2 * np.rint(hits) / total)
    if not scores:
        return 0, 0
    away = np.hypot(offsets[:, None], offsets)
    mean = np.mean(scores, axis=0).round(6) - 1e-9 * away
    row, column = np.unravel_index(mean.argmax(), mean.shape)
    return int(offsets[row]), int(offsets[column])


def piece_at(
    truth: np.ndarray, labels: np.ndarray, classes: int, around: tuple[slice, slice, slice]
) -> np.ndarray | None:
    """(K, H, W) bool: the connected piece that has the most voxels in a place, of those where the
    mask has one class and the result others; None where the two agree there.

    A piece at least three pixels wide goes without the thin ones along contours that hang on it.
    """
    differ = (truth != labels) & (truth < classes)
    here = np.bincount(truth[around][differ[around]])
    if not here.any():
        return None
    disputed = differ & (truth == here.argmax())
    thick = ndimage.binary_opening(disputed, _SQUARE)
    pieces = np.empty(truth.shape, np.int32)
    ndimage.label(thick if thick[around].any() else disputed, output=pieces)
    return pieces == 1 + np.bincount(pieces[around].ravel())[1:].argmax()


def _is_enclosed(piece: np.ndarray, truth: np.ndarray, classes: int) -> bool:
    ring = ndimage.binary_dilation(piece, _SQUARE) & ~piece & (truth < classes)
    return bool(ring.any()) and bool((truth[ring] > 0).mean() >= _ENCLOSED)
