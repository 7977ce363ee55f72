"""Let each system call fail by which train and predict write, and look at what that leaves.

    python tests/faults.py train|predict [PLACES]

Every call is the one that fails once, and the one from which on all fail; as on a full disk
(ENOSPC, after half of a write) and as on a broken one (EIO). PLACES: fewer, one call of each of so
many places (neighbouring calls on one file), evenly spread, with one kind of fault each. Prints a
table and every fault after which something was not as promised; exit code 1 if there was one.

A process that fault_shim.c was loaded into imports everything once, and forks for each run.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby, product
from pathlib import Path

from fault_checks import after_predict, after_train
from fault_runs import PREDICT, TRAIN, Fault, build, run, start

KINDS = list(product((errno.ENOSPC, errno.EIO), (False, True)))


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

    import segapp.cli_batch
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
