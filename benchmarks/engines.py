"""Images a second of one network by each engine, and what each costs in accuracy.

    python benchmarks/engines.py [RUN] [--data data/brain] [--size 256] [--onnx]

RUN is a run folder, runs/brain unless told; it is exported into a temporary folder with --calibrate
DATA, as it is and in 8 bits. Plain is PyTorch as one would first write it: float32, channels first,
eager, batches of 8. The engines are those of `segapp predict`, called by as many threads as they
can use. Each side runs in a process of its own on the same slices of SIZE × SIZE pixels; mIoU is
that of DATA's test split, else val, by the same engine. Ratios are to plain.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from measure import command, exported, machine, own_peak_mb, rate, table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/brain"))
    parser.add_argument("--data", type=Path, default=Path("data/brain"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=6, help="that each engine is timed")
    parser.add_argument("--onnx", action="store_true", help="ONNX Runtime too")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        name, model, precision = args.side
        print(json.dumps(measure(name, model, precision, args.data, args.size, args.seconds)))
        return
    with ExitStack() as stack:
        plain, int8 = ("--calibrate", args.data), ("--int8", "--calibrate", args.data, "--unequal")
        sides: list[tuple[str, Path, str]] = [
            ("plain", args.run, "fp32"),
            ("torch", args.run, "auto"),
        ]
        for to in ("openvino", "onnx")[: 1 + args.onnx]:
            print(f"exporting to {to} …", file=sys.stderr, flush=True)
            folder = stack.enter_context(exported(args.run, "--to", to, *plain))
            sides += [(to, folder, "fp32")] + ([(to, folder, "auto")] if to == "openvino" else [])
            folder = stack.enter_context(exported(args.run, "--to", to, *int8))
            sides.append((f"{to} int8", folder, "auto"))
        rows = []
        for name, folder, precision in sides:
            print(f"{name}, {precision} …", file=sys.stderr, flush=True)
            words = [sys.executable, __file__, "--data", str(args.data), "--size", str(args.size)]
            words += ["--seconds", str(args.seconds)]
            _, _, text = command([*words, "--side", name, str(folder), precision])
            rows.append((name, json.loads(text.splitlines()[-1])))
    base = rows[0][1]
    print(f"Slices of {args.size} × {args.size} pixels, {machine()}:\n")
    cells = [
        (
            name,
            row["precision"],
            f"{row['rate']:.1f}",
            f"{row['rate'] / base['rate']:.2f}×",
            f"{row['peak_mb']:.0f}",
            f"{row['miou']:.4f}",
            f"{row['miou'] - base['miou']:+.4f}",
        )
        for name, row in rows
    ]
    print(table(("engine", "precision", "images/s", "ratio", "peak MB", "mIoU", "to plain"), cells))


def measure(name: str, model: str, precision: str, data: Path, size: int, seconds: float) -> dict:
    """One side: images a second on prepared slices, peak memory, and mIoU."""
    from segapp.cases import find_cases
    from segapp.checkpoint import read_info
    from segapp.engines import load_engine, open_export
    from segapp.evaluate import evaluate_cases
    from segapp.exported import read_export
    from segapp.predict import Predictor

    info = read_info(Path(model))
    if name == "plain":
        engine = plain_engine(model)
    elif name == "torch":
        engine = load_engine(Path(model), info, "cpu", "torch")
    else:
        engine = open_export(Path(model), read_export(Path(model)), precision)
    measured, peak = rate(engine, info.preprocessing.inputs, size, seconds), own_peak_mb()
    dataset = find_cases(data)
    cases = dataset.split("test") or dataset.split("val")
    result = evaluate_cases(Predictor.of(engine, info), cases, info.ignore, info.merged)
    return {
        "rate": measured,
        "peak_mb": peak,
        "miou": result.miou,
        "precision": engine.precision,
    }


def plain_engine(model: str):
    import torch

    from segapp.checkpoint import read_info
    from segapp.engines.torch import load_network

    network = load_network(Path(model), read_info(Path(model))).eval()

    class Plain:
        batch_size, calls_at_once, precision = 8, 1, "fp32"

        @torch.inference_mode()
        def __call__(self, batch):
            return network(torch.from_numpy(batch)).numpy()

    return Plain()


if __name__ == "__main__":
    main()
