"""Losses for training; always computed in float32, whatever precision the network runs in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segapp.errors import ConfigError
from segapp.settings import LossSettings

IGNORE = 255  # pixels whose true class is unknown; fits the uint8 masks that travel through loading
SMOOTH = 1e-5  # nnU-Net's; keeps a class of few pixels from dividing by next to nothing


def make_loss(settings: LossSettings, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss the settings ask for, of logits (N, classes, H, W) and a target (N, H, W).

    logits: any floating type. target: int64 or uint8, values 0…classes-1 or IGNORE; such pixels
    count nowhere. The loss is a float32 scalar; 0, with zero gradients, where all pixels are
    ignored.

    Cross-entropy, with class weights and label smoothing as torch.nn.functional.cross_entropy
    has them, + settings.weight × the second term of settings.name:
    dice_ce: soft Dice, see `_tversky`. tversky_ce: Tversky (Salehi et al. 2017). focal_ce: focal
    loss (Lin et al. 2017), its mean weighted by the class weights as the cross-entropy's is.

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

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            log_probs = logits.float().log_softmax(dim=1)  # (N, C, H, W)
            valid = target != IGNORE
            target = torch.where(valid, target, 0).long()
            weights = None if class_weights is None else class_weights.to(logits.device)
            counts = valid if weights is None else weights[target] * valid  # (N, H, W)
            # not F.cross_entropy: its CUDA kernel has no deterministic form, and is NaN if all
            # are ignored
            of_true_class = log_probs.gather(1, target[:, None]).squeeze(1)  # (N, H, W)
            total = -_mean(of_true_class, counts)
            if settings.label_smoothing:
                share = settings.label_smoothing
                total = (1 - share) * total - share * _spread(log_probs, valid, counts, weights)
            if settings.name == "focal_ce":
                total = total + settings.weight * _focal(of_true_class, counts, settings)
            elif settings.name in ("dice_ce", "tversky_ce"):
                total = total + settings.weight * _tversky(log_probs.exp(), target, valid, beta)
            return total

    return loss


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of (N, H, W) values, weighted by `counts` (bool or float32); 0 where none counts."""
    return (values * counts).sum() / counts.sum().clamp(min=torch.finfo().tiny)


def _spread(log_probs: Tensor, valid: Tensor, counts: Tensor, weights: Tensor | None) -> Tensor:
    """What label smoothing adds: the log-probabilities' (weighted) mean over classes and pixels."""
    if weights is not None:
        log_probs = log_probs * weights[:, None, None]
    return (log_probs.mean(1) * valid).sum() / counts.sum().clamp(min=torch.finfo().tiny)


def _focal(of_true_class: Tensor, counts: Tensor, settings: LossSettings) -> Tensor:
    """Mean of -(1 - p)^gamma log p over (N, H, W) log-probabilities of the true classes."""
    # never quite 0, where a power below 1 has no slope
    error = (-of_true_class.expm1()).clamp(min=torch.finfo().eps)
    return -_mean(error**settings.focal_gamma * of_true_class, counts)


def _tversky(probs: Tensor, target: Tensor, valid: Tensor, beta: float) -> Tensor:
    """1 - TP / (TP + beta × FN + (1 - beta) × FP), of soft counts; 1 - Dice where beta is 0.5.

    Taken as nnU-Net takes Dice (Isensee et al. 2021; Milletari et al. 2016, Drozdzal et al. 2016):
    per class over the whole batch, background left out, then averaged. Unlike there, a class that
    the batch's target lacks adds no term: its Dice would be 0 or 1 by a hair's breadth of
    probability, so cross-entropy alone teaches its absence.
    """
    probs = probs[:, 1:].masked_fill(~valid[:, None], 0)  # (N, C-1, H, W)
    classes = torch.arange(1, probs.shape[1] + 1, device=probs.device)
    truth = target[:, None] == classes[:, None, None]  # bool, 0 where ignored
    pixels = (0, 2, 3)
    overlap = (probs * truth).sum(pixels)  # (C-1,), TP
    # TP + beta × FN + (1 - beta) × FP, as FN = truth - TP and FP = probs - TP
    sizes = beta * truth.sum(pixels) + (1 - beta) * probs.sum(pixels)
    index = (overlap + SMOOTH / 2) / (sizes + SMOOTH / 2)
    present = truth.any(0).flatten(1).any(1)  # (C-1,)
    return ((1 - index) * present).sum() / present.sum().clamp(min=1)
