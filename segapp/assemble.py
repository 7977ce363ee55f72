"""From a plan to the parts of a run: the slices, the network and its starting weights, batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segapp.ahead import processors
from segapp.augment import Augmentation
from segapp.checkpoint import Architecture, Pruned, model_path, read_info, read_weights
from segapp.contradictions import refuse_contradictions
from segapp.data import Samples, SliceCache, make_batches, pass_length, scaled_patch
from segapp.decide import steps_of_epoch
from segapp.engines.torch import choose_device, choose_precision
from segapp.errors import ConfigError
from segapp.files import sha256
from segapp.model import build_network, narrow, regularise
from segapp.plan import Plan
from segapp.progress import track
from segapp.scan import as_called_now
from segapp.settings import Settings
from segapp.together import ALONE, Together
from segapp.weights import hold_zeros, load_encoder_weights, transfer

log = logging.getLogger("segapp")


@dataclass(frozen=True)
class Parts:
    """What a run works with. starting_weights: what the model file says of their origin."""

    plan: Plan
    cache: SliceCache
    architecture: Architecture
    network: nn.Module
    starting_weights: str
    device: torch.device
    pruned: Pruned | None = None  # as the network of model.init_from is
    together: Together = ALONE  # the processes that train it


def assemble(
    plan: Plan, folder: Path, load_weights: bool = True, together: Together = ALONE
) -> Parts:
    """Prepare the training slices in `folder`, build the network, decide what `auto` is left.

    load_weights: False where a saved state will replace them; of the origin there is only said then
    which model.init_from it is. Of several processes the first prepares the slices, for all.
    Raises ConfigError for settings that
    this machine or the network can't follow, ScanError, OSError where the disk is full.
    """
    s = plan.settings
    _refuse_unequal_shares(s, together.ranks.count)
    device = choose_device("auto")
    s.train.precision = choose_precision(s.train.precision, device)
    architecture, network, pruned = _build(plan)
    origin = _load_starting_weights(plan, network, load_weights)
    cache = SliceCache(folder, plan.preprocessing.channels, plan.preprocessing.context)
    if together.first:
        cases = track(plan.dataset.split("train"), "preparing slices")
        cache.fill(cases, plan.preprocessing, plan.classes, plan.ignore, plan.merged)
    together.wait()
    if not together.first:
        cache.open()
    _resolve(plan, cache, device)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if pruned and pruned.what == "weights":
        hold_zeros(network)
    together.require_same("what was decided about training", s.to_yaml())
    return Parts(plan, cache, architecture, network, origin, device, pruned, together)


def _refuse_unequal_shares(s: Settings, count: int) -> None:
    """Raise ConfigError for batches that `count` processes can't share."""
    size, mixed = int(s.optim.batch_size), s.augment.mixup_p or s.augment.cutmix_p
    least = 2 if mixed else 1  # an image is mixed with another one of the same process
    if count > 1 and (size % count or size // count < least):
        larger = -(-max(size, least * count) // count) * count
        raise ConfigError(
            f"optim.batch_size is {size}, which {count} processes can't share equally"
            f"{' with two images or more each, as mixing needs' if mixed else ''}; set it to "
            f"{larger}"
        )


def _build(plan: Plan) -> tuple[Architecture, nn.Module, Pruned | None]:
    """The network that the settings name, its weights drawn with the run's seed; as narrow as that
    of model.init_from, and how that was pruned."""
    s = plan.settings
    torch.manual_seed(s.train.seed)
    architecture = Architecture(
        name=s.model.architecture,
        encoder=s.model.encoder,
        in_channels=plan.preprocessing.inputs,
        classes=len(plan.classes),
        residual=bool(s.model.residual),
        separable=s.model.separable,
        full_resolution=bool(s.model.full_resolution),
        encoder_depth=int(s.model.encoder_depth),
    )
    network = build_network(**architecture.model_dump())
    start = s.model.init_from
    pruned = read_info(start).pruned if start else None
    if start and pruned:
        narrow(network, read_weights(start), architecture.in_channels)
    regularise(network, s.model.dropout, s.model.stochastic_depth)
    return architecture, network, pruned


def _load_starting_weights(plan: Plan, network: nn.Module, load_weights: bool) -> str:
    model, inputs = plan.settings.model, plan.preprocessing.inputs
    origin = f"segapp model sha256:{_digest(model.init_from)}" if model.init_from else ""
    if not load_weights:
        return origin
    if model.init_from:
        theirs, names = read_info(model.init_from).classes, [c.name for c in plan.classes]
        old = as_called_now(theirs, plan.classes)
        kept = transfer(network, read_weights(model.init_from), old, names, inputs)
        log.info("weights: those of %s; classes it knows: %s", model.init_from, ", ".join(kept))
        return origin
    origin = load_encoder_weights(network, model.encoder, inputs, model.encoder_weights)
    log.info("encoder weights: %s", origin)
    if model.encoder_weights == "auto":
        model.encoder_weights = "imagenet" if origin.startswith("imagenet") else "none"
        refuse_contradictions(plan.settings)  # sparing pretrained weights that aren't there
    return origin


def _digest(model: Path) -> str:
    return sha256(model_path(model))[:16]


def _resolve(plan: Plan, cache: SliceCache, device: torch.device) -> None:
    """Decide what depends on the machine and on the number of slices."""
    s = plan.settings
    if s.data.workers == "auto":
        # On a CPU the step needs every core, and a sample costs less than a hundredth of it.
        s.data.workers = 0 if device.type == "cpu" else min(8, max(1, processors() - 1))
    if s.train.steps_per_epoch == "auto":
        s.train.steps_per_epoch = steps_of_epoch(pass_length(cache.empty), s)
    log.info(
        "training: %d slices, batches of %s, %s steps an epoch, %s on %s",
        *(len(cache), s.optim.batch_size, s.train.steps_per_epoch, s.train.precision, device),
    )


def make_samples(parts: Parts, scale: float = 1.0) -> Samples:
    """The augmented training samples, with slices and patches at `scale` of their size."""
    plan, cache = parts.plan, parts.cache
    s, prep = plan.settings, plan.preprocessing
    if s.optim.patch == "full":  # one size for all, so that slices fit into a batch
        largest = np.round(np.max(cache.sizes, axis=0) * scale).astype(int)
        strides = np.maximum(-(-largest // prep.stride), 2)  # see network_input
        patch = (int(strides[0]) * prep.stride, int(strides[1]) * prep.stride)
    else:
        side = scaled_patch(int(s.optim.patch), scale)
        patch = (side, side)
    colour = prep.channels == 3 and prep.channel_files == 1
    augment = Augmentation(s.augment, prep.inputs, patch, rgb=colour)
    return Samples(cache, augment, s.train.seed, scale)


Batches = Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def batches_at(parts: Parts, scale: float, step: int) -> Batches:
    """Batches without end, from that of optimiser step `step` on, at `scale`."""
    s = parts.plan.settings
    samples = make_samples(parts, scale)
    first = step * s.optim.accumulate
    return make_batches(
        *(samples, int(s.optim.batch_size), int(s.data.workers), first, parts.together.ranks)
    )
