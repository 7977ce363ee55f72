"""Processes that train or measure one thing together, over torch.distributed."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from segapp.ahead import processors
from segapp.errors import ConfigError, ProcessLost
from segapp.ranks import Ranks, this_process

log = logging.getLogger("segapp")

# Nobody waits longer for the others: rank 0 may prepare slices, or judge the finished model, alone.
_PATIENCE = timedelta(hours=12)
_LOST = ("Connection closed by peer", "Connection reset", "gloo", "Broken pipe", "TCPStore")
_LOST += ("ncclRemoteError", "remote process exited", "imed out", "imeout")
T = TypeVar("T")


@dataclass(frozen=True)
class Together:
    """The processes of a training or an evaluation. Each method is called by all of them, in the
    same order, and costs one process nothing. Raises ProcessLost where another one is gone."""

    ranks: Ranks

    @property
    def several(self) -> bool:
        return self.ranks.count > 1

    @property
    def first(self) -> bool:
        return self.ranks.first

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every `count`-th item; the shares of all processes hold each item once."""
        return items[self.ranks.rank :: self.ranks.count]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes. Its slope is that of this process's own part, so that the slopes
        of all processes add up to the slope of what is computed from the sum."""
        return _Sum.apply(values) if self.several else values  # type: ignore[return-value]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over the processes into floating point tensors of one type."""
        if not self.several or not tensors:
            return
        flat = torch.cat([t.detach().flatten() for t in tensors])
        with _others_needed():
            dist.all_reduce(flat)
        parts = (flat / self.ranks.count).split([t.numel() for t in tensors])
        for tensor, mean in zip(tensors, parts, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def of_first(self, *numbers: float) -> tuple[float, ...]:
        """What rank 0 gives, for what depends on clocks."""
        return self._exchange(numbers if self.first else [0.0] * len(numbers), numbers)

    def most(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set in any process."""
        return tuple(n > 0 for n in self._exchange([float(f) for f in flags], flags))

    def _exchange(self, own: Sequence[float], alone: Sequence[Any]) -> tuple[Any, ...]:
        if not self.several:
            return tuple(alone)
        values = torch.tensor(own, dtype=torch.float64)
        with _others_needed():
            dist.all_reduce(values)
        return tuple(values.tolist())

    def texts(self, own: str) -> list[str]:
        """The text of each process, in their order."""
        if not self.several:
            return [own]
        encoded = bytearray(own.encode("utf-8", "surrogateescape") or b"\0")
        data = torch.frombuffer(encoded, dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.ranks.count)]
        with _others_needed():
            dist.all_gather(sizes, torch.tensor([len(data) if own else 0]))
            longest = max(1, *(int(size) for size in sizes))
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(data)] = data
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
            dist.all_gather(parts, padded)
        texts = (p[: int(n)].numpy().tobytes() for p, n in zip(parts, sizes, strict=True))
        return [text.decode("utf-8", "surrogateescape") for text in texts]

    def require_same(self, what: str, own: str) -> None:
        """Raise ConfigError where the processes differ in a text about `what`."""
        digests = self.texts(hashlib.sha256(own.encode("utf-8", "surrogateescape")).hexdigest())
        unlike = [n for n, digest in enumerate(digests) if digest != digests[0]]
        if unlike:
            raise ConfigError(
                f"{what} of process {unlike[0]} differs from that of process 0; all processes need "
                "the same command, data, files and versions"
            )

    def own_chance(self, *seed: int) -> None:
        """From here on dropout draws what only this process draws, the same for equal seeds."""
        if self.several:
            drawn = np.random.SeedSequence((*seed, self.ranks.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(drawn[0]))

    def wait(self) -> None:
        """Until all processes are here."""
        self.most(False)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone()
        with _others_needed():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        return slopes


ALONE = Together(Ranks())


@contextmanager
def joined() -> Iterator[Together]:
    """Meet the other processes that a launcher started; alone without one.

    Raises ConfigError where the launcher doesn't say where to meet, or which GPU is whose, and
    ProcessLost where the others don't come.
    """
    ranks = this_process()
    if ranks.count == 1:
        yield ALONE
        return
    gpu = torch.cuda.is_available()
    needed = ("MASTER_ADDR", "MASTER_PORT", *(("LOCAL_RANK",) if gpu else ()))
    if missing := [name for name in needed if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {ranks.count}, but {', '.join(missing)} is not set; start the "
            "processes by torchrun or accelerate launch"
        )
    if gpu:
        there = torch.cuda.device_count()
        if ranks.local >= there:
            raise ConfigError(
                f"LOCAL_RANK is {ranks.local}, but this machine has {there} GPU(s); start one "
                "process for each"
            )
        torch.cuda.set_device(ranks.local)
    else:  # launchers give each process one thread where they know nothing better
        torch.set_num_threads(processors())
        os.environ.setdefault("OMP_NUM_THREADS", str(processors()))  # else Accelerate takes all
    with _others_needed():
        # a launcher's store outlives a restart, and still has the addresses of those that are gone
        store, _, _ = next(rendezvous("env://", timeout=_PATIENCE))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=PrefixStore(f"start {_restarts()}", store),
            rank=ranks.rank,
            world_size=ranks.count,
            timeout=_PATIENCE,
        )
    together = Together(ranks)
    if not together.first:
        log.setLevel(logging.WARNING)
    yield together
    together.wait()  # who leaves early takes the meeting place along
    dist.destroy_process_group()  # not after an error: it would wait for those that are gone


def is_lost(error: BaseException) -> bool:
    """Whether torch means that another process is gone or can't be reached."""
    said = str(error)
    return any(word in said for word in _LOST)


@contextmanager
def _others_needed() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not is_lost(error):
            raise
        raise lost(error) from error


def lost(error: BaseException) -> ProcessLost:
    """For the user: what it means."""
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ProcessLost(
        f"another process of this job ended or can't be reached ({first}); its own message says "
        "why. A launcher that restarts processes goes on from the last saved state; else: segapp "
        "train --resume RUN, with the same launcher"
    )


def restarted() -> bool:
    """Whether torchrun started this process anew after one of the job had failed."""
    return _restarts() != "0"


def _restarts() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"


def launch_name() -> str:
    """What this launch is called, the same after its restarts and never again: the launcher that
    started this process. (Users may give one name to several launches.)"""
    import psutil

    parent = psutil.Process(os.getppid())
    return f"{os.uname().nodename}-{parent.pid}-{parent.create_time():.0f}"
