import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segapp.metrics import confusion, dice, iou, mean_dice, mean_iou, selection_score

IGNORE = 255


@st.composite
def tiny_masks(draw):
    classes, size = draw(st.integers(1, 4)), draw(st.integers(0, 12))
    index = st.integers(0, classes - 1)
    truth = draw(st.lists(index | st.just(IGNORE), min_size=size, max_size=size))
    prediction = draw(st.lists(index, min_size=size, max_size=size))
    return classes, truth, prediction


@given(tiny_masks())
def test_figures_are_those_of_sets(masks):
    classes, truth, prediction = masks
    matrix = confusion(np.array(truth, np.uint8), np.array(prediction, np.uint8), classes)
    counted = [n for n, t in enumerate(truth) if t != IGNORE]
    ious, dices = [], []
    for c in range(classes):
        a = {n for n in counted if truth[n] == c}
        b = {n for n in counted if prediction[n] == c}
        assert matrix[c].sum() == len(a)
        assert matrix[:, c].sum() == len(b)
        ious.append(len(a & b) / len(a | b) if a | b else math.nan)
        dices.append(2 * len(a & b) / (len(a) + len(b)) if a | b else math.nan)
    np.testing.assert_allclose(iou(matrix), ious)
    np.testing.assert_allclose(dice(matrix), dices)
    for found, values in ((mean_iou(matrix), ious), (mean_dice(matrix), dices[1:])):
        known = [v for v in values if not math.isnan(v)]
        assert found == pytest.approx(sum(known) / len(known) if known else math.nan, nan_ok=True)


def test_rows_are_the_truth_and_columns_the_prediction():
    matrix = confusion(np.array([[0, 0, 1]]), np.array([[0, 1, 1]]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert matrix.dtype == np.int64
    assert iou(matrix).tolist() == [0.5, 0.5, pytest.approx(math.nan, nan_ok=True)]
    assert dice(matrix)[:2] == pytest.approx([2 / 3, 2 / 3])
    assert mean_iou(matrix) == 0.5
    assert mean_dice(matrix) == pytest.approx(2 / 3)


def test_a_class_on_one_side_only_scores_0():
    matrix = confusion(np.array([0, 0]), np.array([0, 1]), 2)
    assert iou(matrix).tolist() == [0.5, 0]
    assert mean_dice(matrix) == 0


def test_an_empty_class_neither_flatters_nor_hurts():
    matrix = confusion(np.array([0, 0]), np.array([0, 0]), 3)
    assert mean_iou(matrix) == 1
    assert math.isnan(mean_dice(matrix))


def test_truth_outside_the_classes_counts_nowhere():
    matrix = confusion(np.array([-1, 2, IGNORE, 1]), np.array([0, 1, 1, 1]), 2)
    assert matrix.tolist() == [[0, 0], [0, 1]]


def test_no_voxels_no_score():
    empty = np.zeros((0, 3), np.uint8)
    matrix = confusion(empty, empty, 2)
    assert matrix.tolist() == [[0, 0], [0, 0]]
    assert math.isnan(mean_iou(matrix))


def test_counts_beyond_32_bits():
    matrix = np.array([[2**40, 0], [0, 2**40]])
    assert iou(matrix + matrix).tolist() == [1, 1]


def test_confusions_add_up():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 8, 9, 10)).astype(np.uint8)
    whole = confusion(truth, prediction, 3)
    parts = sum(confusion(t, p, 3) for t, p in zip(truth, prediction, strict=True))
    assert np.array_equal(whole, parts)


def test_epochs_are_judged_by_the_classes_that_the_masks_hold():
    all_background = np.array([[8, 0, 0], [2, 0, 0], [0, 0, 0]])  # a lesion of two pixels, missed
    found = np.array([[6, 1, 1], [0, 2, 0], [0, 0, 0]])  # found, with a false pixel of each class
    assert selection_score(all_background) == pytest.approx((8 / 10 + 0) / 2)
    assert selection_score(found) == pytest.approx((6 / 8 + 2 / 3) / 2)
    assert mean_iou(found) == pytest.approx((6 / 8 + 2 / 3 + 0) / 3)  # what is reported


def test_masks_without_foreground_judge_nothing():
    assert selection_score(np.array([[5, 4], [0, 0]])) == 0
    assert selection_score(np.array([[9, 0], [0, 0]])) == 0
    assert math.isnan(selection_score(np.zeros((2, 2), int)))
