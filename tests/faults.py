"""Let each system call fail by which train and predict write, and look at what that leaves.

    python tests/faults.py train|predict [PLACES]

Every call is the one that fails once, and the one from which on all fail; as on a full disk
(ENOSPC, after half of a write) and as on a broken one (EIO). PLACES: fewer, one call of each of so
many places (neighbouring calls on one file), evenly spread, with one kind of fault each. Prints a
table and every fault after which something was not as promised; exit code 1 if there was one.

A process that fault_shim.c was loaded into imports everything once, and forks for each run.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

HERE = Path(__file__).parent
KINDS = list(product((errno.ENOSPC, errno.EIO), (False, True)))
PATIENCE_S = 60
TRAIN = "train data.root=../data train.out=run train.epochs=2 train.steps_per_epoch=2"
TRAIN += " optim.batch_size=2 optim.patch=64 model.encoder=resnet18 model.encoder_depth=3"
TRAIN += " model.encoder_weights=none train.save_minutes=0 train.deterministic=true"
PREDICT = "predict ../model ../scans --out out --overlay --device cpu"


@dataclass(frozen=True)
class Fault:
    """The nth call fails, or all from it on (lasting), with an error number."""

    nth: int
    error: int
    lasting: bool

    def __str__(self) -> str:
        return f"{errno.errorcode[self.error]} {'from' if self.lasting else 'at'} call {self.nth}"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it printed, and its calls, name and path each."""

    code: int
    stdout: str
    stderr: str
    calls: list[str]


# -- runs ----------------------------------------------------------------------------------------


def build(folder: Path) -> Path:
    """The shim, compiled into `folder`. Raises FileNotFoundError where there is no compiler."""
    shim = folder / "fault_shim.so"
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("cc: no C compiler")
    flags = ["-shared", "-fPIC", "-O1", "-o", str(shim)]
    subprocess.run([compiler, *flags, str(HERE / "fault_shim.c"), "-ldl"], check=True)
    return shim


def start(words: Sequence[str], shim: Path, **how: bool) -> subprocess.CompletedProcess[str]:
    """This file as a command with the shim loaded. how: of subprocess.run."""
    own = {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "faults.py"), *words]
    return subprocess.run(command, check=False, text=True, env={**os.environ, **own}, **how)


def load() -> ctypes.CDLL:
    """The shim that this process was started with."""
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    shim.fault_count.restype = ctypes.c_long
    shim.fault_log.restype = ctypes.c_char_p
    return shim


def run(words: str, place: Path, fault: Fault | None = None) -> Ended:
    """The command in a fork, in and on the folder `place`; what it prints goes to files beside it.
    After a minute it is killed (code -14)."""
    said = [place.with_name(f"{place.name}.{name}") for name in ("stdout", "stderr", "calls")]
    sys.stdout.flush()
    process = os.fork()
    if not process:
        _run_here(words.split(), place, said, fault)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    printed = [path.read_text(errors="replace") if path.exists() else "" for path in said]
    return Ended(code, printed[0], printed[1], printed[2].splitlines())


def _run_here(words: list[str], place: Path, said: list[Path], fault: Fault | None) -> None:
    """In the fork; never returns."""
    code = 70
    try:
        signal.alarm(PATIENCE_S)
        for descriptor, path in enumerate(said[:2], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(place)
        sys.argv = ["segapp", *words]
        shim, fault = load(), fault or Fault(0, 0, False)
        shim.fault_arm(os.fsencode(place), fault.nth, fault.error, fault.lasting)
        import segapp.cli

        try:
            segapp.cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        gc.collect()  # files that nobody closed are closed now, as at the end of a process
        said[2].write_bytes(shim.fault_log())
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


# -- what must hold -------------------------------------------------------------------------------


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
    assert not text or text.endswith("\n"), "the last line is cut"
    assert len({len(row) for row in rows}) <= 1, "a line is cut"


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


# -- all of it -----------------------------------------------------------------------------------


def write_scans(folder: Path) -> None:
    """Five scans of noise: a PNG, TIFFs of one slice and of three, a NIfTI and an NRRD volume."""
    import nibabel
    import nrrd
    import numpy as np
    import tifffile
    from PIL import Image

    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64)).astype(np.uint8)
    Image.fromarray(noise[0]).save(folder / "a.png")
    tifffile.imwrite(folder / "b.tif", noise[1])
    tifffile.imwrite(folder / "c.tif", noise, imagej=True, metadata={"axes": "ZYX"})
    nibabel.save(nibabel.Nifti1Image(noise.T, np.diag([-1.0, -1, 3, 1])), folder / "d.nii.gz")
    header = {"space": "LPS", "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(folder / "e.nrrd"), noise.T.copy(), header)


def places(calls: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Neighbouring calls of one name on one file, and their numbers, from 1."""
    named = enumerate(map(_stable, calls), 1)
    return [(name, [n for n, _ in group]) for name, group in groupby(named, lambda call: call[1])]


def _stable(call: str) -> str:
    """A call's name and path, the same in every run, from its line in the shim's log."""
    name, _, path = call.partition(" ")
    path = re.sub(r"^.*/(clean|\d+)(?=/|$)", ".", path)
    path = re.sub(r"\.partial-\w+", ".partial-…", path)
    path = re.sub(r"/(\.?tmp|#)\w+( .deleted.)?", "/(temporary)", path)
    return f"{name} {path}"


def chosen(calls: Sequence[str], most: int | None) -> list[Fault]:
    """Every fault, or one at each of `most` places: a disk that gets full within a write, once or
    for good; the four kinds in turn for calls of other names."""
    if most is None:
        return [Fault(n, *kind) for n in range(1, len(calls) + 1) for kind in KINDS]
    found = places(calls)
    picked = sorted({round(i * (len(found) - 1) / max(1, most - 1)) for i in range(most)})
    faults = []
    for turn, (name, numbers) in enumerate(found[index] for index in picked):
        kinds = KINDS[:2] if name.startswith("write ") else KINDS
        faults.append(Fault(numbers[turn % len(numbers)], *kinds[turn % len(kinds)]))
    return faults


def inject(command: str, folder: Path, most: int | None = None) -> list[str]:
    """Run the command, train or predict, with every fault, or with `most`; prints a table and
    returns what was not as promised, a line each."""
    from conftest import write_png_dataset

    _import_all()
    words, check = (TRAIN, after_train) if command == "train" else (PREDICT, after_predict)
    write_png_dataset(folder / "data")
    if command == "predict":
        write_scans(folder / "scans")
        _fork(lambda: _write_model(folder / "model"))
    clean = folder / "clean"
    clean.mkdir()
    ended = run(words, clean)
    assert ended.code == 0, ended.stderr
    faults, began = chosen(ended.calls, most), time.monotonic()
    print(f"{command}: {len(ended.calls)} calls at {len(places(ended.calls))} places", flush=True)
    codes, violations = Counter[int](), []
    for number, fault in enumerate(faults):
        place = folder / str(number)
        place.mkdir()
        ended = run(words, place, fault)
        codes[ended.code] += 1
        hit = _stable(ended.calls[fault.nth - 1]) if len(ended.calls) >= fault.nth else "none"
        for what in check(place, clean, ended, fault):
            violations.append(f"{fault} ({hit}): {what}")
            print(violations[-1], flush=True)
        shutil.rmtree(place)
    seconds = time.monotonic() - began
    print("runs  exit codes  violations  seconds")
    said = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    print(f"{len(faults)}  {said}  {len(violations)}  {seconds:.0f}")
    return violations


def _import_all() -> None:
    """Here, so that forks needn't; and no thread is started, which forks would lack."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import torch

    import segapp.cli_text
    import segapp.formats.nifti
    import segapp.formats.nrrd
    import segapp.formats.tiff
    import segapp.train  # noqa: F401

    torch.set_num_threads(1)


def _fork(function: Callable[[], object]) -> None:
    """Call it in a fork: what it starts (torch's threads) is none of this process's."""
    process = os.fork()
    if not process:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(process, 0)[1] == 0


def _write_model(folder: Path) -> None:
    from web import untrained_model

    untrained_model(folder)


def main(words: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        if "fault_shim" not in os.environ.get("LD_PRELOAD", ""):
            return start(words, build(folder)).returncode
        return bool(inject(words[0], folder, int(words[1]) if words[1:] else None))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
