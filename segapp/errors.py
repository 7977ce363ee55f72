"""The errors a user can meet. Each names the file or the key, what came, and what to do.

SegappError
├── ConfigError      a setting, an option or a combination of them is not usable
├── DataError        a data set can't be trained or evaluated on
│   └── ScanError    one file is at fault, mostly one that can't be read (.path, .kind)
├── ModelFileError   a model file is missing, damaged or of another version
├── OutputError      something can't be written where the user asked for it
├── TrainingError    training can't go on (a loss that is not finite)
├── ProcessLost      another process of a job that several share is gone
└── Interrupted      the user stopped a run; what was done is saved
"""

from __future__ import annotations

from pathlib import Path


class SegappError(Exception):
    """Base of every error with a message made for the user; the command exits with `exit_code`."""

    exit_code = 2


class ConfigError(SegappError):
    pass


class DataError(SegappError):
    pass


class ScanError(DataError):
    """One file or folder is at fault. `path` is that one; the message starts with it.

    kind: a short word for scripts, as `segapp check` lists it. remedy: what to do, where `problem`
    does not end with it.
    """

    def __init__(self, path: Path | str, problem: str, kind: str = "unreadable", remedy: str = ""):
        self.path = Path(path)
        self.problem = problem
        self.kind = kind
        self.remedy = remedy
        super().__init__(f"{path}: {self.reason}")

    @property
    def reason(self) -> str:
        """The message without the path."""
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class ModelFileError(SegappError):
    pass


class OutputError(SegappError):
    pass


class TrainingError(SegappError):
    pass


class ProcessLost(SegappError):
    pass


class Interrupted(SegappError):
    exit_code = 130
