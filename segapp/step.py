"""One optimiser step, and what it costs in memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from segapp.errors import ConfigError
from segapp.mix import Mixed


def training_step(
    accelerator: Accelerator,
    network: nn.Module,
    optimizer: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Sequence[Mixed],
    clip_norm: float,
) -> tuple[Tensor, bool]:
    """One optimiser step on one batch or more, down the gradient of the mean of their losses.

    loss: logits (N, classes, h, w) and masks (N, h, w) → scalar. Of a mixture of two images it is
    taken for both masks and weighed by their shares (Zhang et al. 2018).

    Returns the mean loss, and whether the step was taken: a gradient scaler skips it on overflow.
    """
    mean = torch.zeros((), device=accelerator.device)
    for batch in batches:
        part = _loss(accelerator.device, network, loss, batch) / len(batches)
        accelerator.backward(part)  # adds to the gradients, and frees this batch's activations
        mean += part.detach()
    accelerator.clip_grad_norm_(network.parameters(), clip_norm)
    scaler = accelerator.scaler
    scale = scaler.get_scale() if scaler else 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # A skipped step shows in the scale alone: a fused optimiser is called and skips inside, which
    # Accelerate's own step_was_skipped does not see.
    taken = not scaler or scaler.get_scale() >= scale
    return mean, taken


def _loss(
    device: torch.device,
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batch: Mixed,
) -> Tensor:
    images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
    logits = network(images)  # (N, classes, h, w)
    value = loss(logits, batch.masks.to(device, non_blocking=True))
    if batch.other_masks is None:
        return value
    other = loss(logits, batch.other_masks.to(device, non_blocking=True))
    return batch.share * value + (1 - batch.share) * other


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
