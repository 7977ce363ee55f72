"""What a data set's own files say about it: dataset.json, classes.txt."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from segapp.errors import ScanError
from segapp.modality import of_channels

Names = dict[str, int | None]  # class name → mask value, None where only names are declared
_KIND = "classes"
_LABELS = 'labels should be like {"background": 0, "lesion": 1}'


def dataset_json(folder: Path, root: Path) -> tuple[Path, dict[str, Any]]:
    """The dataset.json of a folder, of its data set or of its train/, and what it holds ({} where
    there is none). Raises ScanError."""
    places = [place / "dataset.json" for place in (folder, root, root / "train")]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return places[0], {}
    try:
        info = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        problem = f"not readable as JSON ({' '.join(str(error).split())[:80]})"
        raise ScanError(path, problem, "dataset-json", "correct it in an editor") from None
    if not isinstance(info, dict):
        remedy = 'it should be like {"labels": {"background": 0, "lesion": 1}}'
        raise ScanError(path, "holds no JSON object", "dataset-json", remedy)
    return path, info


def channel_count(path: Path, info: dict[str, Any]) -> int:
    """The number of channels that dataset.json lists, 1 where it lists none. Raises ScanError."""
    return len(_channels(path, info)) or 1


def declared_modality(root: Path) -> str:
    """What took the scans, by what dataset.json calls their channels: "MR" of "T1", "" of what is
    not known. Raises ScanError."""
    return of_channels(_channels(*dataset_json(root, root)))


def _channels(path: Path, info: dict[str, Any]) -> list[Any]:
    channels = info.get("channel_names") or info.get("modality") or []
    if not isinstance(channels, dict | list):
        problem = 'channel_names should be like {"0": "CT"}'
        raise ScanError(path, problem, "dataset-json", "list every channel by its number")
    return list(channels.values() if isinstance(channels, dict) else channels)


def declared_classes(root: Path) -> tuple[Names | None, int | None, Path]:
    """The classes that dataset.json, else classes.txt declares, the mask value to ignore (None
    where nothing is declared), and the file that says so (else the root). Raises ScanError."""
    path, info = dataset_json(root, root)
    names, ignore = _labels(path, info.get("labels"))
    if names is not None:
        return names, ignore, path
    path = root / "classes.txt"
    return (_classes_txt(path), None, path) if path.is_file() else (None, None, root)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ScanError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        remedy = "save it as UTF-8 (in Excel: CSV UTF-8)"
        raise ScanError(path, "is no UTF-8 text", remedy=remedy) from None
    except OSError as error:
        raise ScanError(path, f"can't be read ({error.strerror})") from error


def _labels(path: Path, labels: Any) -> tuple[Names | None, int | None]:
    if not labels:
        return None, None
    try:
        by_value = all(str(key).lstrip("-").isdigit() for key in labels)
        pairs = [(str(n), v) for v, n in labels.items()] if by_value else list(labels.items())
        regions = [name for name, value in pairs if isinstance(value, list)]
        if regions:
            problem = f"region-based labels ({regions[0]}) are not supported"
            raise ScanError(path, problem, _KIND, "give each class one mask value")
        named = _unique(path, [(name, _whole(value)) for name, value in pairs])
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ScanError(path, _LABELS, _KIND, "a name and a whole number for each") from error
    return named, None if by_value else named.pop("ignore", None)  # MSD: {"0": "background"}


def _whole(value: Any) -> int:
    if isinstance(value, float) and value != int(value):
        raise ValueError("no whole number")
    return int(value)


def _classes_txt(path: Path) -> Names:
    """One class a line: a name, or a mask value and a name ("255 lesion")."""
    lines = read_text(path).splitlines()
    found = [re.fullmatch(r"\s*(?:(\d{1,9})[\s:,]+)?(\S.*?)\s*", line) for line in lines]
    names = _unique(path, [(m[2], int(m[1]) if m[1] else None) for m in found if m])
    if len({value is None for value in names.values()}) > 1:
        problem = "either every line starts with its mask value, or none does"
        raise ScanError(path, problem, _KIND, 'write lines like "0 background"')
    return names


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> Names:
    names = dict(pairs)
    if len(names) < len(pairs):
        taken = [name for name, _ in pairs]
        twice = next(name for name in taken if taken.count(name) > 1)
        raise ScanError(path, f"names {twice!r} twice", _KIND, "give each class its own name")
    return names
