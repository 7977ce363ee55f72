"""What people write for the value of a setting, and what is meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def at_home(value: Any) -> Any:
    """A path (a word or a Path, or a list of these) with a leading ~ in its place, as not every
    shell puts it there (--out=~/x, data.root=~/x); all else stays as it is."""
    if isinstance(value, list):
        return [at_home(part) for part in value]
    if isinstance(value, str | Path):
        return type(value)(os.path.expanduser(value))  # noqa: PTH111 - ~nobody stays as it is
    return value


def comma_list(value: Any) -> Any:
    """ "a, b" → ["a", "b"]; what is no text stays as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def number_or_names(value: Any) -> Any:
    """YAML reads 1e-1 as a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return comma_list(value)


def numbers(value: Any) -> Any:
    """ "0.5,1" → [0.5, 1.0]; all else stays as it is."""
    if not isinstance(value, str) or "," not in value:
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        return value


def all_different(names: list[str]) -> list[str]:
    """The names. Raises ValueError for one that is there twice."""
    if len(set(names)) < len(names):
        raise ValueError("every class needs a name of its own")
    return names


def ends_at_one(scales: list[float]) -> list[float]:
    """The scales. Raises ValueError unless they rise and end with 1."""
    if scales[-1] != 1 or sorted(set(scales)) != scales:
        raise ValueError("expected rising scales that end with 1, e.g. 0.5,0.75,1")
    return scales
