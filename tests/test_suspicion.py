"""Scores by hand, of a few pixels."""

import math

import numpy as np
import pytest

from segapp.cases import IGNORE_INDEX
from segapp.suspicion import tally


def slab(*pixels: tuple[float, ...]) -> np.ndarray:
    """(1, classes, 1, n) from the probabilities of each pixel."""
    return np.array(pixels, np.float32).T[None, :, None]


def mask(*labels: int) -> np.ndarray:
    return np.array(labels, np.uint8)[None, None]


def test_sums_by_hand() -> None:
    t = tally(slab((0.75, 0.25), (0.25, 0.75), (0.5, 0.5)), mask(0, 1, 1))
    assert t.matrix.tolist() == [[1, 0], [1, 1]]
    assert t.soft[1].tolist() == [1.5, 1.5]
    assert t.soft[2].tolist() == [1.25, 0.75]
    assert t.dice == pytest.approx(2 / 3)
    assert t.expected_dice == pytest.approx(2 * 0.75 / (1 + 1.5))


def field(p: float, size: int = 61) -> np.ndarray:
    """(1, 2, size, size): the foreground has the probability p everywhere."""
    return np.stack([np.full((size, size), q, np.float32) for q in (1 - p, p)])[None]


def test_the_score_is_the_mean_surprise_around_the_worst_place() -> None:
    labels = np.ones((1, 61, 61), np.uint8)
    labels[0, :, 30:] = 0  # half of the slice: far from its edge the mean is the pixel's own
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert tally(field(0.9), labels).score == pytest.approx(-math.log(0.1) - entropy, rel=1e-3)


def test_one_pixel_weighs_as_much_as_the_middle_of_the_gaussian() -> None:
    labels = np.ones((1, 61, 61), np.uint8)
    labels[0, 30, 30] = 0
    more = math.log(0.99) - math.log(0.01)
    base = -math.log(0.99) + 0.99 * math.log(0.99) + 0.01 * math.log(0.01)
    expected = base + more / (2 * math.pi * 9)
    assert tally(field(0.99), labels).score == pytest.approx(expected, rel=2e-2)


def test_a_mask_as_the_model_expects_it_is_no_surprise() -> None:
    """Where foreground has 0.75, one pixel in four is background."""
    labels = np.ones((1, 60, 60), np.uint8)
    labels[0, ::2, ::2] = 0
    assert tally(field(0.75, 60), labels).score == pytest.approx(0, abs=0.03)


def test_a_doubtful_model_suspects_less_than_a_sure_one() -> None:
    wrong = np.zeros((1, 61, 61), np.uint8)
    sure, unsure = (tally(field(p), wrong).score for p in (0.99, 0.6))
    assert sure > unsure > 0


def test_where_it_is_wrong_in_one_piece_counts_more() -> None:
    piece, strewn = np.ones((2, 1, 60, 60), np.uint8)
    piece[0, 30:36, 30:36] = 0
    strewn[0, ::10, ::10] = 0
    assert (piece == 0).sum() == (strewn == 0).sum() == 36
    assert tally(field(0.99, 60), piece).score > 5 * tally(field(0.99, 60), strewn).score


def test_the_peak_is_counted_over_slabs() -> None:
    labels = np.ones((3, 60, 60), np.uint8)
    labels[2, 20:23, 40:43] = 0
    p = np.repeat(field(0.99, 60), 3, axis=0)
    assert tally(p, labels).peak == (2, 21, 41)
    assert (tally(p[:1], labels[:1]) + tally(p[1:], labels[1:])).peak == (2, 21, 41)
    assert (tally(p[2:], labels[2:]) + tally(p[:2], labels[:2])).peak == (0, 21, 41)


def test_larger_slices_are_looked_at_more_coarsely() -> None:
    small, large = np.ones((1, 64, 64), np.uint8), np.ones((1, 1024, 1024), np.uint8)
    small[0, 30:34, 30:34] = 0
    large[0, 500:508, 500:508] = 0
    same = tally(field(0.99, 64), small).score
    assert tally(field(0.99, 1024), large).score == pytest.approx(same, rel=0.02)


def test_slabs_add_up() -> None:
    p, labels = slab((0.9, 0.1), (0.3, 0.7), (0.6, 0.4)), mask(0, 1, 1)
    p, labels = p[0].transpose(2, 0, 1)[..., None], np.moveaxis(labels, 2, 0)
    whole = tally(p, labels)  # three slices of one pixel
    parts = tally(p[:1], labels[:1]) + tally(p[1:], labels[1:])
    assert parts.score == pytest.approx(whole.score)
    assert parts.expected_dice == pytest.approx(whole.expected_dice)
    assert np.array_equal(parts.matrix, whole.matrix)


def test_ignored_pixels_count_nowhere() -> None:
    p = slab((0.9, 0.1), (0.3, 0.7), (0.0, 1.0))
    ignoring = tally(p, mask(0, 1, IGNORE_INDEX))
    certain = slab((0.9, 0.1), (0.3, 0.7), (1.0, 0.0))  # nothing to be surprised by either
    assert ignoring.score == pytest.approx(tally(certain, mask(0, 1, 0)).score)
    assert ignoring.soft[1].tolist() == pytest.approx([1.2, 0.8])
    assert tally(p[:0], mask(0, 1, 1)[:0]).score == 0
    nothing = tally(p, mask(*[IGNORE_INDEX] * 3))
    assert (nothing.score, nothing.matrix.sum()) == (0, 0)
    assert math.isnan(nothing.dice)
    assert math.isnan(nothing.expected_dice)


def test_a_class_that_only_probabilities_hold_is_not_expected() -> None:
    """As it has no Dice either: neither mask nor result holds it."""
    t = tally(slab((0.6, 0.3, 0.1), (0.1, 0.8, 0.1)), mask(0, 1))
    assert t.dice == 1
    assert t.expected_dice == pytest.approx(2 * 0.8 / (1 + 1.1))


def test_impossible_pixels_are_finite() -> None:
    assert math.isfinite(tally(slab((1.0, 0.0), (0.0, 1.0)), mask(1, 0)).score)
