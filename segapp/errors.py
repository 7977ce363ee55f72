"""The errors a user can meet. Each names the file or the key, what came, and what to do.

SegappError
├── ConfigError      a setting, an option or a combination of them is not usable
├── DataError        a data set can't be trained or evaluated on
│   └── ScanError    one file is at fault, mostly one that can't be read (has .path, .kind)
├── ModelFileError   a model file is missing, damaged or of another version
├── OutputError      something can't be written where the user asked for it
├── TrainingError    training can't go on (a loss that is not finite)
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
    """One file is at fault. `path` is that file; the message starts with it.

    kind: a short word for scripts, as `segapp check` lists it.
    """

    def __init__(self, path: Path | str, problem: str, kind: str = "unreadable"):
        self.path = Path(path)
        self.problem = problem
        self.kind = kind
        super().__init__(f"{path}: {problem}")


class ModelFileError(SegappError):
    pass


class OutputError(SegappError):
    pass


class TrainingError(SegappError):
    pass


class Interrupted(SegappError):
    exit_code = 130
