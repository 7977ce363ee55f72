"""Sizes and spacings: nothing moves, and a thing keeps its size in mm for the network."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from segapp.config import load_settings
from segapp.formats import read_scan
from segapp.metrics import confusion, mean_iou
from segapp.plan import open_run
from segapp.predict import Predictor
from segapp.resample import pad, resize


def test_pad_to_a_least_size():
    assert pad(np.zeros((1, 1, 33, 64)), 32).shape == (1, 1, 64, 64)
    assert pad(np.zeros((1, 1, 3, 64)), 32, least=96).shape == (1, 1, 96, 96)
    x = np.zeros((1, 1, 32, 64))
    assert pad(x, 32) is x


@pytest.mark.parametrize(
    "target", [(32, 32), (50, 40), (50, 50), (96, 96), (100, 70), (40, 96), (150, 30)]
)
def test_a_ramp_keeps_its_place(target):
    """With half-pixel centres the value at a point stays; corner alignment or an offset shows."""
    rows, columns = np.mgrid[:64, :64] + 0.5
    found = resize((rows + 10 * columns).astype(np.float32)[None, None], target)[0, 0]
    rows, columns = np.mgrid[: target[0], : target[1]] + 0.5
    expected = rows * 64 / target[0] + 10 * columns * 64 / target[1]
    inner = (slice(2, -2), slice(2, -2))
    error = (found - expected)[inner]  # half a pixel would be 5
    assert abs(error).max() < 1, "area averages are off by less than a tenth of a pixel"
    assert abs(error.mean()) < 0.01, "and on average not at all"


def test_masks_are_resized_by_the_nearest_and_keep_their_type():
    labels = np.array([[0, 200], [7, 255]], np.uint8)[None, None]
    found = resize(labels, (4, 4), nearest=True)
    assert found.dtype == np.uint8
    assert np.array_equal(found[0, 0], np.kron(labels[0, 0], np.ones((2, 2), np.uint8)))


def test_more_channels_than_opencv_takes():
    assert resize(np.zeros((2, 7, 8, 8), np.float32), (4, 4)).shape == (2, 7, 4, 4)


def test_a_side_that_shrinks_is_averaged_also_where_the_other_grows() -> None:
    stripes = np.zeros((1, 1, 64, 8), np.float32)
    stripes[:, :, ::4] = 100
    for size in ((16, 8), (16, 5), (16, 20)):
        np.testing.assert_allclose(resize(stripes, size), 25)
        np.testing.assert_allclose(resize(stripes.swapaxes(2, 3), size[::-1]), 25)


def discs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows × columns of 0.5 mm with two discs of one brightness that only their size tells apart:
    class 1 with a radius of 4 mm, class 2 with 7.5 mm (4.2 mm where 0.9 is taken for 0.5)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :128]
    image, mask = rng.normal(40, 8, rows.shape), np.zeros(rows.shape, np.uint8)
    for value, radius, half in ((1, 8, seed % 2), (2, 15, 1 - seed % 2)):
        row = rng.integers(radius + 4, 92 - radius)
        column = rng.integers(radius + 2, 62 - radius) + 64 * half
        mask[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = value
    return np.clip(image + 100 * (mask > 0), 1, 255).astype(np.uint8), mask


def coarser(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same at 0.9 mm by scipy: the image blurred and interpolated, the mask's nearest value."""
    at = np.meshgrid(*((np.arange(n) + 0.5) * 1.8 - 0.5 for n in (53, 71)), indexing="ij")
    smooth = ndimage.gaussian_filter(image.astype(float), 0.6)
    image = ndimage.map_coordinates(smooth, at, order=1, mode="nearest").round().astype(np.uint8)
    return image, ndimage.map_coordinates(mask, at, order=0, mode="nearest")


def save(path: Path, pixels: np.ndarray, mm: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(pixels.T[..., None], np.diag([-mm, -mm, 3, 1])), path)
    return path


@pytest.mark.slow
def test_a_model_of_half_a_millimetre_is_right_at_0_9(tmp_path: Path) -> None:
    from segapp.train import run_plan

    for n in range(16):
        for part, pixels in zip(("images", "masks"), discs(n), strict=True):
            save(tmp_path / "data" / part / f"case{n}.nii.gz", pixels, 0.5)
    words = ("model.encoder=resnet18", "model.encoder_weights=none", "optim.patch=64")
    words += ("optim.batch_size=4", "train.precision=fp32", "train.epochs=4")
    words += ("train.steps_per_epoch=20", "preprocess.spacing_mm=auto")
    words += (f"data.root={tmp_path / 'data'}", f"train.out={tmp_path / 'run'}")
    loaded = Predictor.load(run_plan(open_run(load_settings(None, list(words)))), "cpu")
    assert loaded.preprocessing.spacing_mm == 0.5
    as_it_is = loaded.preprocessing.model_copy(update={"spacing_mm": None})
    blind = Predictor(loaded.engine, as_it_is, loaded.classes)

    def miou(predictor: Predictor, mm: float) -> float:
        total = np.zeros((3, 3), np.int64)
        for n in range(100, 108):
            image, mask = discs(n) if mm == 0.5 else coarser(*discs(n))
            found = predictor(read_scan(save(tmp_path / "held_out.nii", image, mm)))
            assert found.labels.shape == (*image.T.shape, 1)
            assert found.warnings == ()
            total += confusion(mask.T[..., None], found.labels, 3)
        return mean_iou(total)

    fine = miou(loaded, 0.5)
    assert fine > 0.9
    assert miou(blind, 0.5) == fine, "at the model's own spacing nothing is resampled"
    assert miou(loaded, 0.9) > fine - 0.05  # edges of coarser pixels, no more
    assert miou(blind, 0.9) < fine - 0.3, "the large disc is taken for the small one"
