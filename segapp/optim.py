"""The optimiser, its learning rate by how much of the run is done, the average of the weights."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segapp.settings import WARM_UP, OptimSettings

_START_DIVISOR, _END_DIVISOR = 25.0, 25.0 * 1e4
_POLY_POWER = 0.9
_BUCKETS = 5  # of an encoder's parameters, each with a rate of its own
_Tensors = tuple[Tensor, ...] | list[Tensor]


def make_optimizer(network: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW; normalisation layers and biases are not decayed (Loshchilov & Hutter 2019).

    Each group carries "lr_scale", its share of the rate. With encoder_lr < 1 it rises with depth
    (discriminative rates, Howard & Ruder 2018): the parameters of `network.encoder`, in their order
    of appearance and in five parts of equal number, get encoder_lr to the power of 1, 0.8, 0.6, 0.4
    and 0.2; all others get 1. Frozen parameters are in the groups too: without a gradient AdamW
    leaves them alone.
    """
    groups = []
    for scale, members in _by_rate(network, settings.encoder_lr):
        decayed = [p for p in members if p.ndim > 1]
        others = [p for p in members if p.ndim <= 1]
        groups += [
            {"params": decayed, "weight_decay": settings.weight_decay, "lr_scale": scale},
            {"params": others, "weight_decay": 0.0, "lr_scale": scale},
        ]
    return torch.optim.AdamW(groups, lr=settings.max_lr / _START_DIVISOR, fused=True)


def _by_rate(network: nn.Module, encoder_lr: float) -> list[tuple[float, list[nn.Parameter]]]:
    """Every parameter once, beside the scale of its learning rate."""
    if encoder_lr == 1:
        return [(1.0, list(network.parameters()))]
    encoder = _by_depth(network.get_submodule("encoder"))
    parts = []
    for i in range(_BUCKETS):
        start, end = (len(encoder) * k // _BUCKETS for k in (i, i + 1))
        parts.append((encoder_lr ** (1 - i / _BUCKETS), encoder[start:end]))
    of_encoder = {id(p) for p in encoder}
    return [*parts, (1.0, [p for p in network.parameters() if id(p) not in of_encoder])]


def _by_depth(encoder: nn.Module) -> list[nn.Parameter]:
    """Its parameters in their order of appearance; by stage first where every module has the
    number of one in its name (MiT lists patch_embed1…4 before block1…4)."""
    named = list(encoder.named_parameters())
    stages = [re.match(r"[a-z_]+(\d)\.", name) for name, _ in named]
    if all(stages):
        order = sorted(range(len(named)), key=lambda n: int(stages[n][1]))  # type: ignore[index]
        named = [named[n] for n in order]
    return [parameter for _, parameter in named]


def rate(done: float, settings: OptimSettings) -> float:
    """The learning rate when the share `done` (0…1) of the run is done.

    Each schedule rises from max_lr / 25 to max_lr over the share `warm_up` of the run; then with
    t from 0 to 1 over the rest:
    onecycle  a cosine, up as well as down, to max_lr / 250,000 (Smith & Topin 2018), with the
              defaults of torch.optim.lr_scheduler.OneCycleLR
    cosine    max_lr · (1 + cos πt) / 2 (Loshchilov & Hutter 2017) after a linear rise
    poly      max_lr · (1 - t)^0.9 (Chen et al. 2018, nnU-Net) after a linear rise
    A function of the share, because a budget in minutes knows its number of steps only when it is
    spent.
    """
    name, top = settings.schedule, settings.max_lr
    rise = WARM_UP[name] if settings.warm_up == "auto" else settings.warm_up
    low = top / _START_DIVISOR
    if done < rise:
        t = done / rise
        return _cosine(low, top, t) if name == "onecycle" else low + (top - low) * t
    t = min(1.0, (done - rise) / (1 - rise))
    if name == "poly":
        return top * (1 - t) ** _POLY_POWER
    return _cosine(top, top / _END_DIVISOR if name == "onecycle" else 0.0, t)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class Schedule:
    """Sets the rates of an optimiser; `advance` once per step that the optimiser really took.

    A step that a gradient scaler skips (fp16 overflow) must not move the schedule.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: OptimSettings, done: float = 0.0
    ):
        self.optimizer, self.settings, self.done = optimizer, settings, done
        self._apply()

    def advance(self, steps_left: float) -> None:
        """One step taken, about `steps_left` (this one included) were left: done moves its share.

        With an exact count this is linear in the steps; with an estimate it always ends at 1.
        """
        self.done = min(1.0, self.done + (1 - self.done) / max(1.0, steps_left))
        self._apply()

    @property
    def lr(self) -> float:
        """The rate of all that has no smaller one of its own."""
        return rate(self.done, self.settings)

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]


class Average(AveragedModel):
    """A running average of a network's weights and BatchNorm statistics (Polyak & Juditsky 1992).

    `module` is the averaged network, with the names and the memory format of the one it copies.
    Make it before Accelerate wraps that one. The first update takes the weights over as they are;
    after t updates the next keeps min(decay, (1 + t) / (10 + t)) of the average, as Tensorflow's
    ExponentialMovingAverage does, so that the start is soon forgotten. Integer buffers are copied.
    """

    def __init__(self, network: nn.Module, decay: float):
        super().__init__(network, multi_avg_fn=self._mix, use_buffers=True)
        self.decay = decay
        self.module.requires_grad_(False)

    def update(self, network: nn.Module) -> None:
        """Take the weights of `network` in; once per step that the optimiser really took."""
        self.update_parameters(network)

    @property
    def updates(self) -> int:
        """How many there were."""
        return int(self.n_averaged)  # on the CPU, so that reading it never waits for a GPU

    def _mix(self, averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        """In place, for tensors of one type."""
        if averaged[0].is_floating_point():
            kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
            get_ema_multi_avg_fn(kept)(averaged, current, count)
        else:
            for mine, given in zip(averaged, current, strict=True):
                mine.copy_(given)
