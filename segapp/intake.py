"""The inputs of a batch: what was named → scans, without what the batch itself has written."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from segapp.errors import DataError, ScanError
from segapp.files import write_text
from segapp.formats import Entry, find_scans, stem
from segapp.formats.listing import FORMATS, LeftOut, is_readable_zip, known_suffix
from segapp.naming import resolver
from segapp.rows import TABLE, csv_text, read_rows

log = logging.getLogger("segapp")

LEFT_OUT = "left-out.csv"
_PICTURE, _COPY = re.compile(r"(.+)_overlay(_\d+)?\.png"), re.compile(r"(.+)\.bak\d*")


def list_inputs(
    inputs: Sequence[Path],
    channel_files: int = 1,
    exclude: Path | None = None,
    on_left_out: LeftOut = lambda *_: None,
) -> list[Entry]:
    """Entries of files, folders and zip archives, in the order given.

    A file named explicitly is one entry (several channel files of one scan, or the slices of a
    DICOM series, must be given as their folder); a folder or archive is searched, but not below
    `exclude` inside it, where the outputs go. Where inputs lie in `exclude` themselves, the results
    that its predictions.csv lists are none, nor are their pictures and copies. Of
    several inputs one without scans is a warning, and one that can't be listed an entry that fails.
    on_left_out gets each file of a folder or archive that is no scan, and why, but not a batch's
    tables.
    Raises DataError for a path that doesn't exist, and where no input holds anything.
    """
    out = None if exclude is None else exclude.resolve()
    tables = () if out is None else (out / TABLE, out / LEFT_OUT)

    def left_out(path: Path, why: str) -> None:
        if path.resolve() not in tables:
            on_left_out(path, why)

    entries: list[Entry] = []
    problems: list[DataError] = []
    for path in inputs:
        if path.is_dir() or (path.suffix.lower() == ".zip" and is_readable_zip(path)):
            try:
                found = find_scans(path, channel_files, left_out)
            except ScanError as error:
                problems.append(error)
                found = [Entry(stem(path), (path,))]  # which fails, and says why
            if exclude is not None and path.resolve() in exclude.resolve().parents:
                found = [e for e in found if not _below(e, exclude)]
            if not found:
                problems.append(DataError(f"{path}: holds no scans; read are {FORMATS}"))
            entries += found
        elif path.exists():
            entries.append(Entry(stem(path), (path,)))
        else:
            raise DataError(f"{path}: no such file or folder")
    if problems and len(problems) == len(inputs):
        raise problems[0]
    for problem in problems:
        if not isinstance(problem, ScanError):  # which fails on its own
            log.warning("%s", problem)
    return _without_results(entries, exclude) if exclude is not None else entries


def write_left_out(out: Path, files: Sequence[tuple[Path, str]]) -> None:
    """Write out/left-out.csv: each file among the scans that is none, and why. Without any, the
    table of an earlier batch is removed. Raises OutputError."""
    path = out / LEFT_OUT
    if files:
        text = csv_text(["file", "reason"], ({"file": f, "reason": r} for f, r in files), True)
        write_text(path, text)
    else:
        path.unlink(missing_ok=True)


def _below(entry: Entry, folder: Path) -> bool:
    return entry.paths[0].resolve().is_relative_to(folder.resolve())


def _without_results(entries: list[Entry], out: Path) -> list[Entry]:
    """Those that no earlier batch wrote into `out`: a folder that is input and output at once would
    grow with each run. Raises DataError where none are left."""
    resolve, below = resolver(), f"{os.path.realpath(out)}{os.sep}"
    places = [resolve(entry.paths[0]) for entry in entries]
    if not any(place.startswith(below) for place in places):
        return entries
    rows = read_rows(out / TABLE)
    scans = {resolve(row["file"]) for row in rows.values()} - rows.keys()
    bases = {output[: len(output) - len(known_suffix(output))] for output in rows}

    def is_result(place: str) -> bool:
        picture, copy = _PICTURE.fullmatch(place), _COPY.fullmatch(place)
        of_one = (picture and picture[1] in bases) or (copy and copy[1] in rows)
        return place in rows or (bool(of_one) and place not in scans)

    left = [e for e, place in zip(entries, places, strict=True) if not is_result(place)]
    if count := len(entries) - len(left):
        log.info("%s: left out of the inputs: %d results of an earlier batch in it", out, count)
    if entries and not left:
        raise DataError(f"{out}: holds no scans but only results of an earlier batch")
    return left
