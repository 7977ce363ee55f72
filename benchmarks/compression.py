"""Smaller networks beside the one they come from: weights, time of a slice, test mIoU.

    python benchmarks/compression.py [RUN] [--data data/brain] [--minutes 1] [--amounts 0.1,…]

RUN, runs/brain unless told, is pruned by `segapp prune`; beside what comes of it stand networks
trained by the defaults on the same data for as long as RUN: RUN's with a decoder of depthwise
convolutions, and one over a ResNet18, unless RUN's is. Each is exported to OpenVINO, as it is and
in 8 bits, in a temporary folder; all take turns on the same slice of 256 × 256 pixels, one call
after another with all threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import machine, segapp, table

SIZE, CALLS = 256, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/brain"))
    parser.add_argument("--data", type=Path, default=Path("data/brain"))
    parser.add_argument("--minutes", type=float, default=1, help="of training after each cut")
    parser.add_argument("--amounts", default="0.1,0.2,0.3,0.5")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say(f"pruning {args.run}")
        words = ["--data", args.data, "--amounts", args.amounts, "--minutes", args.minutes]
        _, _, text = segapp("prune", args.run, *words, "--out", folder / "pruned", "--json")
        result = json.loads(text.splitlines()[-1])
        runs = {
            f"{100 * p['amount']:g} % of the {p['method']} cut" if p["amount"] else "original": p
            for p in result["points"]
        }
        folders = {name: Path(p["model"]) for name, p in runs.items()}
        chosen = [name for name, p in runs.items() if p == result["chosen"]]
        folders |= others(args.run, args.data, folder)
        rows = measured(folders, args.data, folder)
    first = rows["original"]
    cells = [
        (
            name + (" (chosen)" if name in chosen else ""),
            f"{r['weights']:,}",
            f"{r['ms']:.2f}",
            f"{first['ms'] / r['ms']:.2f}×",
            f"{r['miou']:.4f}",
            f"{r['ms8']:.2f}",
            f"{first['ms8'] / r['ms8']:.2f}×",
            f"{r['miou8']:.4f}",
        )
        for name, r in rows.items()
    ]
    print(f"Smaller networks, ms for a slice of {SIZE} × {SIZE}, {machine()}:\n")
    columns = ("network", "weights", "ms", "ratio", "test mIoU", "ms, int8", "ratio", "mIoU, int8")
    print(table(columns, cells))


def say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def others(run: Path, data: Path, folder: Path) -> dict[str, Path]:
    """Other networks, trained for as long as `run`."""
    from segapp.checkpoint import read_info

    info = read_info(run)
    train, encoder = info.settings["train"], info.architecture.encoder
    length = ("budget_minutes",) if train["budget_minutes"] else ("epochs", "steps_per_epoch")
    same = [f"data.root={data}", "model.encoder_weights=none"]
    same += [f"train.{key}={train[key]}" for key in length]
    networks = {"separable decoder": [f"model.encoder={encoder}", "model.separable=true"]}
    if encoder != "resnet18":
        networks["ResNet18"] = ["model.encoder=resnet18"]
    for name, words in networks.items():
        say(f"training: {name}")
        segapp("train", *same, *words, f"train.out={folder / name}")
    return {name: folder / name for name in networks}


def measured(folders: dict[str, Path], data: Path, folder: Path) -> dict[str, dict[str, float]]:
    """For each model its weights, time and test mIoU, as it is exported and in 8 bits."""
    from segapp.cases import find_cases
    from segapp.checkpoint import read_info, read_weights
    from segapp.evaluate import evaluate_cases
    from segapp.export import export_model
    from segapp.predict import Predictor
    from segapp.prune import in_turns

    predictors: dict[tuple[str, str], Predictor] = {}
    for name, run in folders.items():
        say(f"exporting: {name}")
        out, out8 = (folder / f"export-{len(predictors)}{bits}" for bits in ("", "-8"))
        export_model(run, out, calibrate=data, unequal=True)
        export_model(run, out8, int8=True, calibrate=data, unequal=True)
        predictors[name, ""] = Predictor.load(out, single=True)
        predictors[name, "8"] = Predictor.load(out8, single=True)
    inputs = read_info(folders["original"]).preprocessing.inputs
    batch = np.random.default_rng(0).normal(size=(1, inputs, SIZE, SIZE)).astype(np.float32)
    times = in_turns([lambda p=p: p.engine(batch) for p in predictors.values()], CALLS)
    rows: dict[str, dict[str, float]] = {}
    for ((name, bits), predictor), ms in zip(predictors.items(), times, strict=True):
        info = read_info(folders[name])
        dataset = find_cases(data)
        cases = dataset.split("test") or dataset.split("val")
        score = evaluate_cases(predictor, cases, info.ignore, info.merged).miou
        weights = sum(w.size for w in read_weights(folders[name]).values())
        rows.setdefault(name, {"weights": weights})
        rows[name] |= {f"ms{bits}": ms, f"miou{bits}": score}
    return rows


if __name__ == "__main__":
    main()
