"""Masks beside results on one picture."""

from pathlib import Path

import numpy as np
from PIL import Image

from segapp.report.board import HEADER, MARGIN, SIDE, wrapped
from segapp.report.pairs import MOST, Pair, Shown, write_pairs
from segapp.scan import make_classes

CLASSES = make_classes(["background", "lesion"], [0, 1])
MAGENTA, YELLOW = (255, 0, 255), (255, 255, 0)


class Fixed:
    """A font whose letters are one pixel wide."""

    def getlength(self, text: str) -> int:
        return len(text)


def pair(shape: tuple[int, int] = (60, 80), differ: bool = True) -> Pair:
    """A lesion of which the mask lacks the lower half, if they differ."""
    labels = np.zeros(shape, np.uint8)
    labels[20:40, 30:50] = 1
    truth = labels.copy()
    if differ:
        truth[30:] = 0
    place = (slice(33, 38), slice(38, 43))
    return Pair(np.full((1, *shape), 100, np.uint8), truth, labels, place, (0, 255), 1.0)


def drawn(tmp_path: Path, *shown: Shown) -> np.ndarray:
    write_pairs("heading", shown, CLASSES, tmp_path / "p.png")
    return np.array(Image.open(tmp_path / "p.png"))


def colours(part: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(c) for c in part.reshape(-1, 3).tolist()}


def test_what_differs_is_outlined_in_both(tmp_path: Path) -> None:
    top, page = HEADER + MARGIN, drawn(tmp_path, Shown("a", "text", pair()))
    mask = page[top : top + SIDE, MARGIN : MARGIN + SIDE]
    result = page[top : top + SIDE, MARGIN + SIDE + 4 : MARGIN + 2 * SIDE + 4]
    for side in (mask, result):
        assert {MAGENTA, YELLOW} <= colours(side)
    middle = SIDE // 2
    low = (middle + 40, middle - 50)
    assert np.abs(mask[low] - 100.0).max() < 4, "the mask has nothing there, but for rounding"
    assert np.abs(result[low] - 100.0).max() > 20


def test_a_frame_thinner_than_a_pixel_is_drawn(tmp_path: Path) -> None:
    flat = pair((100, 2000))
    flat.labels[:, :] = 1
    odd = Pair(flat.image, flat.truth, flat.labels, (slice(0, 1), slice(5, 9)), (0, 255), 0.05)
    assert YELLOW in colours(drawn(tmp_path, Shown("a", "", odd))[HEADER + MARGIN :])


def test_no_outline_where_they_agree(tmp_path: Path) -> None:
    page = drawn(tmp_path, Shown("a", "", pair(differ=False)))
    assert MAGENTA not in colours(page[HEADER + MARGIN :])


def test_pictures_are_cut_to_what_is_shown(tmp_path: Path) -> None:
    """The lesion fills most of it, in a slice of any size."""
    small, large = (drawn(tmp_path, Shown("a", "", pair(s))) for s in ((60, 80), (500, 400)))
    top = HEADER + MARGIN
    row = small[top + 60, MARGIN : MARGIN + SIDE]
    assert (row != 100).any(axis=1).mean() > 0.6
    assert np.array_equal(row, large[top + 60, MARGIN : MARGIN + SIDE])


def test_a_place_at_the_corner_and_no_foreground(tmp_path: Path) -> None:
    empty = np.zeros((30, 20), np.uint8)
    image = np.zeros((3, 30, 20), np.uint8)
    nothing = Pair(image, empty, empty, (slice(0, 7), slice(13, 20)), (0, 255), 2.0)
    assert YELLOW in colours(drawn(tmp_path, Shown("a", "", nothing))[HEADER + MARGIN :])


def test_no_more_than_fit_and_none_at_all(tmp_path: Path) -> None:
    full = drawn(tmp_path, *[Shown("a", "long " * 90, pair())] * MOST).shape
    assert drawn(tmp_path, *[Shown("a", "", pair())] * (MOST + 3)).shape == full
    assert drawn(tmp_path).shape < full


def test_words_are_wrapped_and_cut() -> None:
    assert wrapped("one two three four", Fixed(), 9, 2) == ["one two", "three…"]  # type: ignore
    assert wrapped("one two three", Fixed(), 8, 2) == ["one two", "three"]  # type: ignore
    assert wrapped("", Fixed(), 8, 2) == [""]  # type: ignore
