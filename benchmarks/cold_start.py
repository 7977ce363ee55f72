"""From a cold start to a written result: one slice, and 36, with an exported model.

    python benchmarks/cold_start.py [RUN] [--repeats 9]

RUN, runs/brain unless told, is exported to OpenVINO in a temporary folder unless it is an export.
Each repeat is a process of its own, from its start to its end; slices are PNG files of 256 × 256
pixels. Where nnU-Net is installed and nnUNet_results holds a model of Dataset001_T, as a 2D
training of it leaves one, the same 36 slices go through nnUNetv2_predict, with and without its
mirroring.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from measure import command, exported, machine, segapp, table, write_slices

RESULTS = "nnUNet_results"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/brain"))
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    with exported(args.run) as model, tempfile.TemporaryDirectory() as folder:
        rows = []
        for count in (1, 36):
            scans = Path(folder) / f"scans{count}"
            write_slices(scans, count)
            runs = [
                segapp("predict", model, scans, "--out", Path(folder) / f"out{count}-{n}")
                for n in range(args.repeats)
            ]
            seconds = [s for s, _, _ in runs]
            rows.append(
                (
                    f"{count} slices" if count > 1 else "one slice",
                    f"{statistics.median(seconds):.2f}",
                    f"{min(seconds):.2f}",
                    f"{max(seconds):.2f}",
                    f"{max(peak for _, peak, _ in runs):.0f}",
                )
            )
        more, said = nnunet(Path(folder) / "scans36", Path(folder))
        print(f"From the command to the results, {machine()}:\n")
        print(table(("", "median s", "least", "most", "peak MB"), rows + more))
        print(f"\n{said}", end="")
        words = [sys.executable, "-X", "importtime", "-m", "segapp.cli", "predict", str(model)]
        one = Path(folder) / "scans1/slice00000.png"
        loaded = imported([*words, str(one), "--out", str(Path(folder) / "traced")])
        print(f"torch among the {len(loaded)} modules imported: {'torch' in loaded}.")


def imported(words: list[str]) -> set[str]:
    """The modules that `python -X importtime` lists."""
    import subprocess

    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[-1].strip() for line in lines}


def nnunet(scans: Path, folder: Path) -> tuple[list[tuple[str, ...]], str]:
    """The same slices through nnU-Net, where it is there: rows, or why there are none."""
    tool = shutil.which("nnUNetv2_predict")
    if not tool or not os.environ.get(RESULTS):
        return [], "nnU-Net: not measured (nnUNetv2_predict or nnUNet_results is missing). "
    renamed = folder / "nnunet"
    renamed.mkdir()
    for path in scans.glob("*.png"):
        shutil.copy(path, renamed / f"{path.stem}_0000.png")
    trainers = sorted(Path(os.environ[RESULTS]).glob("Dataset001_T/*__nnUNetPlans__2d"))
    if not trainers:
        return [], "nnU-Net: not measured (no 2D model of Dataset001_T). "
    trainer = trainers[0].name.partition("__")[0]
    words = [tool, "-i", str(renamed), "-o", str(folder / "nnunet-out"), "-d", "1", "-c", "2d"]
    words += ["-f", "all", "-tr", trainer, "-device", "cpu", "-npp", "1", "-nps", "1"]
    rows = []
    for name, more in (("36 by nnU-Net", []), ("36 by nnU-Net, no TTA", ["--disable_tta"])):
        seconds, peak, _ = command([*words, *more])
        rows.append((name, f"{seconds:.2f}", "", "", f"{peak:.0f}"))
    return rows, ""


if __name__ == "__main__":
    main()
