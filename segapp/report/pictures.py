"""Which cases of an evaluation are shown, and how: image, mask, result, and where these differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from segapp import metrics
from segapp.cases import Case
from segapp.figures import CaseResult, Evaluation
from segapp.preprocess import SliceAxis
from segapp.report.overlay import (
    clear_ignored,
    display_size,
    display_slices,
    display_window,
    draw_slice,
    pixel_aspect,
    truth_slices,
)
from segapp.report.page import data_uri
from segapp.scan import SegClass, Segmentation, css

# Cold is the mask's, warm the result's.
MISSED, INVENTED, SWAPPED = (45, 120, 255), (255, 96, 48), (200, 70, 205)
OF_MASK, OF_RESULT, OF_BOTH = (90, 225, 255), (255, 222, 60), (176, 180, 184)
_SIDE, _MOST = 440, 8  # pixels of the longer side; times that a pixel is drawn larger at most
_MARGIN, _LEAST = 0.05, 0.4  # of the image: around the foreground, and what is shown at least
_EACH = 3
_SHARE = 8  # one of so many cases is drawn of each kind
_SMOOTH = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class CasePicture:
    """One slice of a case in four pictures, each as (what it is, a data: URI).

    slice_number: counted from 1, of `slices`. cropped: the foreground and what is near it are
    shown, not the whole slice. size: (width, height) of each in pixels.
    """

    case: Case
    panels: tuple[tuple[str, str], ...]
    slice_number: int
    slices: int
    cropped: bool
    size: tuple[int, int]


def score(result: CaseResult) -> float:
    """Mean Dice of the foreground classes that mask or result hold; NaN where they hold none."""
    return metrics.mean_dice(result.matrix)


def ranked(evaluation: Evaluation) -> list[CaseResult]:
    """The cases that have a score, from the worst to the best."""
    known = [(score(r), r.case.name, r) for r in evaluation.done() if not np.isnan(score(r))]
    return [r for _, _, r in sorted(known, key=lambda item: item[:2])]


def chosen_cases(evaluation: Evaluation) -> dict[str, list[CaseResult]]:
    """Up to three each of the worst, median and best cases, without repeats, each from the worst
    to the best; of few cases one or two, as they are segmented once more to be drawn."""
    cases = ranked(evaluation)
    each = min(_EACH, max(1, len(cases) // _SHARE))
    outer = min(each, (len(cases) + 1) // 3)
    inner = cases[outer : len(cases) - outer]
    start = max(0, (len(inner) - each) // 2)
    return {
        "worst": cases[:outer],
        "median": inner[start : start + each],
        "best": cases[len(cases) - outer :],
    }


def draw_case(
    case: Case, segmentation: Segmentation, truth: np.ndarray, axis: SliceAxis
) -> CasePicture:
    """The slice on which mask and result differ most; where they are the same, the one with the
    most foreground. truth: true indices (I, J, K)."""
    classes = segmentation.classes
    images, labels = display_slices(segmentation, axis)
    masks = truth_slices(truth, segmentation.scan, axis)
    labels = np.where(masks < len(classes), labels, 0)  # what is ignored is neither right nor wrong
    masks = clear_ignored(masks, classes)
    wrong = np.count_nonzero(labels != masks, axis=(1, 2))
    there = np.count_nonzero(masks, axis=(1, 2))
    k = int(np.lexsort((there, wrong))[-1])
    rows, columns = _shown(masks[k], labels[k])
    image, mask, label = images[k][:, rows, columns], masks[k][rows, columns], labels[k]
    label = label[rows, columns]
    height, width = mask.shape
    size = display_size(height, width, pixel_aspect(segmentation.scan, axis), _SIDE, _MOST)
    window = display_window(segmentation.scan)

    def enlarged(drawn: np.ndarray) -> np.ndarray:
        picture = draw_slice(image, drawn, classes, window)
        return np.asarray(Image.fromarray(picture).resize(size, _SMOOTH))

    plain = enlarged(np.zeros_like(mask))
    difference = draw_difference(plain, *(_enlarge(each, size) for each in (mask, label)))
    return CasePicture(
        case=case,
        panels=(
            ("image", data_uri(plain)),
            ("mask", data_uri(enlarged(mask))),
            ("result", data_uri(enlarged(label))),
            ("difference", data_uri(difference)),
        ),
        slice_number=k + 1,
        slices=len(images),
        cropped=mask.shape != masks[k].shape,
        size=size,
    )


def draw_difference(picture: np.ndarray, mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with what differs tinted, and the contours of mask and result over it.

    mask, label: (H, W) class indices. MISSED: only the mask has a class there; INVENTED: only the
    result has; SWAPPED: they have two.
    """
    drawn = picture.astype(np.float32) * 0.85
    for colour, where in (
        (MISSED, (mask > 0) & (label == 0)),
        (INVENTED, (mask == 0) & (label > 0)),
        (SWAPPED, (mask > 0) & (label > 0) & (mask != label)),
    ):
        drawn[where] = 0.35 * drawn[where] + 0.65 * np.array(colour, np.float32)
    of_mask, of_result = _contours(mask), _contours(label)
    drawn[of_mask], drawn[of_result] = OF_MASK, OF_RESULT
    drawn[of_mask & of_result] = OF_BOTH
    return np.rint(drawn).astype(np.uint8)


def _contours(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: the outermost pixels of each class, two deep, so that a page that shows the
    picture smaller does not make dots of them."""
    found = np.zeros(labels.shape, bool)
    for index in np.unique(labels[labels > 0]):
        mask = labels == index
        found |= mask & np.logical_not(ndimage.binary_erosion(mask, iterations=2))
    return found


def _enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(labels.astype(np.uint8))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))


def _shown(mask: np.ndarray, label: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around the foreground of both; all of them where that is most."""
    there = (mask > 0) | (label > 0)
    if not there.any():
        return slice(None), slice(None)
    return _around(np.flatnonzero(there.any(1)), len(mask)), _around(
        np.flatnonzero(there.any(0)), mask.shape[1]
    )


def _around(places: np.ndarray, length: int) -> slice:
    low, high = places[0], places[-1] + 1
    wanted = max(high - low + 2 * _MARGIN * length, _LEAST * length)
    if wanted >= 0.85 * length:
        return slice(0, length)
    start = int(np.clip(round((low + high - wanted) / 2), 0, length - round(wanted)))
    return slice(start, start + round(wanted))


def legend(classes: Sequence[SegClass]) -> list[tuple[str, str]]:
    """(name, CSS colour) of the foreground classes."""
    return [(c.name, css(c.colour)) for c in classes[1:]]
