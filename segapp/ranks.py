"""Which of several processes of one job this is, as their launcher tells it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from segapp.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process (rank, 0…count-1) among the `count` of a job; `local` of `local_count` on its
    machine. Rank 0 speaks for all: it prints, and writes what there is one of."""

    rank: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def takes(self, name: str) -> bool:
        """Whether the work called `name` is this process's. That depends on the name and on how
        many processes there are alone, never on what other work there is; the shares are equal on
        average."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.rank


def this_process() -> Ranks:
    """From the variables that torchrun and accelerate set, and that a job script can: RANK and
    WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE on one machine. One process without them.

    Slurm's own are not read: they are also set where a script starts a single process. Raises
    ConfigError for values that make no sense.
    """
    count, local_count = _number("WORLD_SIZE", 1), _number("LOCAL_WORLD_SIZE", 1)
    if "WORLD_SIZE" in os.environ and "RANK" not in os.environ and count > 1:
        raise ConfigError(f"WORLD_SIZE is {count}, but RANK is not set; set both, or neither")
    rank, local = _number("RANK", 0), _number("LOCAL_RANK", 0)
    if not 0 <= rank < count:
        raise ConfigError(f"RANK is {rank}, WORLD_SIZE {count}; ranks go from 0 to WORLD_SIZE - 1")
    return Ranks(rank, count, local, max(1, local_count))


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    try:
        return int(value) if value else default
    except ValueError as error:
        raise ConfigError(f"{name} is {value!r}, expected a whole number") from error


def refuse_several(what: str) -> None:
    """Raise ConfigError where a launcher started several processes for `what`, which is the work
    of one."""
    if this_process().count > 1:
        raise ConfigError(
            f"segapp {what} works in one process, but a launcher started {this_process().count} "
            "(WORLD_SIZE); start it alone. train, evaluate and predict share their work"
        )


def spoken_by() -> str:
    """What begins each line on the screen: "rank 3: " of one of several, "" of rank 0."""
    try:
        ranks = this_process()
    except ConfigError:  # of which the command itself complains
        return ""
    return "" if ranks.first else f"rank {ranks.rank}: "
