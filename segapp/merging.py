"""The parts of a shared batch → one predictions.csv."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from segapp.errors import OutputError
from segapp.files import atomic_path
from segapp.rows import whole_rows
from segapp.shares import Listed

_WINDOW = 20_000  # lines in memory at once


def merge_parts(listed: Listed, count: int, header: str, table: Path) -> Counter[str]:
    """Write the lines of all `count` parts to `table`, in the order of the list, below `header`;
    the number of scans by status. It takes 16 bytes of memory a scan. Raises OutputError where one
    has no line.
    """
    places = _Places(listed, count)
    with atomic_path(table) as temporary, temporary.open("wb") as file:
        file.write(header.encode("utf-8", "surrogateescape"))
        for start in range(0, listed.total, _WINDOW):
            file.writelines(places.lines(range(start, min(start + _WINDOW, listed.total))))
    return Counter(places.statuses[n] for n in places.status)


class _Places:
    """Where the line of each scan is: in which part, at which byte, how long."""

    def __init__(self, listed: Listed, count: int):
        self.listed, self.statuses = listed, list[str]()
        self.part = array("l", [-1]) * listed.total
        self.at, self.size = array("q", [0]) * listed.total, array("l", [0]) * listed.total
        self.status = bytearray(listed.total)
        try:
            for rank in range(count):
                self._find(rank)
        except OSError as error:
            raise OutputError(f"{listed.folder}: a part can't be read ({error})") from error
        if -1 in self.part:
            raise OutputError(
                f"{listed.folder}: scan {self.part.index(-1) + 1} of {listed.total} has no line; "
                "start the same command again on all ranks"
            )

    def _find(self, rank: int) -> None:
        for at, size, (number, status, *_) in whole_rows(self.listed.part(rank)):
            if not at:
                continue  # its header
            n = int(number)
            self.part[n], self.at[n], self.size[n] = rank, at, size
            if status not in self.statuses:
                self.statuses.append(status)
            self.status[n] = self.statuses.index(status)

    def lines(self, numbers: range) -> Iterator[bytes]:
        """Their lines as they were written, without the columns that a part alone has."""
        found: dict[int, bytes] = {}
        for rank, own in groupby(sorted(numbers, key=self.part.__getitem__), self.part.__getitem__):
            with self.listed.part(rank).open("rb") as file:
                for n in own:
                    file.seek(self.at[n])
                    found[n] = file.read(self.size[n]).split(b",", 2)[2]
        return map(found.__getitem__, numbers)
