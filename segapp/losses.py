"""Losses for training; always computed in float32, whatever precision the network runs in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segapp.cases import IGNORE_INDEX as IGNORE
from segapp.errors import ConfigError
from segapp.settings import LossSettings

SMOOTH = 1e-5  # nnU-Net's; keeps a class of few pixels from dividing by next to nothing


def make_loss(
    settings: LossSettings,
    classes: int,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss the settings ask for, of logits (N, classes, H, W) and a target (N, H, W).

    logits: any floating type. target: int64 or uint8, values 0…classes-1 or IGNORE; such pixels
    count nowhere. The loss is a float32 scalar (float64 for such logits); 0, with zero gradients,
    where all pixels are ignored.

    Cross-entropy, with class weights and label smoothing as torch.nn.functional.cross_entropy
    has them, + settings.weight × the second term of settings.name:
    dice_ce: soft Dice, see `_tversky`. tversky_ce: Tversky (Salehi et al. 2017). focal_ce: focal
    loss (Lin et al. 2017), its mean weighted by the class weights as the cross-entropy's is.

    total: adds up over processes that have a part of the batch each (see `Together.total`); every
    mean and every count goes through it, so that the loss is that of the whole batch.

    Raises ConfigError where there are not as many class weights as classes; `auto` must have been
    resolved to numbers before.
    """
    class_weights = None
    if settings.class_weights != "none":
        if len(settings.class_weights) != classes:
            raise ConfigError(
                f"loss.class_weights has {len(settings.class_weights)} number(s), but there are "
                f"{classes} classes (background included); give one for each, none or auto"
            )
        class_weights = torch.tensor(settings.class_weights)
    beta = 0.5 if settings.name == "dice_ce" else settings.tversky_beta
    has_regions = settings.name in ("dice_ce", "tversky_ce")

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            wide = logits if logits.dtype == torch.float64 else logits.float()
            log_probs = wide.log_softmax(dim=1)  # (N, C, H, W)
            valid = target != IGNORE
            target = torch.where(valid, target, 0).long()
            weights = None if class_weights is None else class_weights.to(logits.device)
            counts = valid if weights is None else weights[target] * valid  # (N, H, W)
            # not F.cross_entropy: its CUDA kernel has no deterministic form, and is NaN if all
            # are ignored
            of_true_class = log_probs.gather(1, target[:, None]).squeeze(1)  # (N, H, W)
            sums = [(of_true_class * counts).sum(), counts.sum().to(wide.dtype)]
            if settings.label_smoothing:
                sums.append(_spread(log_probs, valid, weights))
            if settings.name == "focal_ce":
                sums.append(_focal(of_true_class, counts, settings))
            regions = _regions(log_probs.exp(), target, valid) if has_regions else ()
            summed = total(torch.cat([torch.stack(sums), *regions]))
            means = summed / summed[1].clamp(min=torch.finfo().tiny)  # over pixels; not of regions
            value = -means[0]
            if settings.label_smoothing:
                value = (1 - settings.label_smoothing) * value - settings.label_smoothing * means[2]
            if settings.name == "focal_ce":
                value = value - settings.weight * means[len(sums) - 1]
            elif has_regions:
                value = value + settings.weight * _tversky(summed[len(sums) :].view(3, -1), beta)
            return value

    return loss


def _spread(log_probs: Tensor, valid: Tensor, weights: Tensor | None) -> Tensor:
    """What label smoothing adds: the log-probabilities' (weighted) mean over classes, summed over
    pixels."""
    if weights is not None:
        log_probs = log_probs * weights[:, None, None]
    return (log_probs.mean(1) * valid).sum()


def _focal(of_true_class: Tensor, counts: Tensor, settings: LossSettings) -> Tensor:
    """Sum of (1 - p)^gamma log p over (N, H, W) log-probabilities of the true classes."""
    # never quite 0, where a power below 1 has no slope
    error = (-of_true_class.expm1()).clamp(min=torch.finfo().eps)
    return (error**settings.focal_gamma * of_true_class * counts).sum()


def _regions(probs: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each foreground class what it overlaps with its truth (TP), its truth, and itself, as soft
    counts of pixels: three times (C-1,)."""
    probs = probs[:, 1:].masked_fill(~valid[:, None], 0)  # (N, C-1, H, W)
    classes = torch.arange(1, probs.shape[1] + 1, device=probs.device)
    truth = target[:, None] == classes[:, None, None]  # 0 where ignored, as target is
    pixels = (0, 2, 3)
    return (probs * truth).sum(pixels), truth.sum(pixels).to(probs.dtype), probs.sum(pixels)


def _tversky(regions: Tensor, beta: float) -> Tensor:
    """1 - TP / (TP + beta × FN + (1 - beta) × FP), of soft counts; 1 - Dice where beta is 0.5.

    Taken as nnU-Net takes Dice (Isensee et al. 2021; Milletari et al. 2016, Drozdzal et al. 2016):
    per class over the whole batch, background left out, then averaged. Unlike there, a class that
    the batch's target lacks adds no term: its Dice would be 0 or 1 by a hair's breadth of
    probability, so cross-entropy alone teaches its absence. regions: (3, C-1), see `_regions`.
    """
    overlap, truth, found = regions
    # TP + beta × FN + (1 - beta) × FP, as FN = truth - TP and FP = found - TP
    index = (overlap + SMOOTH / 2) / (beta * truth + (1 - beta) * found + SMOOTH / 2)
    present = truth > 0
    return ((1 - index) * present).sum() / present.sum().clamp(min=1)
