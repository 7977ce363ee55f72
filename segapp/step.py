"""One optimiser step, and what it costs in memory."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from segapp.config import LossSettings
from segapp.errors import ConfigError
from segapp.losses import cross_entropy_loss, dice_ce_loss


def training_step(
    accelerator: Accelerator,
    network: nn.Module,
    optimizer: Any,
    loss_settings: LossSettings,
    images: torch.Tensor,
    masks: torch.Tensor,
    clip_norm: float,
) -> tuple[torch.Tensor, bool]:
    """One optimiser step on (N, C, h, w) images and (N, h, w) masks.

    Returns the loss, and whether the step was taken: a gradient scaler skips it on overflow.
    """
    images = images.to(accelerator.device, memory_format=torch.channels_last, non_blocking=True)
    masks = masks.to(accelerator.device, non_blocking=True)
    logits = network(images)  # (N, classes, h, w)
    if loss_settings.name == "dice_ce":
        loss = dice_ce_loss(logits, masks, loss_settings.dice_weight)
    else:
        loss = cross_entropy_loss(logits, masks)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(network.parameters(), clip_norm)
    scaler = accelerator.scaler
    scale = scaler.get_scale() if scaler else 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # A skipped step shows in the scale alone: a fused optimiser is called and skips inside, which
    # Accelerate's own step_was_skipped does not see.
    taken = not scaler or scaler.get_scale() >= scale
    return loss.detach(), taken


def make_accelerator(precision: str, device: torch.device) -> Accelerator:
    """An Accelerator for one process. Raises ConfigError under a launcher of several."""
    AcceleratorState._reset_state(True)  # runs of one process may differ in precision
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision
    )
    if accelerator.num_processes > 1:
        raise ConfigError("training over several processes is not supported yet; start one")
    return accelerator


def peak_memory_mb() -> float:
    """Most memory in use so far: the GPU's where there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
