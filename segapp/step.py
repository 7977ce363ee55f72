"""One optimiser step, and what it costs in memory."""

from __future__ import annotations

import logging
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from segapp.errors import ConfigError
from segapp.machine import processor_name
from segapp.mix import Mixed
from segapp.together import ALONE, Together

log = logging.getLogger("segapp")

_OF_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # Accelerate reads these too

_NO_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "CUDA error: out of memory")
_NO_MEMORY += ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "std::bad_alloc")


@dataclass(frozen=True)
class Step:
    """What became of an optimiser step.

    loss: the mean over its batches. taken: False where it was left out: a gradient scaler skips a
    step on overflow, and one whose loss or gradient is not finite would ruin the weights. finite:
    False in the latter case. pieces: in how many parts each batch went through the network.
    """

    loss: float
    taken: bool
    finite: bool
    pieces: int


def training_step(
    accelerator: Accelerator,
    network: nn.Module,
    optimizer: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Sequence[Mixed],
    clip_norm: float,
    pieces: int = 1,
    together: Together = ALONE,
) -> Step:
    """One optimiser step on one batch or more, down the gradient of the mean of their losses.

    loss: logits (N, classes, h, w) and masks (N, h, w) → scalar. Of a mixture of two images it is
    taken for both masks and weighed by their shares (Zhang et al. 2018).

    pieces: each batch goes through the network in so many parts, whose gradients add up. Where
    memory does not suffice it is doubled, down to parts of one image, and the batches are tried
    again; the caller keeps what `Step.pieces` says. Normalisation layers and a Dice term then see
    the parts, so the result is that of smaller batches. Raises what the smallest part raises.

    together: processes that take the step with a share of each batch each; the loss is that of the
    whole batch then (see `make_loss`), and the statistics of normalisation layers are the means of
    the shares'. Where memory does not suffice for one of them, that one raises.
    """
    statistics = [buffer.clone() for buffer in network.buffers()]
    largest = max(len(batch.images) for batch in batches)
    value: float | None = None
    while value is None:
        try:
            value = _gradients(accelerator, network, loss, batches, pieces)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or pieces >= largest or together.several:
                raise
        except ValueError as error:  # a layer normalises over one pixel of one image
            if pieces == 1 or "more than 1 value" not in str(error):
                raise
            raise MemoryError from error
        if value is None:  # here, as the error keeps what it caught in memory
            optimizer.zero_grad(set_to_none=True)
            _restore(network, statistics)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            pieces *= 2
            log.warning(
                "out of memory: each batch of %d goes through the network in %d parts from now on",
                largest,
                pieces,
            )
    together.average([b for b in network.buffers() if b.is_floating_point()])
    norm = accelerator.clip_grad_norm_(network.parameters(), clip_norm)
    scaler = accelerator.scaler  # it sees to gradients that overflow, and lowers its scale
    finite = math.isfinite(value) and (scaler is not None or norm is None or bool(norm.isfinite()))
    if not finite:
        _restore(network, statistics)
    scale = scaler.get_scale() if scaler else 0.0
    if finite or scaler:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # A skipped step shows in the scale alone: a fused optimiser is called and skips inside, which
    # Accelerate's own step_was_skipped does not see.
    taken = finite and (not scaler or scaler.get_scale() >= scale)
    if scaler and not taken and scaler.get_scale() < 1:  # no scale is small enough
        finite = False
    return Step(value, taken, finite, pieces)


def _restore(network: nn.Module, statistics: Sequence[Tensor]) -> None:
    for buffer, before in zip(network.buffers(), statistics, strict=True):
        buffer.copy_(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or this machine's memory did not suffice, as torch and NumPy say it."""
    said = any(word in str(error) for word in _NO_MEMORY)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or said


def _gradients(
    accelerator: Accelerator,
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Sequence[Mixed],
    pieces: int,
) -> float:
    """Add the gradient of the mean loss of the batches, each in `pieces` parts; the mean."""
    mean = torch.zeros((), device=accelerator.device)
    parts = [(part, batch) for batch in batches for part in _parts(batch, pieces)]
    for part, batch in parts:
        # several processes exchange gradients once, with the last part's
        last = nullcontext() if part is parts[-1][0] else accelerator.no_sync(network)
        with last:
            share = len(part.images) / len(batch.images) / len(batches)
            value = share * _loss(accelerator.device, network, loss, part)
            # adds to the gradients, and frees the activations; processes' gradients are averaged
            accelerator.backward(value * accelerator.num_processes)
            mean = mean + value.detach()
    return mean.item()


def _parts(batch: Mixed, pieces: int) -> list[Mixed]:
    if pieces == 1:
        return [batch]
    others = batch.other_masks
    cut = [None] * pieces if others is None else others.chunk(pieces)
    # chunks may be fewer than asked for
    parts = zip(batch.images.chunk(pieces), batch.masks.chunk(pieces), cut, strict=False)
    return [Mixed(images, masks, other, batch.share) for images, masks, other in parts]


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


def make_accelerator(
    precision: str, device: torch.device, together: Together = ALONE
) -> Accelerator:
    """An Accelerator for this process, or for those of `together`. Raises ConfigError where the
    environment has Accelerate count others."""
    for name in ("WORLD_SIZE", *_OF_MPI):
        if os.environ.get(name, "1") not in ("", "1", str(together.ranks.count)):
            raise ConfigError(
                f"{name} is {os.environ[name]}, but {together.ranks.count} process(es) train "
                "together; unset it, or start them by torchrun or accelerate launch"
            )
    AcceleratorState._reset_state(True)  # runs of one process may differ in precision
    # not every architecture uses all its weights; buffers are averaged by each step
    shared = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[shared],
    )


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it torch takes, where `wanted`, only kernels that give the same bits each time; one
    that has none raises RuntimeError. On a CPU all are so, for a number of threads."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def machine_facts(device: torch.device) -> dict[str, str | int]:
    """What else than settings, data and versions the bits of a result depend on."""
    facts: dict[str, str | int] = {
        "processor": processor_name(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return facts


def peak_memory_mb() -> float:
    """Most memory in use so far: the GPU's where there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
