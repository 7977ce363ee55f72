"""The cache gives back what went in; batches depend on (seed, step) alone."""

from itertools import islice
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from segapp.augment import Augmentation
from segapp.cases import find_cases
from segapp.config import load_settings
from segapp.data import Samples, SliceCache, make_batches, pass_length, sample_order
from segapp.plan import make_plan
from segapp.preprocess import Preprocessing
from segapp.scan import make_classes


@pytest.fixture
def samples(png_dataset: Path, tmp_path: Path) -> Samples:
    settings = load_settings(None, [f"data.root={png_dataset}", "optim.patch=64"])
    plan = make_plan(settings)
    cache = SliceCache(tmp_path / "cache", plan.preprocessing.channels)
    cache.fill(find_cases(png_dataset).cases, plan.preprocessing, plan.classes, None)
    return Samples(cache, Augmentation(plan.settings.augment, 1, (32, 32)), seed=5)


def test_cache_holds_normalised_slices_and_their_masks(samples: Samples) -> None:
    cache = samples.cache
    assert cache.names == [f"case{n}" for n in range(6)]
    assert cache.empty == [False] * 6
    for n in range(6):
        image, mask = cache[n]
        assert image.shape == (1, 48, 64)
        assert image.mean() == pytest.approx(0, abs=2e-3)  # z-score, kept with float16's digits
        assert image.std() == pytest.approx(1, abs=2e-3)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert image[0][mask == 1].mean() > image[0][mask == 0].mean() + 1


def test_cache_holds_slices_at_the_models_spacing(tmp_path: Path) -> None:
    """6 × 4 pixels of 2 × 1 mm at 0.5 mm: 12 × 16 in the cache, masks as the images."""
    for part, value in (("images", 100), ("masks", 1)):
        (tmp_path / part).mkdir()
        pixels = np.zeros((6, 4, 1), np.uint8)
        pixels[:3] = value
        nib.save(nib.Nifti1Image(pixels, np.diag([-1, -2, 3, 1])), tmp_path / part / "a.nii")
    raw = {"normalisation": "imagenet", "shift": (0,), "scale": (1,)}
    cache = SliceCache(tmp_path / "cache", 1)
    classes = make_classes(["background", "left"], [0, 1])
    cache.fill(
        find_cases(tmp_path).cases, Preprocessing(channels=1, spacing_mm=0.5, **raw), classes, None
    )
    assert cache.sizes == [(16, 12)]
    image, mask = cache[0]
    assert image.shape == (1, 16, 12)
    assert np.array_equal(mask, np.tile(np.repeat([1, 0], 6), (16, 1)))
    assert np.array_equal(image[0] > 50, mask == 1)


def test_a_pass_is_every_slice_with_foreground_and_some_without() -> None:
    empty = [False] * 8 + [True] * 10
    assert pass_length(empty) == 10
    first, second = (list(islice(sample_order(empty, 0), a, a + 10)) for a in (0, 10))
    for number, addresses in enumerate((first, second)):
        assert {at for at, _ in addresses} == {number}
        indices = [index for _, index in addresses]
        assert set(range(8)) <= set(indices)
        assert len(set(indices)) == 10
    assert [i for _, i in first] != [i for _, i in second]


def test_a_data_set_without_foreground_still_has_an_order() -> None:
    assert pass_length([True] * 3) == 3
    assert {i for _, i in islice(sample_order([True] * 3, 0), 3)} == {0, 1, 2}


def take(samples: Samples, count: int, **options: int) -> list[list[torch.Tensor]]:
    return [list(batch) for batch in islice(make_batches(samples, 4, **options), count)]


def assert_equal(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_have_the_promised_shapes(samples: Samples) -> None:
    images, masks, indices = take(samples, 1, workers=0)[0]
    assert images.shape == (4, 1, 32, 32)
    assert images.dtype == torch.float32
    assert masks.shape == (4, 32, 32)
    assert masks.dtype == torch.uint8
    assert indices.shape == (4,)


def test_workers_change_nothing(samples: Samples) -> None:
    assert_equal(take(samples, 5, workers=0), take(samples, 5, workers=2))


def test_a_later_start_gives_the_same_batches(samples: Samples) -> None:
    whole = take(samples, 7, workers=0)
    assert_equal(whole[4:], take(samples, 3, workers=0, first_step=4))


def test_batches_follow_the_seed(samples: Samples) -> None:
    other = Samples(samples.cache, samples.augment, seed=6)
    assert not torch.equal(take(samples, 1, workers=0)[0][0], take(other, 1, workers=0)[0][0])
