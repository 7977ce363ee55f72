"""What `segapp train` makes of 1, 3 and 10 minutes with nothing but the data, beside nnU-Net.

    python benchmarks/recipe.py [DATA] [--seconds 60 180 600] [--seeds 3] [--out DIR]

DATA is a data set with the splits train and test; data/brain unless told. For each length and seed
`segapp train` runs as a user would type it, in a process of its own, its imports and the reading of
the data inside the budget, and `segapp evaluate` measures its model on the test split. Weights are
drawn at random even where pretrained ones lie in a cache, so that the figures are the same
everywhere. Runs that are in DIR already are not repeated.

nnU-Net's figures are those of benchmarks/nnunet.json, measured once per data set: version 2's 2D
configuration, trained on the CPU with its planning and preprocessing inside the same budget, on all
of `train`. segapp learns from `train` too, and chooses its model on `val`, or where there is none
on a fifth of `train`, which it then does not learn from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

NNUNET = Path(__file__).with_name("nnunet.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=Path("data/brain"))
    parser.add_argument("--seconds", type=int, nargs="+", default=[60, 180, 600])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    args = parser.parse_args()
    rival = json.loads(NNUNET.read_text()).get(args.data.resolve().name, {})
    lines = []
    for seconds in args.seconds:
        runs = [run(args.data, seconds, seed, args.out) for seed in range(args.seeds)]
        scores = [r["miou"] for r in runs]
        theirs = rival.get("test_miou", {}).get(str(seconds))
        median = statistics.median(scores)
        line = f"{seconds:5} s  {median:10.4f}{min(scores):10.4f}{max(scores):10.4f}"
        line += f"{max(r['seconds'] for r in runs):8.0f} s"
        line += f"{theirs:9.4f}{median - theirs:+9.4f}" if theirs else ""
        lines.append(line)
    head = "".join(f"{name:>10}" for name in ("median", "least", "most", "longest"))
    if rival:
        head += f"{'nnU-Net':>9}{'ahead':>9}"
    print(f"test mIoU, {args.seeds} seeds\n budget {head}")
    print("\n".join(lines))
    if rival:
        print(f"nnU-Net: {rival['measured']}")


def run(data: Path, seconds: int, seed: int, out: Path) -> dict:
    """Train and evaluate one model: {"miou": of the test split, "iou": by class, "seconds"}."""
    folder = out / f"{data.resolve().name}-{seconds}s-{seed}"
    result = folder / "benchmark.json"
    if result.is_file():
        return json.loads(result.read_text())
    print(f"{folder.name} …", file=sys.stderr, flush=True)
    settings = {
        "data.root": data,
        "train.out": folder,
        "train.budget_minutes": seconds / 60,
        "train.seed": seed,
        "model.encoder_weights": "none",
    }
    began = time.perf_counter()
    given = [f"{key}={value}" for key, value in settings.items()]
    segapp("train", *given)
    took = time.perf_counter() - began
    where = [str(folder), str(data), "--split", "test", "--out", str(folder / "test")]
    summary = json.loads(segapp("evaluate", *where, "--json"))
    scores = {name: c["iou"] for name, c in summary["classes"].items()}
    figures = {"miou": summary["miou"], "iou": scores, "seconds": round(took, 1)}
    result.write_text(json.dumps(figures) + "\n")
    print(f"{folder.name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return figures


def segapp(*words: str) -> str:
    """What a command prints; ends with what it complained about where it failed."""
    command = [sys.executable, "-m", "segapp.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
