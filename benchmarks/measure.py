"""What the benchmark scripts share: a command's time and memory, what machine it was, tables, and
how fast an engine is alone."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BRAIN = Path(__file__).parents[1] / "data/brain"


def segapp(*words: object) -> tuple[float, float, str]:
    """Run `segapp WORDS`: (seconds, peak memory in MB, stdout). Ends the script where it fails."""
    return command([sys.executable, "-m", "segapp.cli", *map(str, words)])


def command(words: list[str]) -> tuple[float, float, str]:
    """Run a command: (seconds, peak memory in MB of its largest process, stdout)."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(words)}\n{err.read()}")
        return (
            seconds,
            usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20),
            out.read(),
        )


@contextmanager
def exported(run: Path, *options: object) -> Iterator[Path]:
    """A temporary export of a model; of an export without options, itself. By a process of its own:
    on Linux, a command's peak memory is never less than what its parent holds."""
    from segapp.exported import is_exported

    if is_exported(run) and not options:
        yield run
        return
    with tempfile.TemporaryDirectory() as folder:
        segapp("export", run, "--out", Path(folder) / "export", *options)
        yield Path(folder) / "export"


def engine_alone(model: Path, size: int, seconds: float) -> dict[str, Any]:
    """What the OpenVINO engine of an export does on prepared slices of size × size, in a process of
    its own: {"rate": images a second, "precision"}."""
    words = [sys.executable, __file__, str(model), str(size), str(seconds)]
    return json.loads(command(words)[2].splitlines()[-1])


def _alone(model: Path, size: int, seconds: float) -> dict[str, Any]:
    from segapp.checkpoint import read_info
    from segapp.engines import open_export
    from segapp.exported import read_export

    engine = open_export(model, read_export(model), "auto")
    inputs = read_info(model).preprocessing.inputs
    return {"rate": rate(engine, inputs, size, seconds), "precision": engine.precision}


def rate(engine: Any, inputs: int, size: int, seconds: float) -> float:
    """Images a second of an engine called by as many threads as it can use."""
    from segapp.ahead import in_order

    shape = (engine.batch_size, inputs, size, size)
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def run(seconds: float) -> float:
        until = time.perf_counter() + seconds
        endless = iter(lambda: time.perf_counter() < until, False)
        began = time.perf_counter()
        calls = sum(1 for _ in in_order(lambda _: engine(batch), endless, engine.calls_at_once))
        return calls * engine.batch_size / (time.perf_counter() - began)

    run(seconds / 6)
    return run(seconds)


def write_slices(folder: Path, count: int) -> None:
    """`count` PNG slices of 256 × 256 pixels: those of data/brain, moved and brightened."""
    pictures = [np.asarray(Image.open(p)) for p in sorted(BRAIN.glob("*/images/*.png"))]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for n in range(count):
        picture = pictures[n % len(pictures)].astype(np.float32) * rng.uniform(0.8, 1.1)
        room = [256 - size for size in picture.shape]
        before = [int(rng.integers(0, r + 1)) for r in room]
        padded = np.pad(picture, [(b, r - b) for b, r in zip(before, room, strict=True)])
        noisy = np.clip(padded + rng.normal(0, 1, padded.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"slice{n:05}.png")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well on a terminal; all but the first column to the
    right."""
    widths = [max(3, *(len(line[n]) for line in (columns, *rows))) for n in range(len(columns))]
    lines = [
        "| " + " | ".join(f"{c:{'>' if n else '<'}{w}}" for n, (c, w) in enumerate(cells)) + " |"
        for cells in (list(zip(line, widths, strict=True)) for line in (columns, *rows))
    ]
    ruler = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for n, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], ruler, *lines[1:]])


def machine() -> str:
    """One line about this machine and what computes on it."""
    name = platform.processor() or platform.machine()
    features: list[str] = []
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        name = next(line.split(": ")[1] for line in text.splitlines() if "model name" in line)
        known = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
        features = [f for f in known if f in text.split()]
    except (OSError, StopIteration, IndexError):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {name} ({', '.join(features) or 'no vector extensions known'})"


def own_peak_mb() -> float:
    """Peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1 << 20)


if __name__ == "__main__":
    print(json.dumps(_alone(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
