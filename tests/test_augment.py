"""Augmentation: what moves, what doesn't, and that numbers come from the seed alone."""

import numpy as np
import pytest

from segapp.augment import Augmentation
from segapp.cases import IGNORE_INDEX
from segapp.config import AugmentSettings

OFF = dict.fromkeys(
    ("flip_p", "affine_p", "colour_p", "blur_p", "noise_p", "salt_pepper_p", "erase_p"), 0.0
)
COLOURS = ("colour_p", "blur_p", "noise_p", "salt_pepper_p", "erase_p")


def sample(channels: int = 1, size: tuple[int, int] = (40, 48)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros(size, np.uint8)
    mask[10:20, 5:25] = 1
    mask[25:35, 30:45] = 2
    image = rng.normal(0, 0.1, (channels, *size)).astype(np.float32) + mask
    return image.astype(np.float32), mask


def settings(**changes: float) -> AugmentSettings:
    return AugmentSettings(**{**OFF, **changes})


def test_all_off_is_the_slice_itself() -> None:
    image, mask = sample()
    got_image, got_mask = Augmentation(settings(), 1, (40, 48))(image, mask, (0,))
    np.testing.assert_allclose(got_image, image, atol=1e-6)
    np.testing.assert_array_equal(got_mask, mask)


def test_flip_mirrors_both() -> None:
    image, mask = sample()
    got_image, got_mask = Augmentation(settings(flip_p=1), 1, (40, 48))(image, mask, (0,))
    np.testing.assert_allclose(got_image, image[:, :, ::-1], atol=1e-6)
    np.testing.assert_array_equal(got_mask, mask[:, ::-1])


def test_affine_moves_image_and_mask_together() -> None:
    _, mask = sample()
    image = mask[None].astype(np.float32)  # the image is the mask: they must stay so
    augment = Augmentation(settings(affine_p=1), 1, (40, 48))
    moved = 0
    for seed in range(20):
        got_image, got_mask = augment(image, mask, (seed,))
        inside = np.abs(got_image[0] - got_mask) < 0.51  # bilinear against nearest at the rims
        assert inside.mean() > 0.97
        assert set(np.unique(got_mask)) <= {0, 1, 2}
        moved += not np.array_equal(got_mask, mask)
    assert moved >= 19


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colour_changes_leave_the_mask_alone(name: str, channels: int) -> None:
    image, mask = sample(channels)
    got_image, got_mask = Augmentation(settings(**{name: 1}), channels, (40, 48))(image, mask, (1,))
    np.testing.assert_array_equal(got_mask, mask)
    assert got_image.shape == image.shape
    assert got_image.dtype == np.float32
    assert np.isfinite(got_image).all()
    assert not np.allclose(got_image, image, atol=1e-4), f"{name} did nothing"


def test_saturation_and_hue_are_for_rgb() -> None:
    image, mask = sample(3)
    image[0] += 1  # a colour
    only_hue = settings(colour_p=1, brightness=0, contrast=0, saturation=0, hue=0.4)
    got, _ = Augmentation(only_hue, 3, (40, 48))(image, mask, (3,))
    assert not np.allclose(got, image, atol=1e-3)


def test_the_crop_is_a_window_of_the_slice() -> None:
    image, mask = sample()
    augment = Augmentation(settings(), 1, (16, 16))
    corners = set()
    for seed in range(30):
        patch, labels = augment(image, mask, (seed,))
        assert patch.shape == (1, 16, 16)
        assert labels.shape == (16, 16)
        found = [
            (r, c)
            for r in range(25)
            for c in range(33)
            if np.allclose(image[:, r : r + 16, c : c + 16], patch, atol=1e-5)
        ]
        assert len(found) == 1
        row, column = found[0]
        np.testing.assert_array_equal(mask[row : row + 16, column : column + 16], labels)
        corners.add(found[0])
    assert len(corners) > 20


def test_a_small_slice_is_padded_and_the_padding_counts_nowhere() -> None:
    image, mask = sample()
    patch, labels = Augmentation(settings(), 1, (64, 64))(image, mask, (0,))
    assert patch.shape == (1, 64, 64)
    assert (labels == IGNORE_INDEX).sum() == 64 * 64 - 40 * 48
    np.testing.assert_array_equal(labels[12:52, 8:56], mask)


def test_the_seed_alone_decides() -> None:
    image, mask = sample()
    one, other = (Augmentation(AugmentSettings(flip_p=0.5), 1, (32, 32)) for _ in range(2))
    first = one(image, mask, (0, 1, 2))
    one(image, mask, (0, 1, 3))
    for again in (one(image, mask, (0, 1, 2)), other(image, mask, (0, 1, 2))):
        np.testing.assert_array_equal(again[0], first[0])
        np.testing.assert_array_equal(again[1], first[1])
    assert not np.array_equal(one(image, mask, (0, 2, 2))[0], first[0])


def test_changes_come_independently_of_each_other() -> None:
    """Transforms that share one seed would all fire together; half and half must not agree."""
    image, mask = sample()
    image[:, 0, 0], image[:, -1, -1] = -5, 5  # a wide range, so that noise shows everywhere
    augment = Augmentation(settings(flip_p=0.5, noise_p=0.5), 1, (40, 48))
    flips, noises = [], []
    for seed in range(60):
        got, labels = augment(image, mask, (seed,))
        flipped = not np.array_equal(labels, mask)
        reference = image[:, :, ::-1] if flipped else image
        flips.append(flipped)
        noises.append(not np.allclose(got, reference, atol=1e-4))
    agreement = np.mean(np.array(flips) == np.array(noises))
    assert 0.25 < agreement < 0.75
    assert 0.25 < np.mean(flips) < 0.75


def test_a_constant_slice_stays_finite() -> None:
    image, mask = np.zeros((1, 40, 48), np.float32), np.zeros((40, 48), np.uint8)
    every = AugmentSettings(**dict.fromkeys(OFF, 1.0))
    assert np.isfinite(Augmentation(every, 1, (32, 32))(image, mask, (0,))[0]).all()
