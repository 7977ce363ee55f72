"""Where the results of a batch go: a name for each scan's output that is nobody else's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from segapp.cases import files_hash
from segapp.earlier import is_there
from segapp.errors import ScanError
from segapp.formats import Entry, Format, output_suffix, stem
from segapp.outcomes import reason_of


@dataclass(frozen=True)
class Job:
    """An entry, and where its results go; or the reason why there is nothing to do.

    number: its place in the list.
    """

    number: int
    entry: Entry
    output: Path = Path()
    picture: Path | None = None
    clashes: tuple[str, ...] = ()
    reason: str = ""


def name_jobs(
    entries: Sequence[Entry],
    out: Path,
    earlier: Mapping[str, Mapping[str, str]],
    *,
    output_format: Format = "same",
    overlay: bool = False,
    kept: bool = False,
) -> Iterator[Job]:
    """A job for each entry, named in their order, whichever is segmented first.

    Never over an input or the result of another scan: a clash of names gets a numbered suffix and a
    warning. earlier: lines of an earlier batch, by output; with `kept` their results stay.
    """
    resolve = resolver()
    taken = {resolve(path) for entry in entries for path in entry.paths}
    names = _Names(out, taken, earlier, kept, resolve)
    for number, entry in enumerate(entries):
        try:
            suffix = output_suffix(entry.paths[0], output_format)
            output, clashes = names.take(entry.name, suffix, entry)
            picture = None
            if overlay:
                name = output.relative_to(out).with_name(f"{stem(output)}_overlay").as_posix()
                picture, more = names.take(name, ".png", entry)
                clashes += more
            yield Job(number, entry, output, picture, clashes)
        except Exception as error:  # of this entry alone
            yield Job(number, entry, reason=reason_of(error))


def resolver() -> Callable[[str | Path], str]:
    """os.path.realpath that asks for each folder once, for as long as no folder becomes another:
    it looks at each part of a path, a million times at those that all have."""
    folder = lru_cache(maxsize=10_000)(os.path.realpath)

    def resolve(path: str | Path) -> str:
        place, name = os.path.split(path)
        found = os.path.join(folder(place or "."), name)  # noqa: PTH118
        if name in ("", ".", "..") or os.path.islink(found):  # noqa: PTH114
            return os.path.realpath(path)
        return found

    return resolve


class _Names:
    """Which names below `out` are free.

    taken: resolved paths of all inputs, and of what has been written for them. earlier: output →
    its line in an earlier predictions.csv: their names are another scan's, as long as that is
    there, and with `kept`, where these results stay, also after; but a scan that was moved, or
    is named from another working directory, is known by its checksum. Where inputs lie below
    `out`, files that no table knows are somebody's too. Paths are strings here, which take a
    quarter of the memory.
    """

    def __init__(
        self,
        out: Path,
        taken: set[str],
        earlier: Mapping[str, Mapping[str, str]],
        kept: bool,
        resolve: Callable[[str | Path], str],
    ):
        self.out, self.taken, self.earlier, self.kept = out, taken, earlier, kept
        self.resolve, below = resolve, f"{out.resolve()}{os.sep}"
        self.shared = any(path.startswith(below) for path in taken)

    def take(self, name: str, suffix: str, entry: Entry) -> tuple[Path, tuple[str, ...]]:
        """A free path for a result of `entry`, which is then taken, and a warning if it is not
        the first choice."""
        first = candidate = self.out / f"{name}{suffix}"
        number = 1
        while not self._is_free(resolved := self.resolve(candidate), entry):
            number += 1
            candidate = self.out / f"{name}_{number}{suffix}"
        self.taken.add(resolved)
        if candidate == first:
            return first, ()
        return candidate, (f"{first.name} is taken; written as {candidate.name}",)

    def _is_free(self, path: str, entry: Entry) -> bool:
        row = self.earlier.get(path)
        if path in self.taken or (row and self._is_of_another(row, entry)):
            return False
        listed = self.kept or row is not None
        listed = listed or path.endswith("_overlay.png")  # pictures are in no table
        return listed or not (self.shared and Path(path).exists())

    def _is_of_another(self, row: Mapping[str, str], entry: Entry) -> bool:
        owner = self.resolve(row["file"])
        if owner == self.resolve(entry.source):
            return False
        if is_there(owner) or not self.kept:
            return is_there(owner)
        try:
            return files_hash(entry.paths) != row.get("scan_sha256")
        except (ScanError, ValueError):  # reading it will say what is wrong
            return True


def line_of(job: Job) -> bytes:
    """A job as a line of JSON, whatever bytes its names are made of; see `job_of`."""
    entry = job.entry
    said = {
        "name": entry.name,
        "paths": [str(path) for path in entry.paths],
        "folder": entry.folder and str(entry.folder),
        "doubts": entry.doubts,
        "output": str(job.output),
        "picture": job.picture and str(job.picture),
        "clashes": job.clashes,
        "reason": job.reason,
    }
    return (json.dumps({k: v for k, v in said.items() if v}) + "\n").encode()


def job_of(number: int, line: bytes) -> Job:
    """The job that `line_of` wrote. Raises ValueError where the line is damaged."""
    said = json.loads(line)
    folder, picture = said.get("folder"), said.get("picture")
    entry = Entry(
        said.get("name", ""),
        tuple(map(Path, said.get("paths", ()))),
        Path(folder) if folder else None,
        tuple(said.get("doubts", ())),
    )
    output, picture = Path(said.get("output", "")), Path(picture) if picture else None
    clashes, reason = tuple(said.get("clashes", ())), said.get("reason", "")
    return Job(number, entry, output, picture, clashes, reason)
