"""The errors a user can meet. Each names the file or the key, what came, and what to do.

SegappError
├── ConfigError      a setting, an option or a combination of them is not usable
├── DataError        a data set can't be trained or evaluated on
│   └── ScanError    one file can't be read as a scan or a mask (has .path)
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
    """One file is at fault. `path` is that file; the message starts with it."""

    def __init__(self, path: Path | str, problem: str):
        self.path = Path(path)
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class ModelFileError(SegappError):
    pass


class OutputError(SegappError):
    pass


class TrainingError(SegappError):
    pass


class Interrupted(SegappError):
    exit_code = 130
