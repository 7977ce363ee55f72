"""Losses for training; always computed in float32, whatever precision the network runs in."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = 255  # pixels whose true class is unknown; fits the uint8 masks that travel through loading
SMOOTH = 1e-5  # nnU-Net's; keeps a class of few pixels from dividing by next to nothing


def cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that are not IGNORE; 0 where all are.

    logits: (N, C, H, W), any floating type. target: (N, H, W), int64 or uint8, values 0…C-1 or
    IGNORE. Returns a float32 scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = logits.float().log_softmax(dim=1)  # (N, C, H, W)
        return _cross_entropy(log_probs, *_split_ignored(target))


def dice_ce_loss(logits: Tensor, target: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Cross-entropy + `dice_weight` × soft Dice loss.

    logits: (N, C, H, W), any floating type. target: (N, H, W), int64 or uint8, values 0…C-1 or
    IGNORE; such pixels count nowhere. Returns a float32 scalar; 0, with zero gradients, where all
    pixels are ignored.

    Dice is taken as nnU-Net does (Isensee et al. 2021; Milletari et al. 2016, Drozdzal et al.
    2016): per class over the whole batch, background left out, then averaged. Unlike there, a class
    that the batch's target lacks adds no Dice term: its Dice would be 0 or 1 by a hair's breadth of
    probability, so cross-entropy alone teaches its absence.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = logits.float().log_softmax(dim=1)  # (N, C, H, W)
        target, valid = _split_ignored(target)
        cross_entropy = _cross_entropy(log_probs, target, valid)
        return cross_entropy + dice_weight * _dice_loss(log_probs.exp(), target, valid)


def _split_ignored(target: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, W) → class indices with 0 where ignored (int64), and where they count (bool)."""
    valid = target != IGNORE
    return torch.where(valid, target, 0).long(), valid


def _cross_entropy(log_probs: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    # not F.cross_entropy: its CUDA kernel has no deterministic form, and is NaN if all are ignored
    of_true_class = log_probs.gather(1, target[:, None]).squeeze(1)  # (N, H, W)
    return -of_true_class.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def _dice_loss(probs: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    probs = probs[:, 1:].masked_fill(~valid[:, None], 0)  # (N, C-1, H, W)
    classes = torch.arange(1, probs.shape[1] + 1, device=probs.device)
    truth = target[:, None] == classes[:, None, None]  # bool, 0 where ignored
    pixels = (0, 2, 3)
    overlap = (probs * truth).sum(pixels)  # (C-1,)
    sizes = probs.sum(pixels) + truth.sum(pixels)
    dice = (2 * overlap + SMOOTH) / (sizes + SMOOTH)
    present = truth.any(0).flatten(1).any(1)  # (C-1,)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)
