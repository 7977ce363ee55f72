"""A batch that several processes share through its folder alone, without a network between them.

OUT/.shares/ holds, while such a batch goes on or after it was stopped:

    batch.json           what the batch is, the digest of its list, and which rank 0 stands for it
    rank-3.alive         a sign of life, written again every few seconds
    at-work              a lock that those at work hold together
    DIGEST/jobs.jsonl    the list: a line for each scan, with the names of its results
    DIGEST/rank-3.csv    the lines of one process; rank-3.done says that there will be no more
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segapp.errors import OutputError
from segapp.files import atomic_path, write_text
from segapp.locks import is_at_work
from segapp.naming import Job, job_of, line_of
from segapp.ranks import Ranks
from segapp.rows import SHARES

log = logging.getLogger("segapp")

PATIENCE_S = 600.0  # without a sign of life
_BEAT_S = 3.0
_STOPPED = "stopped"  # the last sign of one that ended with an error
LEASE_S = 120.0  # after which a file server ends the locks of a machine that is gone
_GRACE_S = 60.0  # in which processes that were started together have all begun


@dataclass(frozen=True)
class Listed:
    """A list of jobs, and the folder where all that belongs to it is."""

    folder: Path
    total: int

    def part(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.csv"

    def done(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.done"


class Seat:
    """The place of one process in a shared batch. Others know by its token that it is this one."""

    def __init__(self, out: Path, ranks: Ranks, inputs: Iterable[Path]):
        self.folder, self.ranks = out / SHARES, ranks
        self.inputs = [str(path) for path in inputs]
        self.lock = self.folder / "at-work"
        self.engine = ""  # what computes, in words
        self.token, self.began = secrets.token_hex(8), time.monotonic()
        self.first_signs = _read(self._alive(0))
        self._left = threading.Event()
        self._signs = threading.Thread(target=self._beat, daemon=True, name="segapp-alive")

    def _alive(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.alive"

    def _beat(self) -> None:
        beats = 0
        while not self._left.wait(_BEAT_S if beats else 0):
            beats += 1
            with suppress(OSError):  # the next one may succeed; without any, others will say so
                self._alive(self.ranks.rank).write_text(f"{self.token} {beats}")

    def leave(self) -> None:
        """No more signs of life."""
        self._left.set()
        self._signs.join()

    def fail(self) -> None:
        """Who waits for this process need not wait longer."""
        self.leave()
        with suppress(OSError):  # they will notice later
            self._alive(self.ranks.rank).write_text(f"{self.token} {_STOPPED}")

    def take(self) -> None:
        """Give signs of life; what this process has done is not done until it says so again."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if listed := self._current():
                listed[0].done(self.ranks.rank).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: can't be written ({error.strerror})") from error
        self._signs.start()

    def _current(self) -> tuple[Listed, dict[str, Any]] | None:
        """The list and the whole of batch.json; None where there is none that can be read."""
        try:
            batch = json.loads(_read(self.folder / "batch.json"))
            return Listed(self.folder / batch["digest"], batch["total"]), batch
        except (ValueError, KeyError, TypeError):
            return None

    def is_current(self, listed: Listed) -> bool:
        current = self._current()
        return current is not None and current[0] == listed

    def joined(self, header: dict[str, Any]) -> Listed | None:
        """For rank 0: the list by which others of this batch are at work, which stays as it is;
        None where nobody is. Raises OutputError where they are of another batch."""
        if not is_at_work(self.lock):
            return None
        current = self._current()
        if not current or current[1]["header"] != header:
            raise OutputError(
                f"{self.folder.parent}: processes are at work in it on another batch (other scans "
                "or options); wait until they end, or name another --out"
            )
        self._confirm(current[0], header)
        return current[0]

    def publish(self, header: dict[str, Any], jobs: Iterable[Job]) -> Listed:
        """For rank 0: write the list. Parts of an equal one stay, those of others are removed."""
        digest, total = hashlib.sha256(), 0
        new = self.folder / "jobs.jsonl"
        with atomic_path(new) as temporary, temporary.open("wb") as file:
            for job in jobs:
                line = line_of(job)
                digest.update(line)
                file.write(line)
                total += 1
        digest.update(json.dumps(header).encode())
        listed = Listed(self.folder / digest.hexdigest()[:16], total)
        try:
            listed.folder.mkdir(exist_ok=True)
            new.replace(listed.folder / "jobs.jsonl")
        except OSError as error:
            raise OutputError(f"{listed.folder}: can't be written ({error.strerror})") from error
        self._confirm(listed, header)
        for path in self.folder.iterdir():
            if path.is_dir() and path != listed.folder:
                shutil.rmtree(path, ignore_errors=True)
        return listed

    def _confirm(self, listed: Listed, header: dict[str, Any]) -> None:
        said = {"digest": listed.folder.name, "total": listed.total, "by": self.token}
        said["engine"] = self.engine
        write_text(self.folder / "batch.json", json.dumps(said | {"header": header}))

    def await_list(self, header: dict[str, Any]) -> Listed:
        """For the others: the list that a living rank 0 stands for. Raises OutputError where it
        gives no sign of life, or was started with another command."""
        last, since, said = self.first_signs, time.monotonic(), False
        while True:
            signs = _read(self._alive(0)) or last
            if signs != last:
                last, since = signs, time.monotonic()
            current = self._current()
            # what an earlier rank 0 left says nothing: this one may find other scans
            if last != self.first_signs and current and current[1]["by"] == last.split()[0]:
                if current[1]["header"] == header:
                    if current[1]["engine"] != self.engine:
                        log.warning(
                            "computes with %s, rank 0 with %s: results may differ in single voxels",
                            *(self.engine, current[1]["engine"]),
                        )
                    return current[0]
                raise OutputError(_difference(self.folder, current[1]["header"], header))
            if last != self.first_signs and last.endswith(_STOPPED):
                raise OutputError("rank 0 ended with an error, which it told")
            if time.monotonic() - since > PATIENCE_S:
                raise OutputError(
                    f"{self.folder}: rank 0 has given no sign of life for {_minutes()}; start the "
                    "same command on all ranks, with one shared folder"
                )
            if not said and time.monotonic() - since > 2 * _BEAT_S:
                log.info("waiting for rank 0 to list the scans (%s)", self.folder)
                said = True
            time.sleep(0.2)

    def say_done(self, listed: Listed) -> None:
        """This process's share is done. From here on it writes nothing below the folder."""
        self.leave()
        write_text(listed.done(self.ranks.rank), self.token)

    def await_others(self, listed: Listed, before: dict[int, str]) -> None:
        """For rank 0: wait until all others are done. before: what their marks said when the list
        was published; that of one which may have begun anew counts after a while. Raises
        OutputError for one that gives no sign of life."""
        began = time.monotonic()
        waiting: dict[int, tuple[str, float]]
        waiting = dict.fromkeys(range(1, self.ranks.count), ("", began))
        said = -1
        while waiting:
            for rank, (signs, since) in list(waiting.items()):
                mark, now = _read(listed.done(rank)), time.monotonic()
                if mark and (mark != before.get(rank) or now - self.began > _GRACE_S):
                    del waiting[rank]
                    continue
                if (new := _read(self._alive(rank)) or signs) != signs:
                    waiting[rank] = (new, now)
                    if new.endswith(_STOPPED):
                        log.warning("rank %d ended with an error; start it again", rank)
                elif now - since > PATIENCE_S:
                    raise OutputError(
                        f"rank {rank} has given no sign of life for {_minutes()}; the same command "
                        "goes on from what is done, with any number of processes"
                    )
            if waiting and said != len(waiting):
                said = len(waiting)
                names = ", ".join(map(str, list(waiting)[:5])) + (", …" if said > 5 else "")
                log.info("waiting for %d of %d processes: rank %s", said, self.ranks.count, names)
            time.sleep(min(5.0, 0.1 + 0.01 * len(waiting)) if waiting else 0)

    def marks(self, listed: Listed) -> dict[int, str]:
        return {rank: _read(listed.done(rank)) for rank in range(1, self.ranks.count)}


@contextmanager
def take_seat(out: Path, ranks: Ranks, inputs: Iterable[Path]) -> Iterator[Seat | None]:
    """A process's seat in a batch that `ranks.count` processes share, which shows that it lives;
    None where there is but one. inputs: as they were typed, the same for all."""
    if ranks.count == 1:
        yield None
        return
    seat = Seat(out, ranks, inputs)
    seat.take()
    try:
        yield seat
    except Exception:
        seat.fail()
        raise
    finally:
        seat.leave()


def refuse_shared(out: Path) -> None:
    """Raises OutputError where processes of a shared batch are at work in `out`."""
    if is_at_work(out / SHARES / "at-work"):
        raise OutputError(f"{out}: processes that share a batch are at work in it")


def remove_shares(out: Path) -> None:
    """What a shared batch wrote beside its results."""
    for _ in range(3):  # network file systems keep files that somebody has open a moment longer
        shutil.rmtree(out / SHARES, ignore_errors=True)
        if not (out / SHARES).exists():
            return
        time.sleep(0.1)


def read_jobs(listed: Listed, ranks: Ranks) -> list[Job]:
    """The jobs of the list that are this process's share. Raises OutputError."""
    try:
        with (listed.folder / "jobs.jsonl").open("rb") as file:
            jobs = (job_of(number, line) for number, line in enumerate(file))
            return [job for job in jobs if ranks.takes(str(job.entry.source))]
    except (OSError, ValueError) as error:
        raise OutputError(f"{listed.folder / 'jobs.jsonl'}: can't be read ({error})") from error


def _difference(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    key = next(key for key in ours if theirs.get(key) != ours[key])
    said = f"{key}: {theirs.get(key)!r} there, {ours[key]!r} here"
    return f"{folder}: rank 0 was started otherwise ({said}); start the same command on all ranks"


def _minutes() -> str:
    return f"{PATIENCE_S / 60:g} minutes"


def _read(path: Path) -> str:
    """What a small file says; "" where it isn't there, or is being written."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
