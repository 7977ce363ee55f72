"""Files a second of `segapp predict` over a folder, against the engine's own pace.

    python benchmarks/folder.py [RUN] [--files 1000 10000] [--int8 DATA]

RUN, runs/brain unless told, is exported to OpenVINO in a temporary folder (in 8 bits, calibrated on
DATA, with --int8) unless it is an export. The folder holds PNG slices of 256 × 256 pixels, made
from data/brain. The engine's own pace is that on prepared slices of that size, in a process of its
own, called by as many threads as it can use: the mean of right before the folder and right after
it. Files a second count from the command's start, its imports included, to the last result. Peak
memory is that of the command.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import engine_alone, exported, machine, segapp, table, write_slices

SIZE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/brain"))
    parser.add_argument("--files", type=int, nargs="+", default=[1000])
    parser.add_argument("--int8", type=Path, metavar="DATA")
    parser.add_argument("--seconds", type=float, default=6, help="that the engine alone is timed")
    args = parser.parse_args()
    options = ("--int8", "--calibrate", args.int8, "--unequal") if args.int8 else ()
    with exported(args.run, *options) as model, tempfile.TemporaryDirectory() as folder:
        rows, before = [], engine_alone(model, SIZE, args.seconds)
        for count in args.files:
            scans = Path(folder) / f"scans{count}"
            write_slices(scans, count)
            out = Path(folder) / f"out{count}"
            seconds, peak, _ = segapp("predict", model, scans, "--out", out)
            written = len(list(out.glob("*.png")))
            assert written == count, f"{written} of {count} results"
            after = engine_alone(model, SIZE, args.seconds)
            engine, pace = (before["rate"] + after["rate"]) / 2, count / seconds
            cells = (f"{seconds:.1f}", f"{pace:.1f}", f"{engine:.1f}", f"{pace / engine:.0%}")
            rows.append((f"{count:,}", *cells, f"{peak:.0f}"))
            before = after
        print(f"`segapp predict` over a folder, in {before['precision']}, {machine()}:\n")
        print(table(("files", "seconds", "files/s", "engine alone", "ratio", "peak MB"), rows))


if __name__ == "__main__":
    main()
