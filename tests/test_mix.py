"""Mixup and CutMix: each number by hand."""

import numpy as np
import pytest
import torch

from segapp.cases import IGNORE_INDEX
from segapp.mix import mix_batch, rectangle
from segapp.settings import AugmentSettings

MIXUP = AugmentSettings(mixup_p=1, mixup_alpha=0.4)
CUTMIX = AugmentSettings(cutmix_p=1)


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Image n is n everywhere, in both channels; so is its mask, but a corner is ignored."""
    masks = torch.arange(count, dtype=torch.uint8)[:, None, None].repeat(1, 20, 30)
    images = masks[:, None].float().repeat(1, 2, 1, 1)
    masks[:, :5, :5] = IGNORE_INDEX
    return images, masks


def test_mixup_is_a_weighted_mean_of_two_images() -> None:
    images, masks = batch()
    mixed = mix_batch(images, masks, MIXUP, (0, 1))
    assert mixed.other_masks is not None
    assert torch.equal(mixed.masks, masks)
    assert mixed.images.dtype == torch.float32
    partners = mixed.other_masks[:, -1, -1].float()
    assert sorted(partners.tolist()) == [0, 1, 2, 3]
    expected = mixed.share * torch.arange(4) + (1 - mixed.share) * partners
    for n in range(4):
        assert mixed.images[n].numpy() == pytest.approx(float(expected[n]))
    assert bool((mixed.other_masks[:, :5, :5] == IGNORE_INDEX).all())
    assert mixed.other_masks.dtype == torch.uint8


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixups_share_follows_beta(alpha: float) -> None:
    """Beta(α, α) has the mean 1/2 and the variance 1 / (4 (2α + 1))."""
    images, masks = torch.zeros(2, 1, 2, 2), torch.zeros(2, 2, 2, dtype=torch.uint8)
    settings = AugmentSettings(mixup_p=1, mixup_alpha=alpha)
    shares = [mix_batch(images, masks, settings, (0, n)).share for n in range(1000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmix_pastes_one_rectangle_of_another_image_and_its_mask() -> None:
    images, masks = batch()
    pasted = 0
    for seed in range(30):
        mixed = mix_batch(images, masks, CUTMIX, (seed,))
        assert mixed.other_masks is None
        assert mixed.masks.dtype == torch.uint8
        assert bool((mixed.masks[:, :5, :5] == IGNORE_INDEX).all())
        counted = mixed.masks != IGNORE_INDEX
        for channel in (0, 1):  # image and mask changed at the same places
            assert torch.equal(mixed.images[:, channel][counted], mixed.masks[counted].float())
        changed = (mixed.images != images)[:, 0]
        assert len({changed[n].numpy().tobytes() for n in range(4) if changed[n].any()}) <= 1
        for n in range(4):
            if not changed[n].any():  # nothing was cut, or the image is its own partner
                continue
            pasted += 1
            assert 1 - float(changed[n].float().mean()) == pytest.approx(mixed.share)
            rows, columns = changed[n].nonzero().T
            box = changed[n][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert bool(box.all())
            assert len(mixed.images[n][:, changed[n]].unique()) == 1
    assert pasted > 60


def test_the_rectangles_area_is_what_was_drawn_unless_the_border_cuts_it() -> None:
    rng = np.random.default_rng(0)
    clipped = 0
    for _ in range(200):
        rows, columns, share = rectangle(80, 120, 0.75, rng)  # half of each side
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert share == pytest.approx(1 - height * width / (80 * 120))
        inside = rows.start > 0 and rows.stop < 80 and columns.start > 0 and columns.stop < 120
        assert (height, width) == (40, 60) or not inside
        assert share >= 0.75 - 1e-9
        clipped += not inside
    assert 100 < clipped < 190  # the middle half of the middles: a quarter are inside


def test_nothing_is_cut_where_all_is_kept_and_at_most_all_where_nothing_is() -> None:
    rng = np.random.default_rng(0)
    assert rectangle(10, 10, 1.0, rng)[2] == 1
    rows, columns, share = rectangle(10, 10, 0.0, rng)
    assert 0 <= share < 1
    assert rows.stop <= 10
    assert columns.stop <= 10


def test_the_two_exclude_each_other_at_their_shares() -> None:
    images, masks = batch()
    settings = AugmentSettings(mixup_p=0.3, cutmix_p=0.5, cutmix_alpha=8, mixup_alpha=8)
    kinds = []
    for seed in range(600):
        mixed = mix_batch(images, masks, settings, (5, seed))
        if mixed.other_masks is not None:
            kinds.append("mixup")
        else:
            kinds.append("cutmix" if mixed.share < 1 else "none")
    for kind, share in (("mixup", 0.3), ("cutmix", 0.5), ("none", 0.2)):
        assert kinds.count(kind) / 600 == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX])
def test_the_seed_alone_decides_and_the_batch_stays_as_it_was(settings: AugmentSettings) -> None:
    images, masks = batch(8)
    before = images.clone(), masks.clone()
    one, same, other = (mix_batch(images, masks, settings, (3, n)) for n in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.masks, same.masks)
    assert one.share == same.share
    assert not torch.equal(one.images, other.images)
    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])


def test_off_and_batches_of_one_are_returned_as_they_are() -> None:
    for count, settings in ((4, AugmentSettings()), (1, MIXUP), (1, CUTMIX)):
        images, masks = batch(count)
        mixed = mix_batch(images, masks, settings, (0,))
        assert mixed.images is images
        assert mixed.masks is masks
        assert mixed.other_masks is None
        assert mixed.share == 1
