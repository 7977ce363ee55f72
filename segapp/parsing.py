"""What people write for the value of a setting, and what is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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


def at_home(path: Path) -> Path:
    """~/a and ~name/a as a shell has them, which leaves them as they are in KEY=VALUE words."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("no such user's home is known; write the whole path") from None


def ends_at_one(scales: list[float]) -> list[float]:
    """The scales. Raises ValueError unless they rise and end with 1."""
    if scales[-1] != 1 or sorted(set(scales)) != scales:
        raise ValueError("expected rising scales that end with 1, e.g. 0.5,0.75,1")
    return scales
