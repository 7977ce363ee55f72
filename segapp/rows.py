"""Lines of predictions.csv on the disk: its own, those that wait beside it while a batch is under
way, and those of the parts of a batch that several processes share."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from segapp.errors import OutputError
from segapp.files import sha256, write_text

TABLE = "predictions.csv"
SHARES = ".shares"  # folder beside the table, of a batch that several processes share


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Output, resolved → line of an earlier predictions.csv, of the lines that a batch which was
    stopped had not come to, and of those of a shared batch that was stopped (these are `stopped`:
    the batch can go on from them). Empty where there is nothing to read. Left out are a line that
    was cut off by a kill, and those that name no scan or no output. Raises OutputError for what is
    no such table."""
    rows = waiting_rows(path) | _rows_of(path)
    for part in sorted((path.parent / SHARES).glob("*/rank-*.csv")):
        found = part_rows(part).items()
        rows |= {p: {k: v for k, v in row.items() if k != "number"} for p, row in found}
    return rows


def waiting_rows(path: Path) -> dict[str, dict[str, str]]:
    """Those lines of `read_rows` alone that wait beside the table at `path`."""
    return _rows_of(_waiting(path))


def part_rows(part: Path) -> dict[str, dict[str, str]]:
    """The lines of one process's part of a shared batch, as `read_rows`; with their number."""
    rows: dict[str, dict[str, str]] = {}
    try:
        columns: list[str] = []
        for _, _, fields in whole_rows(part):
            if not columns:
                columns = fields
                continue
            row = dict(zip(columns, fields, strict=True)) | {"stopped": "yes"}
            if _names_files(row):
                rows[os.path.realpath(row["output"])] = row
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise OutputError(f"{part}: can't be read ({error.strerror})") from error
    return rows


def whole_rows(part: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Where each line of a part begins, its bytes, its fields; the header's first. Ends before a
    line that a kill or a loss of power cut off, which has fewer fields or no end. Raises OSError.
    """
    lengths: list[int] = []  # of the physical lines that the line under way took
    ended, at, width = False, 0, 0

    def lines() -> Iterator[str]:
        nonlocal ended
        for line in file:
            lengths.append(len(line))
            ended = line.endswith(b"\n")
            yield line.decode("utf-8", "surrogateescape")

    with part.open("rb") as file, suppress(csv.Error):
        for fields in csv.reader(lines()):
            width = width or len(fields)
            if len(fields) != width or not ended or (not at and fields[0] != "number"):
                return
            size = sum(lengths)
            lengths.clear()
            yield at, size, fields
            at += size


def _rows_of(table: Path) -> dict[str, dict[str, str]]:
    try:
        text = table.read_text(encoding="utf-8", errors="surrogateescape").removeprefix("\ufeff")
        text = text[: text.rfind("\n") + 1]
        lines = csv.DictReader(io.StringIO(text))
        if text.strip("\0\r\n") and not {"file", "output"} <= set(lines.fieldnames or ()):
            raise csv.Error("its first line names no columns file and output, with commas between")
        rows = [row for row in lines if _names_files(row)]
        place = _placing(table.parent, rows)
        return {place(row["output"]): row for row in rows}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except csv.Error as error:  # without it nobody knows which results somebody edited
        raise OutputError(
            f"{table}: can't be understood ({error}); was it saved by another program? Put back "
            "what segapp wrote, or move it away: its results are then made again"
        ) from error
    except OSError as error:  # writing would lose them
        raise OutputError(f"{table}: can't be read ({error.strerror})") from error


def _placing(out: Path, rows: Iterable[Mapping[str, str]]) -> Callable[[str], str]:
    """How to find the results in `out` that lines tell of, resolved. Where the folder was moved, or
    the working directory is another, the lines say other places: the first result that is found in
    `out` all the same, by its checksum, tells which folder it was."""
    below = f"{os.path.realpath(out)}{os.sep}"
    for row in rows:
        output = Path(row["output"])
        if os.path.realpath(output).startswith(below):
            break
        for n in range(int(output.is_absolute()), len(output.parts)):
            found = out.joinpath(*output.parts[n:])
            if found.is_file() and sha256(found) == row.get("output_sha256"):
                return partial(_moved, Path(*output.parts[:n]), out)
    return lambda output: os.path.realpath(output)


def _moved(root: Path, out: Path, output: str) -> str:
    there = Path(output)
    return os.path.realpath(out / there.relative_to(root) if there.is_relative_to(root) else there)


def _names_files(row: Mapping[str, str]) -> bool:
    names = (row.get("file"), row.get("output"))
    return all(name and "\0" not in name for name in names)  # a loss of power leaves zeros


def _waiting(path: Path) -> Path:
    """The file of the earlier lines that a batch under way has not come to."""
    return path.with_name(f".{path.stem}-earlier.csv")


def put_aside(
    path: Path, rows: Mapping[str, Mapping[str, str]], model: str, mark: str = "yes"
) -> None:
    """Earlier lines wait beside the table at `path` until a batch of `model` is through. mark: what
    says of a line that it is unsure because of this batch."""
    if rows:
        # a kill may leave this model's result without a line, where another model's was
        unsure = {p: r for p, r in rows.items() if r.get("model") != model}
        unsure = {p: {**r, "unsure": r.get("unsure") or mark} for p, r in unsure.items()}
        _keep(path, {**rows, **unsure})


def keep_others(path: Path, mark: str) -> None:
    """After a batch: of the lines that wait beside the table at `path`, those of other scans'
    results stay there, no longer unsure because of it."""
    if rows := waiting_rows(path):
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                if row["output"]:
                    rows.pop(os.path.realpath(row["output"]), None)
    for row in rows.values():
        if row.get("unsure") in ("", mark):
            del row["unsure"]
    keep_rows_of_others(path, rows)


def keep_rows_of_others(path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Let those of the lines wait beside the table at `path` whose results are there."""
    rows = {p: row for p, row in rows.items() if Path(p).is_file()}
    ours = ("stopped", "counts_as")  # of the batch, which has ended
    _keep(path, {p: {k: v for k, v in row.items() if k not in ours} for p, row in rows.items()})


def _keep(path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Lines that wait beside the table; without any their file goes."""
    if not rows:
        _waiting(path).unlink(missing_ok=True)
        return
    columns = dict.fromkeys(key for row in rows.values() for key in row if key)
    write_text(_waiting(path), csv_text(list(columns), rows.values(), header=True))


def csv_text(
    columns: Sequence[str], rows: Iterable[Mapping[str, object]], header: bool = False
) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
