"""How large a scan's slices are, where classes lie in them, how fine they and the image are."""

from __future__ import annotations

import numpy as np

from segapp.preprocess import SliceAxis, scan_axis, to_slices
from segapp.resample import resize
from segapp.scan import Scan
from segapp.selection import spread_over

NATIVE_UP_TO = 640  # pixels: slices whose longest side is at most this are not resized
RESIZE_TO = 512
_SLICES = 32  # of a direction whose masks are looked at


def slice_size(scan: Scan, axis: SliceAxis) -> tuple[int, ...]:
    """(rows, columns) of the slices across a direction."""
    axis = scan_axis(scan.shape, scan.affine, axis)
    return to_slices(scan.voxels, scan.affine, axis).shape[2:]


def _some_labels(mask: np.ndarray, scan: Scan, axis: SliceAxis) -> tuple[np.ndarray, np.ndarray]:
    """The values of a mask's slices, sorted, and which of them each pixel has, (k, H, W): of up to
    32 slices with foreground, evenly spaced, as more say no more and a volume may have thousands
    in a direction that it is never cut in."""
    slices = to_slices(mask, scan.affine, scan_axis(scan.shape, scan.affine, axis))[:, 0]
    filled = np.flatnonzero(slices.any(axis=(1, 2))).tolist()
    chosen = slices[spread_over(filled, _SLICES)]
    values = np.unique(chosen)
    return values, np.searchsorted(values, chosen)


def class_sides(
    mask: np.ndarray, scan: Scan, axis: SliceAxis, ignore: int | None
) -> dict[int, float]:
    """Mask value → centre of its columns relative to those of all foreground; {} for one value."""
    values, labels = _some_labels(mask, scan, axis)
    counted = [n for n, v in enumerate(values) if v != 0 and v != ignore]
    if len(counted) < 2:
        return {}
    columns = labels.shape[2]
    at = labels + len(values) * np.arange(columns)
    counts = np.bincount(at.ravel(), minlength=len(values) * columns).reshape(columns, -1)
    profiles = {int(values[n]): counts[:, n] for n in counted}
    filled = np.flatnonzero(counts[:, counted].any(axis=1))
    middle, half = (filled[0] + filled[-1]) / 2, max(1.0, (filled[-1] - filled[0]) / 2)
    place = np.arange(columns)
    return {v: float((p @ place / p.sum() - middle) / half) for v, p in profiles.items()}


def class_widths(
    mask: np.ndarray, scan: Scan, axis: SliceAxis, ignore: int | None
) -> dict[int, float]:
    """Foreground value → its mean width in pixels: twice its area by the length of its outline, so
    w for a long stripe of w pixels, w/2 for a square of w and 0.4 w for a disc w across. {} for
    slices of up to 640 pixels, which have no say."""
    if max(slice_size(scan, axis)) <= NATIVE_UP_TO:
        return {}
    values, labels = _some_labels(mask, scan, axis)
    outline = np.zeros(len(values))
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[:, :, 1:], labels[:, :, :-1])):
        border = a != b
        for side in (a, b):
            outline += np.bincount(side[border], minlength=len(values))
    area = np.bincount(labels.ravel(), minlength=len(values))
    return {
        int(v): float(2 * a / o)
        for v, a, o in zip(values, area, outline, strict=True)
        if v != 0 and v != ignore and o
    }


def lost_detail(scan: Scan, axis: SliceAxis) -> float:
    """What the middle slice loses where its longest side is brought to 512 pixels and back: the
    standard deviation of the change, as a share of its own. 0 where slices are never shrunk."""
    slices = to_slices(scan.voxels, scan.affine, scan_axis(scan.shape, scan.affine, axis))
    middle = slices[len(slices) // 2 :][:1].astype(np.float32)
    rows, columns = middle.shape[2:]
    if max(rows, columns) <= NATIVE_UP_TO or not middle.std():
        return 0.0
    share = RESIZE_TO / max(rows, columns)
    small = resize(middle, (max(1, round(share * rows)), max(1, round(share * columns))))
    return float((middle - resize(small, (rows, columns))).std() / middle.std())
