"""Flipped masks and recurring pictures, against flips and copies that the tests make."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_case
from PIL import Image

from segapp.evidence import explained, flipped, near_pairs, picture_hash
from segapp.scan import Scan

BRAIN = Path(__file__).parents[1] / "data" / "brain"


def raster(array: np.ndarray) -> Scan:
    """(rows, columns) as a scan."""
    return Scan(array.T[None, :, :, None], None, Path("x"))


def fit(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    return explained(raster(image), raster(mask))


def test_the_share_of_variance_that_a_mask_explains() -> None:
    """Values 1, 1 | 5, 9: the means 1 and 7 explain 36 of 44 about the mean of 4."""
    image = np.array([[1, 1], [5, 9]], np.uint8)
    found = fit(image, np.array([[0, 0], [3, 3]], np.uint8))
    assert found[""] == pytest.approx(36 / 44)
    assert found["top to bottom"] == pytest.approx(36 / 44)  # the classes have no names here
    assert found["rows for columns"] == pytest.approx(4 / 44)  # 1, 5 | 1, 9: means 3 and 5
    assert fit(np.full((4, 5), 7), np.zeros((4, 5), int))[""] == 0


def square_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_case(seed, (64, 64))


TURNS = {
    "top to bottom": lambda m: m[::-1],
    "left to right": lambda m: m[:, ::-1],
    "left to right and top to bottom": lambda m: m[::-1, ::-1],
    "rows for columns": lambda m: m.T,
}


@pytest.mark.parametrize("how", TURNS)
def test_a_flipped_mask_among_sound_ones_is_found(how: str) -> None:
    pairs = [square_case(n) for n in range(12)]
    pairs[4] = (pairs[4][0], TURNS[how](pairs[4][1]))
    assert flipped([fit(*p) for p in pairs]) == ({4: how}, True)


def test_masks_that_all_lie_flipped_are_found() -> None:
    pairs = [(image, mask[::-1]) for image, mask in map(draw_case, range(8))]
    assert flipped([fit(*p) for p in pairs]) == (
        dict.fromkeys(range(8), "top to bottom"),
        True,
    )


def test_five_sound_masks_are_the_least_to_compare_with() -> None:
    def found(count: int) -> tuple[dict[int, str], bool]:
        pairs = [draw_case(n) for n in range(count)]
        pairs[1] = (pairs[1][0], pairs[1][1][::-1])
        return flipped([fit(*p) for p in pairs])

    assert found(6) == ({1: "top to bottom"}, True)
    assert found(5) == ({1: "top to bottom"}, False)
    assert found(4) == ({}, False)
    assert flipped([]) == ({}, False)


def test_half_of_the_masks_flipped_is_a_doubt() -> None:
    pairs = [(i, m[::-1] if n % 2 else m) for n, (i, m) in enumerate(map(draw_case, range(12)))]
    found = dict.fromkeys(range(1, 12, 2), "top to bottom")
    assert flipped([fit(*p) for p in pairs]) == (found, False)


@pytest.mark.parametrize("seed", range(20))
def test_masks_that_do_not_fit_anyhow_are_not_called_flipped(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def blob() -> np.ndarray:
        rows, columns = np.mgrid[:64, :64]
        row, column, area = rng.integers(10, 54), rng.integers(10, 54), rng.integers(20, 200)
        return ((rows - row) ** 2 + (columns - column) ** 2 < area).astype(np.uint8)

    noise = [(rng.normal(size=(64, 64)), rng.integers(0, 3, (64, 64))) for _ in range(20)]
    elsewhere = [(rng.normal(size=(64, 64)) + 3 * blob(), blob()) for _ in range(20)]
    for pairs in (noise, elsewhere):
        assert flipped([fit(*p) for p in pairs])[0] == {}


def test_one_of_two_lungs_is_not_called_flipped() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    pairs = []
    for _ in range(40):
        height, width = rng.integers(150, 350, 2), rng.integers(50, 120, 2)
        left, right = (
            (rows - 32) ** 2 / height[n] + (columns - middle) ** 2 / width[n] < 1
            for n, middle in enumerate((18, 46))
        )
        pairs.append((rng.normal(100, 10, (64, 64)) - 80 * (left | right), left.astype(int)))
    assert flipped([fit(*p) for p in pairs])[0] == {}


def test_flips_of_brain_slices_are_found_and_no_others() -> None:
    fits, upside_down = [], set(range(0, 70, 7))
    for n, path in enumerate(sorted((BRAIN / "train" / "images").iterdir())):
        mask = np.array(Image.open(BRAIN / "train" / "masks" / path.name))
        fits.append(fit(np.array(Image.open(path)), mask[::-1] if n in upside_down else mask))
    found, is_sure = flipped(fits)
    assert (set(found), is_sure) == (upside_down, True)


def test_volumes_are_flipped_along_any_axis() -> None:
    rng = np.random.default_rng(0)
    fits = []
    for n in range(7):
        labels = np.zeros((70, 9, 80), np.uint8)  # more than 64 are sampled
        labels[4 + n : 30, 1:3, 50:70] = 1
        scan = Scan((rng.normal(0, 1, labels.shape) + 9 * labels)[None], np.eye(4), Path("x"))
        mask = np.flip(labels, (0, 2)) if n == 3 else labels
        fits.append(explained(scan, Scan(mask[None], np.eye(4), Path("x"))))
    assert flipped(fits) == ({3: "along i and along k"}, True)


def test_a_picture_is_known_again_after_other_size_contrast_and_jpeg() -> None:
    hashes = []
    for n in range(0, 100, 9):
        picture = cv2.GaussianBlur(np.random.default_rng(n).normal(128, 200, (90, 120)), (0, 0), 6)
        picture = np.clip(picture * 4 - 384, 0, 255).astype(np.uint8)
        smaller = cv2.resize(picture, (80, 60), interpolation=cv2.INTER_AREA)
        darker = (picture * 0.5 + 20).astype(np.uint8)
        jpeg = cv2.imdecode(cv2.imencode(".jpg", picture, [1, 70])[1], cv2.IMREAD_GRAYSCALE)
        hashes.append([picture_hash(raster(p)) for p in (picture, smaller, darker, jpeg)])
    for k in (1, 2, 3):
        sides = [h[0] for h in hashes], [h[k] for h in hashes]
        count, nearest = near_pairs(*sides, "a" * 12, "b" * 12)
        assert (count, len(nearest)) == (12, 3)
        assert all(i == j for _, i, j in nearest)
    assert near_pairs([], hashes[0], "", "a" * 4) == (0, [])


def test_the_nearest_pairs_of_other_owners_come_first() -> None:
    bits = np.random.default_rng(0).random(256) < 0.5
    others = [bits ^ (np.arange(256) < n) for n in (5, 7, 2, 0, 3)]
    assert near_pairs([~bits, bits], others, "ab", "xxxby") == (
        3,
        [(2, 1, 2), (3, 1, 4), (5, 1, 0)],
    )
    many = near_pairs([bits] * 3000, [bits], ["a"] * 3000, ["b"])
    assert many == (3000, [(0, 0, 0), (0, 1, 0), (0, 2, 0)])


def test_a_plain_picture_is_like_no_other() -> None:
    assert picture_hash(raster(np.zeros((40, 40), np.uint8))) is None
    spot = np.zeros((40, 40), np.uint8)
    spot[20, 20] = 9
    assert picture_hash(raster(spot)) is None
