"""What is wrong with a data set, said so that people and scripts can use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segapp.errors import DataError, ScanError

_REMEDY = "replace the file with a sound copy, or remove the case"
_IN_A_DATA_SET = {  # where a reader's own words are about predicting
    "slices-missing": "export the whole series, or remove the case",
    "channel-missing": "add these files, or remove the case",
}


@dataclass(frozen=True)
class Finding:
    """One problem of one file or folder.

    kind: a short word that scripts can rely on. message: the cause; remedy: what to do about it,
    where the message does not end with it. sinks: whether `segapp train` refuses the data set.
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
    """What can't be used, as a finding that training refuses."""
    remedy = _IN_A_DATA_SET.get(error.kind) or error.remedy
    if not remedy and "; " not in error.problem:
        remedy = _REMEDY
    return sinking(error.kind, error.path, error.problem, remedy)


def warning_of(path: Path, text: str) -> Finding:
    """What a reader assumed or repaired."""
    return Finding("warning", "reader", path, text, "make sure that this is what you want")


def counted(n: int, what: str) -> str:
    """ "1 error", "2 errors"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def refuse(findings: Iterable[Finding], more: str = "more problems") -> None:
    """Raise DataError for the first finding that sinks a training, counting the others."""
    found = [f for f in findings if f.sinks]
    if found:
        count = f" (and {len(found) - 1} {more})" if len(found) > 1 else ""
        raise DataError(f"{found[0]}{count}")
