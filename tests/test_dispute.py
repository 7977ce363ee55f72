"""What is said of a difference that was planted."""

import numpy as np
import pytest

from segapp import dispute
from segapp.cases import IGNORE_INDEX
from segapp.dispute import best_shift, moved_by, piece_at
from segapp.scan import make_classes

CLASSES = make_classes(["background", "liver", "tumour"], [0, 1, 2])
ALL = (slice(None), slice(None), slice(None))


def reason(truth: np.ndarray, labels: np.ndarray, look_for_shift: bool = False) -> str:
    return dispute.reason(truth, labels, CLASSES, ALL, look_for_shift)


def square() -> np.ndarray:
    """(1, 40, 40): a liver of 20 × 20 with a tumour of 6 × 6 in it."""
    labels = np.zeros((1, 40, 40), np.uint8)
    labels[0, 10:30, 10:30] = 1
    labels[0, 12:18, 12:18] = 2
    return labels


def test_no_difference() -> None:
    assert reason(square(), square(), look_for_shift=True) == "no difference"


def test_what_the_mask_ignores_is_no_difference() -> None:
    truth = square()
    truth[0, :15] = IGNORE_INDEX
    assert reason(truth, np.where(truth == IGNORE_INDEX, 1, truth)) == "no difference"


def test_a_hole() -> None:
    truth = square()
    truth[0, 20:25, 20:26] = 0
    said = "background where the model sees liver: 30 pixels in one piece (a hole?)"
    assert reason(truth, square()) == said
    truth[0, 10, 10:15] = 0
    assert reason(truth, square()) == said + "; 5 elsewhere"
    truth[0, 5, 5] = 1
    truth[0, 10, 10:15] = 1
    more = "; liver where the model sees background: 1 pixel"
    assert reason(truth, square()) == said + more


def test_a_piece_at_the_edge_is_no_hole() -> None:
    truth = square()
    truth[0, 26:30, 10:30] = 0
    assert "80 pixels in one piece" in reason(truth, square())
    assert "hole" not in reason(truth, square())


def test_a_piece_among_ignored_ones_is_no_hole() -> None:
    truth = np.full((1, 40, 40), IGNORE_INDEX, np.uint8)
    truth[0, 20:25, 20:26] = 0
    said = reason(truth, np.ones_like(truth))
    assert said == "background where the model sees liver: 30 pixels in one piece"


def test_classes_swapped() -> None:
    truth = np.array([0, 2, 1], np.uint8)[square()]
    said = reason(truth, square())
    assert said == ("liver and tumour swapped? exchanging them would raise Dice from 0.00 to 1.00")


def test_a_missing_class_is_no_swap() -> None:
    truth = np.minimum(square(), 1)
    said = reason(truth, square())
    assert said == "liver where the model sees tumour: 36 pixels in one piece"


def test_a_shift_is_found_and_only_looked_for_when_asked() -> None:
    truth = moved_by(square(), 3, -4)
    said = reason(truth, square(), look_for_shift=True)
    assert said.startswith("shifted? moving the mask 4 right and 3 up (pixels) would raise Dice")
    assert said.endswith("to 1.00")
    assert "shifted" not in reason(truth, square())


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (2, 0), (-5, 5)])
def test_the_best_shift_brings_the_mask_back(rows: int, columns: int) -> None:
    truth = np.repeat(moved_by(square(), rows, columns), 20, axis=0)
    assert best_shift(truth, np.repeat(square(), 20, axis=0), 3) == (-rows, -columns)


def test_nothing_to_shift() -> None:
    assert best_shift(square() * 0, square(), 3) == (0, 0)
    assert best_shift(square() * 0, square() * 0, 3) == (0, 0)


def test_moving_by_more_than_the_slice() -> None:
    assert not moved_by(square(), 50, 0).any()
    assert not moved_by(square(), 0, -50).any()


def test_the_piece_at_a_place() -> None:
    truth = square()
    truth[0, 20:23, 20:23] = 0  # one hole
    truth[0, 24:28, 24:28] = 0  # another
    here = (slice(0, 1), slice(19, 22), slice(19, 22))
    piece = piece_at(truth, square(), 3, here)
    assert piece is not None
    assert (piece.sum(), piece[0, 20:23, 20:23].all()) == (9, True)
    said = dispute.reason(truth, square(), CLASSES, here)
    assert said == (
        "background where the model sees liver: 9 pixels in one piece (a hole?); 16 elsewhere"
    )


def test_a_piece_goes_without_the_contour_it_hangs_on() -> None:
    truth = square()
    truth[0, 20:26, 27:30] = 0
    truth[0, 10:30, 29] = 0
    piece = piece_at(truth, square(), 3, (slice(0, 1), slice(20, 26), slice(24, 30)))
    assert piece is not None
    assert piece.sum() == 18
    thin = piece_at(truth, square(), 3, (slice(0, 1), slice(10, 14), slice(26, 30)))
    assert thin is not None
    assert thin.sum() == 18 + 14


def test_no_piece_where_they_agree() -> None:
    truth = square()
    truth[0, 20:23, 20:23] = 0
    assert piece_at(truth, square(), 3, (slice(0, 1), slice(0, 9), slice(0, 9))) is None


def test_volumes_have_voxels() -> None:
    labels = np.repeat(square(), 2, axis=0)
    truth = labels.copy()
    truth[:, 20:25, 20:26] = 0
    assert "60 voxels in one piece" in reason(truth, labels)
