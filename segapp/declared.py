"""What a data set's own files say about it: dataset.json, classes.txt."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from segapp.errors import ScanError

Names = dict[str, int | None]  # class name → mask value, None where only names are declared
_KIND = "classes"


def dataset_json(folder: Path, root: Path) -> tuple[Path, dict[str, Any]]:
    """The dataset.json of a folder, of its data set or of its train/, and what it holds ({} where
    there is none). Raises ScanError."""
    places = [place / "dataset.json" for place in (folder, root, root / "train")]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return places[0], {}
    try:
        return path, dict(json.loads(read_text(path)))
    except (TypeError, ValueError) as error:
        problem = f"not readable as a JSON object ({error})"
        raise ScanError(path, problem, "dataset-json") from error


def declared_classes(root: Path) -> tuple[Names | None, int | None]:
    """The classes that dataset.json, else classes.txt declares, and the mask value to ignore; None
    where nothing is declared. Raises ScanError."""
    path, info = dataset_json(root, root)
    names, ignore = _labels(path, info)
    if names is None and (root / "classes.txt").is_file():
        names = _classes_txt(root / "classes.txt")
    return names, ignore


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ScanError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(path, f"can't be read as UTF-8 text ({error})") from error


def _labels(path: Path, info: dict[str, Any]) -> tuple[Names | None, int | None]:
    labels = info.get("labels")
    if not labels:
        return None, None
    try:
        if all(str(key).lstrip("-").isdigit() for key in labels):  # MSD: {"0": "background"}
            return {str(name): int(value) for value, name in labels.items()}, None
        regions = [name for name, value in labels.items() if isinstance(value, list)]
        if regions:
            problem = f"region-based labels ({regions[0]}) are not supported"
            raise ScanError(path, problem, _KIND)
        named: Names = {name: int(value) for name, value in labels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ScanError(path, 'labels should be like {"background": 0}', _KIND) from error
    return named, named.pop("ignore", None)


def _classes_txt(path: Path) -> Names:
    """One class a line: a name, or a mask value and a name ("255 lesion")."""
    names: Names = {}
    for line in read_text(path).splitlines():
        if match := re.fullmatch(r"\s*(?:(\d+)[\s:,]+)?(\S.*?)\s*", line):
            if match[2] in names:
                raise ScanError(path, f"names {match[2]!r} twice", _KIND)
            names[match[2]] = int(match[1]) if match[1] else None
    if len({value is None for value in names.values()}) > 1:
        problem = "either every line starts with its mask value, or none does"
        raise ScanError(path, problem, _KIND)
    return names
