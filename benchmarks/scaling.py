"""What `segapp predict` costs beside the network, and what that means for a million slices.

    python benchmarks/scaling.py [RUN] [--entries 20000 200000] [--slices 200] [--storage MB/S]

Measured on this machine, without a network: what rank 0 does for each scan before and after the
work (listing, naming, merging), what every rank does (reading the list), how many slices a second
one process segments, and one with half of the processors; how fast files are read and written. Of
these a simple model is made:

    time = start + scans × (list + name + read the list + merge)
         + the largest share × max(time of a slice, time of its bytes on the storage)

with shares by the hash of names, which differ by chance. Its prediction for two processes on this
machine is held against a run of two, which means something where nothing else is at work on it, and
that for 2 and 4 processes against runs in which the network only waits. Then it says how long a
million slices take on 1 to 1,024 machines like this one, with a process each and a storage of
--storage MB/s for all of them together (unless told, what was measured here, which no machine adds
to), and where that ends.
RUN: a run folder or an export; without one, the default network with random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from measure import machine, table, write_slices

from segapp.ranks import Ranks

MILLION, _WAIT_S = 1_000_000, 0.5
PARTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--entries", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--storage", type=float, metavar="MB/S")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"On {machine()}.\n\nMicroseconds a scan beside the work, over so many scans:\n")
        fixed: dict[str, float] = {}
        rows = []
        for count in args.entries:
            fixed, peak = in_a_process(folder / f"entries{count}", count)
            rows.append((f"{count:,}", *(f"{1e6 * s:.0f}" for s in fixed.values()), f"{peak:.0f}"))
        print(table(("scans", *fixed, "peak MB"), rows))
        model = args.run or untrained(folder / "model")
        read, write = storage(folder)
        slices = folder / "slices"
        write_slices(slices, args.slices)
        few = folder / "few"
        write_slices(few, args.slices // 10)
        pretend_slices = folder / "pretend"
        write_slices(pretend_slices, args.slices * 3 // 5)  # two minutes of waiting by default
        start, slice_s = pace(model, few, slices, folder, 1)
        half_start, half_s = pace(model, few, slices, folder, 2)
        size = sum(path.stat().st_size for path in slices.iterdir()) / args.slices
        out_size = sum(path.stat().st_size for path in (folder / "out1").rglob("*.png"))
        out_size /= args.slices
        together = timed(model, slices, folder / "together", 2, 2)
        expected = half_start + largest_share(args.slices, 2) * half_s
        print(f"\nOne process: {start:.1f} s to start, {1 / slice_s:.1f} slices/s.")
        print(f"One with half of the processors: {half_start:.1f} s, {1 / half_s:.1f} slices/s.")
        print(f"Two of these, {args.slices} slices: {together:.1f} s, {expected:.1f} s expected.")
        print("\nSlices by networks that only wait half a second each:\n")
        print(table(("processes", "seconds", "expected"), waiting_rows(pretend_slices, folder)))
        print(f"\nFiles: read {read:.0f} MB/s, written and flushed {write:.0f} MB/s.")
        rate = 1e6 * args.storage if args.storage else 1e6 * min(read, write)
        storage_s = (size + out_size) / rate  # what is read again comes from the cache
        print_million(start, slice_s, fixed, storage_s)


def print_million(
    start: float, slice_s: float, fixed: dict[str, float], storage_s: float, scans: int = MILLION
) -> None:
    one = predicted(1, scans, start, slice_s, fixed, storage_s)
    rows, ends = [], 0
    for doubling in range(11):
        count = 2**doubling
        seconds = predicted(count, scans, start, slice_s, fixed, storage_s)
        efficiency = one / seconds / count
        share = largest_share(scans, count) / (scans / count) - 1
        cells = (f"{count:,}", hours(seconds), f"{one / seconds:.1f}", f"{efficiency:.0%}")
        bound = "storage" if storage_s * count > slice_s else "network"
        rows.append((*cells, f"{share:.1%}", bound))
        ends = count if efficiency >= 0.5 else ends
    print(f"\n{scans:,} slices:\n")
    columns = ("machines", "hours", "times as fast", "efficiency", "largest share", "bound by")
    print(table(columns, rows))
    alone, limit = scans * sum(fixed.values()), slice_s / storage_s
    print(f"\nWhat is done once for all takes {hours(alone)} hours, whatever their number. The")
    print(f"storage is busy from {limit:.0f} machines on. Up to {ends:,} machines at least half of")
    print("each one's time is work.")


def predicted(
    count: int,
    scans: int,
    start: float,
    slice_s: float,
    fixed: dict[str, float],
    storage_s: float,
) -> float:
    """Seconds that `count` processes on a machine each take for `scans` slices. storage_s: that the
    storage takes for the bytes of one, from whichever machine."""
    share = largest_share(scans, count)
    beside = fixed if count > 1 else {"list": fixed["list"], "name": fixed["name"]}
    return start + share * max(slice_s, storage_s * count) + scans * sum(beside.values())


def largest_share(scans: int, count: int) -> float:
    """Scans of the process that by chance has most of them."""
    mean = scans / count
    return mean + math.sqrt(2 * mean * (1 - 1 / count) * math.log(count)) if count > 1 else mean


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}"


def in_a_process(folder: Path, count: int) -> tuple[dict[str, float], float]:
    """`beside_the_work` in a process of its own: the seconds a scan, the peak memory in MB."""
    code = "import sys, pathlib, json; sys.path.insert(0, sys.argv[1]); import scaling, measure\n"
    code += "found = scaling.beside_the_work(pathlib.Path(sys.argv[2]), int(sys.argv[3]))\n"
    code += "print(json.dumps([found, measure.own_peak_mb()]))"
    here = str(Path(__file__).parent)
    words = [sys.executable, "-c", code, here, str(folder), str(count)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found, peak = json.loads(done.stdout)
    return found, peak


def beside_the_work(folder: Path, count: int) -> dict[str, float]:
    """Seconds a scan of each step of a shared batch but the work itself. The scans are links to
    one small picture."""
    from segapp.batch import list_inputs
    from segapp.merging import merge_parts
    from segapp.naming import name_jobs
    from segapp.outcomes import Outcome, OutcomeTable, Part
    from segapp.scan import make_classes
    from segapp.shares import Seat, read_jobs

    write_slices(folder / "one", 1)
    (source,) = (folder / "one").iterdir()
    for n in range(count):
        place = folder / f"in/{n // 1000:04}"
        if n % 1000 == 0:
            place.mkdir(parents=True)
        if n % 50_000 == 0:  # file systems bound the links to one file
            source = shutil.copy(source, place / f"{n:07}.png")
        else:
            os.link(source, place / f"{n:07}.png")
    seconds, out = {}, folder / "out"
    seat = Seat(out, Ranks(0, PARTS), [folder / "in"])
    seat.folder.mkdir(parents=True)
    with clock(seconds, "list"):
        entries = list_inputs([folder / "in"])
    with clock(seconds, "name"):
        listed = seat.publish({}, name_jobs(entries, out, {}))
    with clock(seconds, "read the list"):
        read_jobs(listed, Ranks(0, PARTS))
    classes = make_classes(["background", "a", "b"], [0, 1, 2])
    for rank in range(PARTS):
        with Part(listed.part(rank), classes) as part:
            for job in read_jobs(listed, Ranks(rank, PARTS)):
                outcome = Outcome(job.entry.source, job.output, mean_confidence=0.9)
                outcome.sizes = {f"{c.name}_voxels": 12345 for c in classes}
                outcome.model, outcome.number = "0" * 16, job.number
                outcome.scan_sha256 = outcome.output_sha256 = "0" * 64
                part.write(outcome)
    header = OutcomeTable(out / "predictions.csv", classes, {}).header()
    with clock(seconds, "merge"):
        assert merge_parts(listed, PARTS, header, out / "predictions.csv")["ok"] == count
    return {step: taken / count for step, taken in seconds.items()}


@contextmanager
def clock(seconds: dict[str, float], step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - began


def pace(model: Path, few: Path, many: Path, folder: Path, share: int) -> tuple[float, float]:
    """Seconds that a process takes to start, and for a slice; it has 1/share of the processors."""
    counts = [len(list(scans.iterdir())) for scans in (few, many)]
    small = timed(model, few, folder / f"few{share}", 1, share)
    large = timed(model, many, folder / f"out{share}", 1, share)
    slice_s = (large - small) / (counts[1] - counts[0])
    return small - counts[0] * slice_s, slice_s


def timed(model: Path, scans: Path, out: Path, count: int, share: int) -> float:
    """Seconds that `count` processes take, each with 1/share of the machine's processors."""
    words = [sys.executable, "-m", "segapp.cli", "predict", str(model), str(scans), "--out"]
    environment = {**os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(share)}
    began = time.perf_counter()
    ranks = [
        subprocess.Popen(
            [*words, str(out)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]
    for rank in ranks:
        said = rank.communicate()[1]
        if rank.returncode:
            sys.exit(said.decode())
    return time.perf_counter() - began


def waiting_rows(scans: Path, folder: Path) -> list[tuple[str, str, str]]:
    """For the largest share as it is, not as it is expected: chance is small in a million only."""
    names = [str(path) for path in scans.iterdir()]
    rows, beside_s = [], 0.0
    for count in (1, 2, 4):
        shares = [sum(map(Ranks(rank, count).takes, names)) for rank in range(count)]
        seconds = pretended(scans, folder / f"pretended{count}", count, _WAIT_S)
        beside_s = beside_s or seconds / len(names) - _WAIT_S  # reading, writing
        expected = max(shares) * (_WAIT_S + beside_s)
        rows.append((str(count), f"{seconds:.1f}", f"{expected:.1f}"))
    return rows


def pretended(scans: Path, out: Path, count: int, slice_s: float) -> float:
    """Seconds without the start that `count` processes take whose network only waits, so that what
    else the machine does counts little."""
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import scaling\n"
    code += "path = pathlib.Path\n"
    code += "scaling.pretend(path(sys.argv[2]), path(sys.argv[3]), *map(float, sys.argv[4:]))"
    words = [sys.executable, "-c", code, str(Path(__file__).parent), str(scans), str(out)]
    ranks = [
        subprocess.Popen(
            [*words, str(rank), str(count), str(slice_s)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    return float(said[0])


def pretend(scans: Path, out: Path, rank: float, count: float, slice_s: float) -> None:
    """One of these processes; the first one prints the seconds."""
    from segapp.batch import list_inputs, predict_batch
    from segapp.predict import Predictor
    from segapp.preprocess import Preprocessing
    from segapp.scan import make_classes
    from segapp.shares import take_seat

    class Waiting:
        batch_size, calls_at_once, precision = 1, 1, "fp32"

        def __call__(self, batch: np.ndarray) -> np.ndarray:
            time.sleep(slice_s)
            return np.concatenate([0 * batch, batch], axis=1)

    prep = Preprocessing(channels=1, normalisation="zscore")
    predictor = Predictor(Waiting(), prep, make_classes(["background", "a"], [0, 1]))
    with take_seat(out, Ranks(int(rank), int(count)), [scans]) as seat:
        Path(f"{out}-{rank:g}").touch()
        until = time.monotonic() + 60
        while len(list(out.parent.glob(f"{out.name}-*"))) < count:
            if time.monotonic() > until:
                sys.exit("another of the processes has not come")
            time.sleep(0.01)
        began = time.perf_counter()
        predict_batch(predictor, [] if rank else list_inputs([scans]), out, seat=seat)
        print(time.perf_counter() - began)


def storage(folder: Path, megabytes: int = 128) -> tuple[float, float]:
    """MB/s at which files of 64 kB are read, and written and flushed, one after the other."""
    block, count = os.urandom(1 << 16), megabytes * 16 // 8
    (folder / "blocks").mkdir()
    began = time.perf_counter()
    for n in range(count):
        with (folder / "blocks" / str(n)).open("wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
    written = time.perf_counter() - began
    began = time.perf_counter()
    for n in range(count):
        (folder / "blocks" / str(n)).read_bytes()
    read = time.perf_counter() - began
    moved = count * len(block) / 1e6
    return moved / read, moved / written


def untrained(folder: Path) -> Path:
    """A model file of the default network, with random weights: they do not change its pace."""
    from segapp.checkpoint import Architecture, DataRecord, ModelInfo, save_model
    from segapp.model import build_network
    from segapp.preprocess import Preprocessing
    from segapp.scan import make_classes

    classes = make_classes(["background", "a", "b", "c"], [0, 1, 2, 3])
    architecture = Architecture(
        name="unet", encoder="resnet34", in_channels=1, classes=4, residual=True
    )
    weights = build_network(**architecture.model_dump()).state_dict()
    info = ModelInfo(
        architecture=architecture,
        preprocessing=Preprocessing(channels=1, normalisation="zscore"),
        classes=classes,
        settings={},
        metrics={},
        starting_weights="none",
        data=DataRecord(root="none"),
    )
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    save_model(folder / "model.safetensors", arrays, info)
    return folder


if __name__ == "__main__":
    main()
