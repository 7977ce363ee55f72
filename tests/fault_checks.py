"""What must hold after a call failed by which a command writes, and when the command goes on."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_runs import PREDICT, TRAIN, Ended, Fault, run


def unreadable(folder: Path) -> Iterator[str]:
    """Of each file below it that can't be read in full, and of each of a kind that nobody expects,
    what is wrong. Those that were being written don't count."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name.startswith(".partial-") or path.name == "log.txt":
            continue
        suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
        if suffix not in READERS:
            yield f"{path.relative_to(folder)}: is left over"
            continue
        try:
            READERS[suffix](path)
        except Exception as error:  # whatever a reader says of half a file
            yield f"{path.relative_to(folder)}: unreadable ({type(error).__name__}: {error})"


def _read_tensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118
            file.get_tensor(name)


def _read_csv(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines(keepends=True), strict=True))
    assert text.endswith("\n"), "the last line is cut"
    assert len({len(row) for row in rows}) == 1, "a line is cut"


def _read_yaml(path: Path) -> None:
    import yaml

    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def _read_picture(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()


def _read_tiff(path: Path) -> None:
    from segapp.formats import read_scan  # others read half a stack without a word

    read_scan((path,))


def _read_nifti(path: Path) -> None:
    import nibabel

    nibabel.load(path).get_fdata()  # type: ignore[attr-defined]


def _read_nrrd(path: Path) -> None:
    import nrrd

    nrrd.read(str(path))


def _read_html(path: Path) -> None:
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), "its end is missing"


READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": _read_tensors,
    ".csv": _read_csv,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".yaml": _read_yaml,
    ".png": _read_picture,
    ".tif": _read_tiff,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
    ".nrrd": _read_nrrd,
    ".html": _read_html,
}


def badly_said(ended: Ended, fault: Fault, out: str) -> Iterator[str]:
    """What is wrong with what a command printed that met the fault and was to write to `out`."""
    if "Traceback" in ended.stdout + ended.stderr:
        yield "a traceback"
    if ended.code != 2:
        return
    last = ended.stderr.rstrip().rpartition("\n")[2]
    if not last.startswith("segapp: "):
        yield f"ends with no error of ours: {last}"
    elif not re.search(rf"\b{out}[:/]", last) or os.strerror(fault.error) not in last:
        yield f"says not which file or not why: {last}"


def after_train(place: Path, clean: Path, ended: Ended, fault: Fault) -> Iterator[str]:
    """What is wrong after a training met the fault, and when it is gone and the run goes on."""
    run_folder, model = place / "run", "run/model.safetensors"
    if ended.code not in (0, 2):
        yield f"exit code {ended.code}"
    yield from badly_said(ended, fault, "run")
    yield from unreadable(place)
    if ended.code:
        resumes = (run_folder / "config.yaml").is_file()
        again = run("train --resume run" if resumes else TRAIN, place)
        if again.code:
            yield f"can't go on: {again.stderr.rstrip().rpartition(chr(10))[2]}"
            return
        yield from (f"resumed: {what}" for what in unreadable(place))
        yield from (f"resumed: {p.name} is left" for p in run_folder.rglob(".partial-*"))
        yield from (f"resumed: {p.name} is left" for p in run_folder.glob(".cache"))
    left = (place / model).read_bytes() if (place / model).is_file() else b""
    if left != (clean / model).read_bytes():
        yield "another model than without the fault"
    if _losses(run_folder) != _losses(clean / "run"):
        yield "another history than without the fault"


def _losses(run_folder: Path) -> list[list[str]]:
    names = ("epoch", "step", "lr", "train_loss", "val_loss", "val_miou")
    try:
        with (run_folder / "history.csv").open() as file:
            return [[row[name] for name in names] for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def after_predict(place: Path, clean: Path, ended: Ended, fault: Fault) -> Iterator[str]:
    """What is wrong after a batch met the fault, and when it is gone and the batch goes on."""
    out = place / "out"
    if ended.code not in (0, 1, 2):
        yield f"exit code {ended.code}"
    yield from badly_said(ended, fault, "out")
    yield from unreadable(place)
    failed = [row for row in _lines(out) if row["status"] == "failed"]
    if ended.code in (0, 1) and bool(failed) != bool(ended.code):
        yield f"exit code {ended.code}, and {len(failed)} failed scans in the table"
    for row in failed:
        if os.strerror(fault.error) not in row["reason"]:
            yield f"a scan failed for no good reason: {row['reason']}"
    again = run(f"{PREDICT} --skip-existing", place)
    if again.code:
        yield f"can't go on: {again.stderr.rstrip().rpartition(chr(10))[2]}"
    left, expected = _contents(out), _contents(clean / "out")
    for name in sorted(left.keys() | expected.keys()):
        if left.get(name) != expected.get(name):
            differs = "differs" if name in expected else "is left over"
            yield f"again: {name} {differs if name in left else 'is missing'}"
    figures = [
        [{k: v for k, v in row.items() if k not in CHANGING} for row in _lines(folder)]
        for folder in (out, clean / "out")
    ]
    if figures[0] != figures[1]:
        yield "again: other lines in predictions.csv"


CHANGING = ("seconds", "status", "reason", "warnings")  # columns that tell of a second time


def _lines(out: Path) -> list[dict[str, str]]:
    try:
        with (out / "predictions.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["reason"] is not None]
    except FileNotFoundError:
        return []


def _contents(out: Path) -> dict[str, bytes]:
    """Name → bytes of every file but the table."""
    files = (p for p in out.rglob("*") if p.is_file() and p.name != "predictions.csv")
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}
