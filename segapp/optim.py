"""The optimiser and the one-cycle learning rate, driven by how much of the run is done."""

from __future__ import annotations

import math

import torch
from torch import nn

WARM_UP = 0.3  # share of the run in which the rate rises
_START_DIVISOR, _END_DIVISOR = 25.0, 25.0 * 1e4


def make_optimizer(network: nn.Module, max_lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; normalisation layers and biases are not decayed (Loshchilov & Hutter 2019)."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=max_lr / _START_DIVISOR, fused=True)


def one_cycle(done: float, max_lr: float) -> float:
    """The learning rate when the share `done` (0…1) of the run is done.

    A cosine from max_lr / 25 up to max_lr over the first 30 %, then down to max_lr / 250,000:
    Smith & Topin 2018, with the defaults of torch.optim.lr_scheduler.OneCycleLR. A function of the
    share, because a budget in minutes knows its number of steps only when it is spent.
    """
    if done < WARM_UP:
        return _cosine(max_lr / _START_DIVISOR, max_lr, done / WARM_UP)
    return _cosine(max_lr, max_lr / _END_DIVISOR, min(1.0, (done - WARM_UP) / (1 - WARM_UP)))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class OneCycle:
    """Sets the rate of an optimiser; `advance` once per step that the optimiser really took.

    A step that a gradient scaler skips (fp16 overflow) must not move the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_lr: float, done: float = 0.0):
        self.optimizer, self.max_lr, self.done = optimizer, max_lr, done
        self._apply()

    def advance(self, steps_left: float) -> None:
        """One step taken, about `steps_left` (this one included) were left: done moves its share.

        With an exact count this is linear in the steps; with an estimate it always ends at 1.
        """
        self.done = min(1.0, self.done + (1 - self.done) / max(1.0, steps_left))
        self._apply()

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = one_cycle(self.done, self.max_lr)
