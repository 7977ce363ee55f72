"""The cache gives back what went in; batches depend on (seed, step) alone."""

import multiprocessing
import os
import pickle
import signal
from itertools import islice
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import _utils, dataloader

from segapp.augment import Augmentation
from segapp.cases import Case, find_cases
from segapp.config import load_settings
from segapp.data import (
    Samples,
    SliceCache,
    make_batches,
    pass_length,
    sample_order,
    scaled_patch,
    stage_scale,
)
from segapp.plan import make_plan
from segapp.policies import resolved
from segapp.preprocess import Preprocessing
from segapp.resample import resize
from segapp.scan import make_classes
from segapp.settings import AugmentSettings


@pytest.fixture(autouse=True)
def _death_is_soon_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks every five seconds."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    look = dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(look, "__defaults__", (0.3,))


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


RAW = Preprocessing(channels=1, normalisation="imagenet", shift=(0,), scale=(1,))


def write_volumes(root: Path, depths: tuple[int, ...]) -> Path:
    """One volume of 6 × 4 pixels for each depth; slice k of case n is 100 n + k everywhere, its
    mask 0, 1 or 2 in turn."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for n, depth in enumerate(depths):
        values = np.arange(depth) + np.zeros((6, 4, 1))
        for part, voxels in (("images", 100 * n + values), ("masks", values % 3)):
            image = nib.Nifti1Image(voxels.astype(np.uint8), np.diag([-1, -1, 5, 1]))
            nib.save(image, root / part / f"{n}.nii")
    return root


def volume_cache(root: Path, folder: Path, **options: int) -> SliceCache:
    cache = SliceCache(folder, 1, **options)
    cache.fill(find_cases(root).cases, RAW, make_classes(["a", "b", "c"], [0, 1, 2]), None)
    return cache


def test_neighbours_are_further_channels_and_never_another_cases(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "data", (4, 1, 2))
    plain = volume_cache(root, tmp_path / "plain")
    cache = volume_cache(root, tmp_path / "cache", context=2)
    assert [c.tolist() for c in (cache[n][0][:, 0, 0] for n in range(7))] == [
        [0, 0, 0, 1, 2],
        [0, 0, 1, 2, 3],
        [0, 1, 2, 3, 3],
        [1, 2, 3, 3, 3],
        [100] * 5,
        [200, 200, 200, 201, 201],
        [200, 200, 201, 201, 201],
    ]
    for n in range(7):
        image, mask = cache[n]
        assert image.shape == (5, 4, 6)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image[2:3], plain[n][0])
        np.testing.assert_array_equal(mask, plain[n][1])


def test_neighbours_keep_their_channels_together(tmp_path: Path) -> None:
    values = np.arange(3, dtype=np.uint8) + np.zeros((6, 4, 1), np.uint8)
    files = [tmp_path / f"{name}.nii" for name in ("a_0000", "a_0001", "mask")]
    for path, voxels in zip(files, (values, values + 50, values), strict=True):
        nib.save(nib.Nifti1Image(voxels, np.diag([-1, -1, 5, 1])), path)
    case = Case("a", (files[0], files[1]), files[2], "a")
    cache = SliceCache(tmp_path / "cache", 2, context=1)
    two = Preprocessing(channels=2, normalisation="imagenet", shift=(0, 0), scale=(1, 1))
    cache.fill([case], two, make_classes(["a", "b", "c"], [0, 1, 2]), None)
    assert cache[1][0][:, 0, 0].tolist() == [0, 50, 1, 51, 2, 52]


def test_merged_mask_values_are_background(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "data", (3,))
    cache = SliceCache(tmp_path / "cache", 1)
    classes = make_classes(["a", "b"], [0, 1])
    cache.fill(find_cases(root).cases, RAW, classes, None, merged=(2,))
    assert [int(cache[n][1][0, 0]) for n in range(3)] == [0, 1, 0]
    assert cache.empty == [True, False, True]


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


def workers_of_this_process() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


@pytest.mark.slow
def test_dead_workers_are_replaced(samples: Samples, caplog: pytest.LogCaptureFixture) -> None:
    """Killed as the system does it when memory runs out; the batches are those of no such luck."""
    batches, found = make_batches(samples, 4, workers=2), []
    for step in range(12):
        if step == 3:
            os.kill(workers_of_this_process()[0], signal.SIGKILL)
        found.append(list(next(batches)))
    assert_equal(found, take(samples, 12, workers=0))
    (said,) = (record.getMessage() for record in caplog.records)
    assert "died and are replaced" in said
    batches.close()


@pytest.mark.slow
def test_workers_that_always_die_are_done_without(
    samples: Samples, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, take_one = os.getpid(), Samples.__getitem__

    def die(self: Samples, at: tuple[int, int]) -> object:
        if os.getpid() != parent:
            os._exit(1)
        return take_one(self, at)

    monkeypatch.setattr(Samples, "__getitem__", die)
    assert_equal(take(samples, 3, workers=1), take(samples, 3, workers=0))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "data.workers=0 from now on" in said[-1]
    assert not workers_of_this_process()


def test_an_error_in_a_worker_is_not_taken_for_its_death(samples: Samples) -> None:
    samples.cache.offsets[0] = samples.cache.offsets[1] = None
    with pytest.raises(TypeError):
        take(samples, 5, workers=1)


def test_a_later_start_gives_the_same_batches(samples: Samples) -> None:
    whole = take(samples, 7, workers=0)
    assert_equal(whole[4:], take(samples, 3, workers=0, first_step=4))


def test_batches_follow_the_seed(samples: Samples) -> None:
    other = Samples(samples.cache, samples.augment, seed=6)
    assert not torch.equal(take(samples, 1, workers=0)[0][0], take(other, 1, workers=0)[0][0])


def test_the_strongest_augmentation_survives_the_way_to_a_worker(samples: Samples) -> None:
    strong = resolved(AugmentSettings(policy="strong", foreground_p=0.5))
    samples = Samples(samples.cache, Augmentation(strong, 1, (32, 32)), seed=5)
    assert_equal(take(samples, 3, workers=0), take(samples, 3, workers=2))
    sent = pickle.loads(pickle.dumps(samples))  # what a spawned worker gets
    for at in ((0, 1), (3, 4)):
        assert np.array_equal(sent[at][0], samples[at][0])
        assert np.array_equal(sent[at][1], samples[at][1])


def test_a_scaled_sample_is_the_shrunken_slice(samples: Samples) -> None:
    whole = Augmentation(resolved(AugmentSettings(policy="none")), 1, (24, 32))
    image, mask, index = Samples(samples.cache, whole, 5, scale=0.5)[0, 3]
    slice_, labels = samples.cache[3]
    assert index == 3
    expected = cv2.resize(slice_[0], (32, 24), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(image[0], expected, atol=1e-5)
    np.testing.assert_array_equal(mask, resize(labels[None, None], (24, 32), nearest=True)[0, 0])
    assert set(np.unique(mask)) <= {0, 1, 2}
    assert mask.dtype == np.uint8


def test_scale_1_is_no_scale_at_all(samples: Samples) -> None:
    same = Samples(samples.cache, samples.augment, samples.seed, scale=1.0)
    assert_equal(take(samples, 3, workers=0), take(same, 3, workers=0))
    smaller = Samples(samples.cache, samples.augment, samples.seed, scale=0.75)
    assert not torch.equal(take(samples, 1, workers=0)[0][0], take(smaller, 1, workers=0)[0][0])


def test_stages_are_equal_parts_of_the_run() -> None:
    scales = [0.5, 0.75, 1.0]
    done = [0, 0.33, 0.34, 0.66, 0.67, 0.99, 1]
    assert [stage_scale(scales, d) for d in done] == [0.5, 0.5, 0.75, 0.75, 1, 1, 1]
    assert stage_scale(None, 0.2) == 1


def test_scaled_patches_suit_every_network() -> None:
    assert [scaled_patch(256, s) for s in (0.25, 0.5, 0.75, 1)] == [64, 128, 192, 256]
    assert scaled_patch(224, 0.7) == 160  # 156.8
    assert scaled_patch(96, 0.5) == 64
