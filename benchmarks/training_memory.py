"""Peak memory of `segapp train` on few and on many cases.

    python benchmarks/training_memory.py [--cases 100 10000] [--steps 30]

Cases are PNG slices of 128 × 128 pixels with two structures, written to a temporary folder. Every
run has STEPS steps of the default recipe, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from measure import machine, segapp, table
from PIL import Image

SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    rows, first = [], 0.0
    for count in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder) / "data", Path(folder) / "run"
            write_cases(data, count)
            words = [f"data.root={data}", f"train.out={out}", "model.encoder_weights=none"]
            words += ["train.epochs=1", f"train.steps_per_epoch={args.steps}"]
            seconds, peak, _ = segapp("train", *words)
            first = first or peak
            steps = json.loads((out / "metrics.json").read_text())["steps"]
            assert steps == args.steps
        rows.append((f"{count:,}", f"{peak:.0f}", f"{peak / first - 1:+.0%}", f"{seconds:.0f}"))
    print(f"Training on few and many cases, {args.steps} steps, {machine()}:\n")
    print(table(("cases", "peak MB", "to the first", "seconds in all"), rows))


def write_cases(folder: Path, count: int, size: int = SIZE) -> None:
    """`count` cases of size × size in train, a tenth of them in val, at most 20."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    held_out = min(20, max(1, count // 10))
    for split, cases in (("train", count), ("val", held_out)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)
        for n in range(cases):
            place, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.25)
            away = np.hypot(x - place[0], y - place[1])
            mask = (away < radius).astype(np.uint8) + (away < radius / 2)
            image = 40 + 60 * mask + rng.normal(0, 12, mask.shape)
            name = f"{split}{n:06}.png"
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(
                folder / split / "images" / name
            )
            Image.fromarray(mask).save(folder / split / "masks" / name)


if __name__ == "__main__":
    main()
