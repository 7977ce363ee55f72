"""Mixup and CutMix for dense labels: a batch mixed with itself in another order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segapp.settings import AugmentSettings


@dataclass(frozen=True)
class Mixed:
    """A batch for the network: images (N, C, h, w) float32, masks (N, h, w) uint8.

    other_masks: (N, h, w) where the images are mixtures: `share` of the masks', the rest theirs;
    None where every pixel has one label.
    """

    images: Tensor
    masks: Tensor
    other_masks: Tensor | None = None
    share: float = 1.0


def mix_batch(
    images: Tensor, masks: Tensor, settings: AugmentSettings, seed: tuple[int, ...]
) -> Mixed:
    """A batch mixed with itself in another order: with probability mixup_p by Mixup, else with
    cutmix_p by CutMix, else not. A batch of one is left as it is.

    images: (N, C, h, w) floating point; masks: (N, h, w) uint8; neither is changed. Everything
    random comes from `seed`. Mixup (Zhang et al. 2018): `share` ~ Beta(α, α) of each image and the
    rest of another. CutMix (Yun et al. 2019): a rectangle, the same for all, is replaced by
    another's, in the mask too; `share` is the part of the patch that stays.
    """
    if len(images) < 2:
        return Mixed(images, masks)
    rng = np.random.default_rng(seed)
    draw = rng.random()
    if draw < settings.mixup_p:
        share = float(rng.beta(settings.mixup_alpha, settings.mixup_alpha))
        order = _order(len(images), rng)
        return Mixed(share * images + (1 - share) * images[order], masks, masks[order], share)
    if draw < settings.mixup_p + settings.cutmix_p:
        kept = float(rng.beta(settings.cutmix_alpha, settings.cutmix_alpha))
        rows, columns, share = rectangle(images.shape[2], images.shape[3], kept, rng)
        order = _order(len(images), rng)
        images, masks = images.clone(), masks.clone()
        images[..., rows, columns] = images[order][..., rows, columns]
        masks[:, rows, columns] = masks[order][:, rows, columns]
        return Mixed(images, masks, share=share)
    return Mixed(images, masks)


def rectangle(
    height: int, width: int, kept: float, rng: np.random.Generator
) -> tuple[slice, slice, float]:
    """Rows and columns of a rectangle of the share 1 - kept of the area, with the patch's aspect,
    about a random pixel and clipped at the border; and the share of the area outside it."""
    spans, side = [], math.sqrt(1 - kept)
    for n in (height, width):
        length = round(n * side)
        first = int(rng.integers(n)) - length // 2
        spans.append(slice(max(0, first), min(n, first + length)))
    rows, columns = spans
    cut = (rows.stop - rows.start) * (columns.stop - columns.start)
    return rows, columns, 1 - cut / (height * width)


def _order(count: int, rng: np.random.Generator) -> Tensor:
    """Everybody's partner: the one so many places on, so that nobody is mixed with itself."""
    return torch.arange(count).roll(int(rng.integers(1, count)))
