"""What is wrong with a data set, said so that people and scripts can use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segapp.errors import DataError, ScanError

# What to do about a kind of problem whose message does not say so itself.
_REMEDIES = {
    "unreadable": "replace the file with a sound copy, or remove the case",
    "size-differs": "resample or export the mask again on its image's grid",
    "affine-differs": "resample the mask on its image's grid",
    "spacing-differs": "resample the mask on its image's grid",
    "orientation-differs": "save the mask in its image's orientation",
    "mask-colours": "save it as a grey or palette image that holds class numbers",
    "mask-jpeg": "save masks as PNG, from the original labels",
    "mask-not-integer": "save class numbers; resample masks by nearest neighbour",
    "not-finite": "replace these voxels by what they should be, e.g. 0",
    "reader": "make sure that this is what you want",
}


@dataclass(frozen=True)
class Finding:
    """One problem of one file or folder.

    kind: a short word that scripts can rely on. message: the cause; remedy: what to do about it.
    sinks: whether `segapp train` refuses the data set for it.
    """

    level: Literal["error", "warning"]
    kind: str
    path: Path
    message: str
    remedy: str = ""
    sinks: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")


def sinking(kind: str, path: Path, message: str, remedy: str = "") -> Finding:
    """An error that training refuses."""
    return Finding("error", kind, path, message, remedy, sinks=True)


def finding_of(error: ScanError) -> Finding:
    """A file that can't be used, as a finding that training refuses."""
    message, _, remedy = error.problem.partition("; ")
    return sinking(error.kind, error.path, message, remedy or _REMEDIES.get(error.kind, ""))


def warning_of(path: Path, text: str) -> Finding:
    """What a reader assumed or repaired."""
    message, _, remedy = text.partition("; ")
    return Finding("warning", "reader", path, message, remedy or _REMEDIES["reader"])


def refuse(findings: Iterable[Finding], more: str = "more problems") -> None:
    """Raise DataError for the first finding that sinks a training, counting the others."""
    found: Sequence[Finding] = [f for f in findings if f.sinks]
    if found:
        count = f" (and {len(found) - 1} {more})" if len(found) > 1 else ""
        raise DataError(f"{found[0]}{count}")
