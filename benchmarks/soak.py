"""Whether anything is lost or piles up over thousands of scans and an hour of training.

    python benchmarks/soak.py [RUN] [--scans 2000] [--minutes 60] [--only predict|torch|app|train]

RUN, runs/brain unless told, segments so many scans in one `segapp predict` (its export to OpenVINO
first, then with torch; of twenty scans one is a volume and one is broken), and as many by four
visitors at a time of one `segapp app`. Then a small network trains for so many minutes, saving its
state every 6 seconds. Memory is that of the process and its children, sampled ten times a second;
its growth is the last quarter's mean minus the first one's. The medians of
open files, threads and child processes are compared likewise. Exit code 1 where memory grew by
20 MB or more, or anything was left over.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from measure import BRAIN, exported, machine, table, write_slices

MOST_MB = 20.0
EVERY_S = 0.1
TRAIN = "train.steps_per_epoch=20 optim.batch_size=4 optim.patch=64 model.encoder=resnet18"
TRAIN += " model.encoder_weights=none data.workers=1 data.limit=12 train.save_minutes=0.1"


@dataclass(frozen=True)
class Sample:
    """A process and its children at one moment. done: scans or epochs so far."""

    done: int
    memory_mb: float
    files: int
    threads: int
    children: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/brain"))
    parser.add_argument("--scans", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", choices=("predict", "torch", "app", "train"))
    args = parser.parse_args()
    print(f"{machine()}\n")
    rows, sound = [], True
    with tempfile.TemporaryDirectory() as folder, exported(args.run) as export:
        place = Path(folder)
        parts: dict[str, Callable[[], tuple[list[Sample], str]]] = {
            "predict": lambda: predict(export, "openvino", args.scans, place),
            "torch": lambda: predict(args.run, "torch", args.scans, place),
            "app": lambda: app(export, args.scans, place),
            "train": lambda: train(args.minutes, place),
        }
        for name, part in parts.items():
            if args.only in (None, name):
                samples, left = part()
                cells, fine = judge(samples)
                rows.append((name, *cells, left or "nothing"))
                sound = sound and fine and not left
    columns = (
        "part",
        "done",
        "first quarter",
        "last quarter",
        "growth",
        "files, threads, children",
    )
    print(table((*columns, "left over"), rows))
    sys.exit(0 if sound else 1)


def judge(samples: list[Sample]) -> tuple[tuple[str, ...], bool]:
    """The cells of a row, and whether nothing grew. Quarters are of what was done, or of the time
    where too little was."""
    last = samples[-1].done
    first = [s for s in samples if 0 < s.done <= last / 4]
    final = [s for s in samples if s.done > last * 3 / 4]
    before, after = (float(np.mean([s.memory_mb for s in part])) for part in (first, final))
    counts = [
        [
            int(np.median([getattr(s, what) for s in part]))
            for what in ("files", "threads", "children")
        ]
        for part in (first, final)
    ]
    # a thread or a connection may come or go at any moment; what piles up does not stay so few
    steady = all(b - a <= 2 for a, b in zip(*counts, strict=True))
    cells = (str(last), f"{before:.0f} MB", f"{after:.0f} MB", f"{after - before:+.1f} MB")
    shown = " → ".join(", ".join(map(str, count)) for count in counts)
    return (*cells, shown), after - before < MOST_MB and steady


def sample(process: psutil.Process, done: int) -> Sample:
    family = [process, *process.children(recursive=True)]
    memory = files = threads = 0
    for member in family:
        with suppress(psutil.NoSuchProcess):
            memory += member.memory_info().rss
            files += member.num_fds()
            threads += member.num_threads()
    return Sample(done, memory / 2**20, files, threads, len(family) - 1)


def watch(process: psutil.Popen, done: Callable[[], int]) -> list[Sample]:
    """Samples of a command until it ends."""
    samples = []
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            samples.append(sample(process, done()))
        time.sleep(EVERY_S)
    return samples


@contextmanager
def served(model: Path) -> Iterator[tuple[psutil.Popen, str]]:
    """`segapp app` and its address."""
    command = [sys.executable, "-m", "segapp.cli", "app", str(model)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = psutil.Popen(command, **quiet)
    try:
        assert process.stdout
        yield process, next(w for line in process.stdout for w in line.split() if "http://" in w)
    finally:
        process.terminate()
        process.communicate()


def write_scans(folder: Path, count: int) -> None:
    """PNG slices; of twenty one becomes a volume of 64 × 64 × 8, and one is broken."""
    write_slices(folder, count)
    rng = np.random.default_rng(0)
    for n in range(0, count, 10):
        picture = folder / f"slice{n:05}.png"
        if n % 20:
            picture.write_bytes(picture.read_bytes()[:200])
            continue
        picture.unlink()
        voxels = rng.integers(0, 255, (64, 64, 8), np.uint8)
        nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1, 3, 1])), picture.with_suffix(".nii.gz"))


def predict(model: Path, engine: str, count: int, place: Path) -> tuple[list[Sample], str]:
    scans, out = place / "scans", place / f"out-{engine}"
    if not scans.exists():
        write_scans(scans, count)
    csv = out / "predictions.csv"

    def done() -> int:
        return max(0, csv.read_bytes().count(b"\n") - 1) if csv.exists() else 0

    words = ("predict", model, scans, "--out", out, "--engine", engine)
    with (place / "said.txt").open("w") as said:
        process = psutil.Popen(
            [sys.executable, "-m", "segapp.cli", *map(str, words)], stdout=said, stderr=said
        )
        samples = watch(process, done)
    assert process.returncode == 1, "the broken scans fail, the others don't"
    assert samples[-1].done >= count * 0.95
    return samples, ", ".join(path.name for path in out.rglob(".*"))


def app(model: Path, count: int, place: Path) -> tuple[list[Sample], str]:
    """Four visitors at a time; each sends ten scans and goes."""
    from gradio_client import Client, handle_file

    scans = place / "visitors"
    write_slices(scans, 40)
    pictures = sorted(scans.iterdir())
    with served(model) as (process, url):
        answered = 0

        def visit(number: int) -> None:
            nonlocal answered
            client = Client(url, verbose=False)
            for n in range(10):
                scan = pictures[(number + n) % len(pictures)]
                found = client.predict([handle_file(str(scan))], api_name="/segment")
                assert found[1]["results"][0]["status"] in ("ok", "review"), found
                answered += 1
            client.close()

        samples: list[Sample] = []
        with ThreadPoolExecutor(4) as visitors:
            visits = [visitors.submit(visit, number) for number in range(-(-count // 10))]
            while not all(each.done() for each in visits):
                samples.append(sample(process, answered))
                time.sleep(EVERY_S)
            for each in visits:
                each.result()
        locks = [Path(f.path) for f in process.open_files() if Path(f.path).name == "lock"]
        until, left = time.monotonic() + 1200, ["?"]
        while left and time.monotonic() < until:  # what nobody asks for stays ten minutes
            time.sleep(1)
            left = [p.name for lock in locks for p in lock.parent.rglob("*") if p.is_file()]
            left = [name for name in left if name != "lock"]
    left += [lock.parent.name for lock in locks if lock.parent.exists()]
    return samples, ", ".join(left)


def train(minutes: float, place: Path) -> tuple[list[Sample], str]:
    run = place / "run"
    history = run / "history.csv"

    def done() -> int:
        return max(0, history.read_bytes().count(b"\n") - 1) if history.exists() else 0

    words = f"train data.root={BRAIN} train.out={run} train.budget_minutes={minutes:g} {TRAIN}"
    with (place / "train.txt").open("w") as said:
        process = psutil.Popen(
            [sys.executable, "-m", "segapp.cli", *words.split()], stdout=said, stderr=said
        )
        samples = watch(process, done)
    assert process.returncode == 0, (place / "train.txt").read_text()[-2000:]
    states = [path.name for path in (run / "last").iterdir()]
    left = [path.name for path in run.rglob(".*")] + states[2:]
    return samples, ", ".join(left)


if __name__ == "__main__":
    main()
