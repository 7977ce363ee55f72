"""Augmentation: what moves, what doesn't, and that numbers come from the seed alone."""

import pickle

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from segapp import augment as module
from segapp.augment import Augmentation
from segapp.cases import IGNORE_INDEX
from segapp.operations import change_intensities, draw_operations, motion
from segapp.policies import STRONGEST, SUB_POLICIES, resolved
from segapp.settings import AugmentSettings

COLOURS = (
    *("colour_p", "gamma_p", "bias_field_p", "low_resolution_p", "blur_p", "noise_p"),
    *("salt_pepper_p", "erase_p"),
)
MOVES = ("flip_p", "vertical_flip_p", "affine_p", "elastic_p", "grid_p")
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "scale")


def sample(channels: int = 1, size: tuple[int, int] = (40, 48)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros(size, np.uint8)
    mask[10:20, 5:25] = 1
    mask[25:35, 30:45] = 2
    image = rng.normal(0, 0.1, (channels, *size)).astype(np.float32) + mask
    return image.astype(np.float32), mask


def settings(**changes: float) -> AugmentSettings:
    return of_policy("none", **changes)


def of_policy(policy: str, **changes: float) -> AugmentSettings:
    return resolved(AugmentSettings.model_validate({"policy": policy, **changes}))


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


def test_vertical_flip_turns_both_upside_down() -> None:
    image, mask = sample()
    augment = Augmentation(settings(vertical_flip_p=1), 1, (40, 48))
    got_image, got_mask = augment(image, mask, (0,))
    np.testing.assert_allclose(got_image, image[:, ::-1], atol=1e-6)
    np.testing.assert_array_equal(got_mask, mask[::-1])


@pytest.mark.parametrize("name", ["affine_p", "elastic_p", "grid_p"])
@pytest.mark.parametrize("channels", [1, 5])
def test_warps_move_image_and_mask_together_and_invent_no_label(name: str, channels: int) -> None:
    mask = sample()[1]
    mask[mask == 2] = 7
    mask[:4] = IGNORE_INDEX  # beside 0 and 7: anything between would be invented
    image = np.stack([(mask == 7) * (n + 1.0) for n in range(channels)]).astype(np.float32)
    augment = Augmentation(settings(**{name: 1}), channels, (40, 48))
    moved = 0
    for seed in range(20):
        got_image, got_mask = augment(image, mask, (seed,))
        for n in range(channels):  # bilinear against nearest at the rims
            inside = np.abs(got_image[n] / (n + 1) - (got_mask == 7)) < 0.51
            assert inside.mean() > 0.97
        assert set(np.unique(got_mask)) <= {0, 1, 7, IGNORE_INDEX}
        moved += not np.array_equal(got_mask, mask)
    assert moved >= 15


def test_elastic_shifts_are_smooth_and_never_fold() -> None:
    """An image of its own coordinates shows where each pixel came from."""
    rows, columns = np.mgrid[:128, :160].astype(np.float32)
    augment = Augmentation(settings(elastic_p=1), 2, (128, 160))
    sigma = 0.08 * 128
    sizes, slopes = [], []
    for seed in range(20):
        got, _ = augment(np.stack([columns, rows]), np.zeros((128, 160), np.uint8), (seed,))
        x, y = (plane[20:-20, 20:-20] for plane in got)  # the mirror at the border apart
        assert np.diff(x, axis=1).min() >= 0  # OpenCV rounds shifts to 1/32 pixel
        assert np.diff(y, axis=0).min() >= 0
        shift = x - columns[20:-20, 20:-20]
        sizes.append(shift.std() / sigma)
        slopes.append(np.diff(shift, axis=0).std() / shift.std())
    assert 0.08 < np.mean(sizes) < 0.22  # drawn from 0.08…0.22
    # noise smoothed with sigma changes by 1 / (sigma √2) of its size from pixel to pixel
    assert np.mean(slopes) == pytest.approx(1 / (sigma * 2**0.5), rel=0.25)


def test_gamma_is_one_power_of_the_patchs_own_range() -> None:
    image = np.linspace(-2, 6, 40 * 48, dtype=np.float32).reshape(1, 40, 48)
    mask = np.zeros((40, 48), np.uint8)
    got, _ = Augmentation(settings(gamma_p=1), 1, (40, 48))(image, mask, (0,))
    before, after = ((x.ravel()[1:-1] + 2) / 8 for x in (image, got))
    powers = np.log(after) / np.log(before)
    assert powers.std() < 1e-3
    assert 0.7 <= powers.mean() <= 1.5
    assert abs(powers.mean() - 1) > 0.01


def test_the_bias_field_is_smooth_and_the_brightest_pixel_keeps_its_value() -> None:
    image = np.full((2, 64, 64), 3.0, np.float32)
    image[:, 0, 0] = 0  # the range starts here
    mask = np.zeros((64, 64), np.uint8)
    for seed in range(10):
        got, _ = Augmentation(settings(bias_field_p=1), 2, (64, 64))(image, mask, (seed,))
        assert np.array_equal(got[0], got[1])
        assert got.max() == pytest.approx(3)
        assert got[0, 0, 0] == 0
        field = got[0, 1:, 1:] / 3
        assert 0.05 < np.log(field).std() + np.ptp(np.log(field)) < 2
        assert np.abs(np.diff(np.log(field), axis=1)).max() < 0.1


@pytest.mark.parametrize("channels", [1, 5])
def test_low_resolution_blurs_and_moves_nothing(channels: int) -> None:
    ramp = np.tile(np.arange(64, dtype=np.float32), (channels, 48, 1))
    mask = np.zeros((48, 64), np.uint8)
    noise = np.random.default_rng(0).normal(size=ramp.shape).astype(np.float32)
    for seed in range(10):
        augment = Augmentation(settings(low_resolution_p=1), channels, (48, 64))
        got, _ = augment(ramp, mask, (seed,))
        np.testing.assert_allclose(got[:, :, 3:-3], ramp[:, :, 3:-3], atol=0.15)
        coarse, _ = augment(noise, mask, (seed,))
        assert coarse.std() < 0.9 * noise.std()
        assert coarse.mean() == pytest.approx(noise.mean(), abs=0.02)


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("channels", [1, 3, 4, 9])
def test_colour_changes_leave_the_mask_alone(name: str, channels: int) -> None:
    image, mask = sample(channels)
    got_image, got_mask = Augmentation(settings(**{name: 1}), channels, (40, 48))(image, mask, (1,))
    np.testing.assert_array_equal(got_mask, mask)
    assert got_image.shape == image.shape
    assert got_image.dtype == np.float32
    assert np.isfinite(got_image).all()
    assert not np.allclose(got_image, image, atol=1e-4), f"{name} did nothing"


@pytest.mark.parametrize("name", sorted({*COLOURS, *MOVES} - {"noise_p"}))
@pytest.mark.parametrize("channels", [3, 5])
def test_all_channels_get_the_same_change(name: str, channels: int) -> None:
    image, mask = sample()
    augment = Augmentation(settings(**{name: 1}), channels, (40, 48), rgb=False)
    got, _ = augment(np.repeat(image, channels, 0), mask, (4,))
    assert not np.allclose(got[0], image[0], atol=1e-4)
    np.testing.assert_allclose(got, np.repeat(got[:1], channels, 0), atol=1e-5)


def test_saturation_and_hue_are_for_colours() -> None:
    image, mask = sample(3)
    image[0] += 1  # a colour
    only_hue = settings(colour_p=1, brightness=0, contrast=0, saturation=0, hue=0.4)
    got, _ = Augmentation(only_hue, 3, (40, 48))(image, mask, (3,))
    assert not np.allclose(got, image, atol=1e-3)
    modalities, _ = Augmentation(only_hue, 3, (40, 48), rgb=False)(image, mask, (3,))
    np.testing.assert_allclose(modalities, image, atol=1e-5)


def test_neighbouring_slices_get_the_colours_of_their_slice() -> None:
    image, mask = sample(3)
    image[0] += mask  # a colour
    jitter = settings(colour_p=1, brightness=0, contrast=0)
    alone, _ = Augmentation(jitter, 3, (40, 48))(image, mask, (3,))
    together, _ = Augmentation(jitter, 9, (40, 48), rgb=True)(np.tile(image, (3, 1, 1)), mask, (3,))
    assert not np.allclose(alone, image, atol=1e-3)
    np.testing.assert_allclose(together, np.tile(alone, (3, 1, 1)), atol=1e-5)


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


@pytest.mark.parametrize("policy", ["standard", "strong", "randaugment", "autoaugment"])
def test_the_seed_alone_decides(policy: str) -> None:
    image, mask = sample()
    every = of_policy(policy, foreground_p=0.5)
    one, other = (Augmentation(every, 1, (32, 32)) for _ in range(2))
    other = pickle.loads(pickle.dumps(other))  # as a worker gets it
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


@pytest.mark.parametrize("policy", ["strong", "randaugment", "autoaugment"])
def test_a_constant_slice_stays_finite(policy: str) -> None:
    image, mask = np.zeros((1, 40, 48), np.float32), np.zeros((40, 48), np.uint8)
    augment = Augmentation(of_policy(policy, **dict.fromkeys(COLOURS + MOVES, 1.0)), 1, (32, 32))
    for seed in range(20):
        got, _ = augment(image, mask, (seed,))
        assert np.isfinite(got).all()


def test_patches_centred_on_foreground_hold_a_class_of_four_pixels() -> None:
    image, mask = sample(size=(200, 240))
    mask[150:152, 200:202] = 3
    mask[0, 0] = IGNORE_INDEX
    for p, least, most in ((1.0, 290, 420), (0.0, 0, 150)):
        found, corners = [0, 0, 0, 0], set()
        augment = Augmentation(settings(foreground_p=p), 1, (64, 64))
        for seed in range(1000):
            _, labels = augment(image, mask, (seed,))
            assert labels.shape == (64, 64)
            for n in range(4):
                found[n] += n in labels
            corners.add(labels.tobytes())
        assert least <= found[3] <= most  # a third, as of three classes
        assert len(corners) > 50
        only = np.where(mask == 3, mask, 0)
        hits = sum(3 in augment(image, only, (seed,))[1] for seed in range(100))
        assert (hits == 100) == (p == 1)


def test_a_tiny_class_survives_moves_in_nearly_every_centred_patch() -> None:
    image, mask = sample(size=(120, 140))
    mask[:] = 0
    mask[80:82, 100:102] = 1
    augment = Augmentation(settings(foreground_p=1, affine_p=1, elastic_p=1), 1, (64, 64))
    assert np.mean([1 in augment(image, mask, (seed,))[1] for seed in range(200)]) > 0.9


def test_a_slice_without_foreground_is_cropped_at_random() -> None:
    image, mask = sample(size=(80, 80))
    mask[:] = 0
    mask[:8] = IGNORE_INDEX
    augment = Augmentation(settings(foreground_p=1), 1, (64, 64))
    patches = {augment(image, mask, (seed,))[0].tobytes() for seed in range(30)}
    assert len(patches) > 25


def random_operations(**changes: float) -> AugmentSettings:
    return of_policy("randaugment", flip_p=0, **changes)


def test_magnitude_0_changes_nothing() -> None:
    image, mask = sample()
    augment = Augmentation(random_operations(magnitude=0, operations=8), 1, (40, 48))
    for seed in range(20):
        got, labels = augment(image, mask, (seed,))
        np.testing.assert_allclose(got, image, atol=1e-6)
        np.testing.assert_array_equal(labels, mask)


@pytest.mark.parametrize("policy", ["randaugment", "autoaugment"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_random_operations_change_most_patches(policy: str, channels: int) -> None:
    image, mask = sample(channels)
    augment = Augmentation(of_policy(policy, flip_p=0), channels, (40, 48))
    changed = moved = 0
    for seed in range(50):
        got, labels = augment(image, mask, (seed,))
        assert got.shape == image.shape
        assert np.isfinite(got).all()
        changed += not np.allclose(got, image, atol=1e-3)
        moved += not np.array_equal(labels, mask)
    assert changed > 35
    assert 15 < moved < 50


def test_randaugment_draws_uniformly_with_replacement() -> None:
    drawn = [
        draw_operations(random_operations(operations=2, magnitude=5), np.random.default_rng(n))
        for n in range(2600)
    ]
    assert {len(operations) for operations in drawn} == {2}
    names = [name for operations in drawn for name, _ in operations]
    assert set(names) == set(STRONGEST)
    assert all(300 < names.count(name) < 500 for name in STRONGEST)  # 400 expected
    assert 130 < sum(a[0] == b[0] for a, b in drawn) < 270  # 200 expected
    angles = [s for operations in drawn for name, s in operations if name == "rotate"]
    assert set(angles) == {-15, 15}
    assert 0.4 < np.mean(np.array(angles) > 0) < 0.6


def test_autoaugment_draws_one_line_of_the_policy() -> None:
    fixed = of_policy("autoaugment")
    drawn = [
        [(name, abs(s)) for name, s in draw_operations(fixed, np.random.default_rng(n))]
        for n in range(2000)
    ]
    lines = [
        [(name, magnitude / 10 * STRONGEST[name]) for name, _, magnitude in line]
        for line in SUB_POLICIES
    ]
    for operations in drawn:
        assert any([x for x in line if x in operations] == operations for line in lines)
    first = sum(operations == lines[0] for operations in drawn)
    (_, p, _), (_, q, _) = SUB_POLICIES[0]
    assert first == pytest.approx(2000 / len(lines) * p * q, rel=0.35)


def test_motions_by_hand() -> None:
    """Where a point 10 right of and 0 below the centre of 40 × 80 pixels goes."""

    def moved(name: str, strength: float) -> list[float]:
        return (motion(name, strength, (40, 80)) @ [10, 0, 1])[:2].round(6).tolist()

    assert moved("rotate", 90) == [0, 10]
    assert moved("scale", np.log(2)) == [20, 0]
    assert moved("shear_x", 0.5) == [10, 0]
    assert moved("shear_y", 0.5) == [10, 5]
    assert moved("translate_x", 0.25) == [30, 0]
    assert moved("translate_y", -0.25) == [10, -10]
    assert moved("gamma", 0.5) == moved("identity", 0.5) == [10, 0]


@pytest.mark.parametrize("name", GEOMETRY)
def test_operations_move_image_and_mask_together(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, mask = sample()
    image = np.repeat(mask[None], 5, 0).astype(np.float32)
    augment = Augmentation(random_operations(), 5, (40, 48))
    monkeypatch.setattr(module, "draw_operations", lambda *_: [(name, STRONGEST[name] / 2)])
    got, labels = augment(image, mask, (0,))
    assert not np.array_equal(labels, mask)
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert all((np.abs(plane - labels) < 0.51).mean() > 0.97 for plane in got)


def test_operations_one_after_the_other_are_one_move(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = sample()
    steps = [("translate_x", 0.25), ("rotate", 180), ("translate_y", 0.1)]
    augment = Augmentation(random_operations(), 1, (40, 48))
    monkeypatch.setattr(module, "draw_operations", lambda *_: steps)
    got, labels = augment(image, mask, (0,))
    # 12 to the right, turned by half a turn, 4 down; what came from outside is a mirror image
    np.testing.assert_array_equal(labels[4:, :36], mask[::-1, ::-1][:-4, 12:])
    np.testing.assert_allclose(got[0, 4:, :36], image[0, ::-1, ::-1][:-4, 12:], atol=1e-4)


def test_intensity_operations_by_hand() -> None:
    unit = np.array([[[0, 0.3], [0.5, 1]]], np.float32)  # mean 0.45
    rng = np.random.default_rng(0)

    def changed(name: str, strength: float) -> list[float]:
        result = change_intensities(unit, name, strength, rng)
        assert result.dtype == np.float32
        return result.ravel().round(4).tolist()

    assert changed("brightness", 0.2) == pytest.approx([0.2, 0.5, 0.7, 1])
    assert changed("contrast", -0.5) == pytest.approx([0.225, 0.375, 0.475, 0.725])
    assert changed("gamma", np.log(2)) == pytest.approx([0, 0.09, 0.25, 1])
    assert changed("posterise", -0.125) == pytest.approx([0, 0.25, 0.5, 1])
    assert changed("rotate", 20) == changed("identity", 0.5) == pytest.approx([0, 0.3, 0.5, 1])


def test_sharpness_adds_or_takes_away_detail() -> None:
    unit = np.random.default_rng(0).uniform(0.3, 0.7, (2, 64, 64)).astype(np.float32)
    smooth = np.stack([gaussian_filter(plane, 1.0, mode="mirror") for plane in unit])
    for strength in (-1, -0.5, 0.4):
        got = change_intensities(unit, "sharpness", strength, np.random.default_rng(0))
        expected = np.clip(unit + strength * (unit - smooth), 0, 1)
        np.testing.assert_allclose(got, expected, atol=2e-3)  # kernels are cut at other widths


def test_noise_has_the_strength_as_its_deviation() -> None:
    unit = np.full((2, 100, 100), 0.5, np.float32)
    got = change_intensities(unit, "noise", -0.1, np.random.default_rng(0))
    assert got.std() == pytest.approx(0.1, rel=0.05)
    assert not np.array_equal(got[0], got[1])  # as in neighbouring slices of a scan


def test_knobs_apply_beside_random_operations() -> None:
    image, mask = sample()
    augment = Augmentation(random_operations(magnitude=0, noise_p=1), 1, (40, 48))
    assert not np.allclose(augment(image, mask, (0,))[0], image, atol=1e-3)
