"""One training step of segapp against the plain loop, on the same network, weights and batches.

    python benchmarks/train_speed.py [--steps 200] [--size 256] [--data data/brain]

Plain: the network in float32, channels first, albumentations in the loop, AdamW, torch's own
memory handling. segapp: bf16 autocast where the CPU has it, channels-last, freed memory kept, its
own data pipeline. The network is a U-Net over all five stages of a ResNet34, without the skip from
the image: larger than what `segapp train` takes. Both see the same patches of SIZE × SIZE pixels in
batches of 8 in the same order; each side runs in a fresh process, so that neither inherits the
other's memory settings. Printed are images a second over the steps after the tenth (data included),
their ratio, peak memory, and the mean loss over the last quarter of the steps, which tells whether
both learn the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, WARM_UP = 8, 10
MAX_LR = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--data", type=Path, default=Path("data/brain"))
    parser.add_argument("--side", choices=("plain", "segapp"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    from measure import machine, table  # not for a side, whose memory is told how to behave first

    if args.steps <= WARM_UP:
        parser.error(f"--steps must be more than the {WARM_UP} that are not timed")
    if args.side:
        print(json.dumps(run_side(args.side, args.data, args.steps, args.size)))
        return
    sides = {}
    for side in ("segapp", "plain"):
        print(
            f"{side}: {args.steps} steps of {BATCH} × {args.size}² …", file=sys.stderr, flush=True
        )
        command = [sys.executable, __file__, "--side", side, "--data", str(args.data)]
        command += ["--steps", str(args.steps), "--size", str(args.size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sides[side] = json.loads(done.stdout.splitlines()[-1])
    ours, plain = sides["segapp"], sides["plain"]
    rows = [
        (
            name,
            f"{s['images_per_second']:.2f}",
            f"{s['images_per_second'] / plain['images_per_second']:.2f}×",
            f"{s['peak_memory_mb']:.0f}",
            f"{s['loss']:.4f}",
        )
        for name, s in sides.items()
    ]
    precision = f"{ours['precision']} against fp32, {ours['threads']} threads"
    print(f"Training steps of {BATCH} × {args.size}², {precision}, {machine()}:\n")
    print(table(("", "images/s", "ratio", "peak MB", "mean loss"), rows))
    difference = 100 * abs(ours["loss"] / plain["loss"] - 1)
    print(
        f"\nThe losses are {difference:.2f} % apart over the last {max(1, args.steps // 4)} steps."
    )


def run_side(side: str, root: Path, steps: int, size: int) -> dict:
    """Train for `steps` and measure. Imports stay inside: the segapp side sets up memory first."""
    if side == "segapp":
        from segapp.machine import keep_freed_memory

        keep_freed_memory()
    import torch

    from segapp.config import load_settings
    from segapp.data import SliceCache
    from segapp.model import build_network
    from segapp.plan import make_plan
    from segapp.step import peak_memory_mb

    settings = load_settings(None, [f"data.root={root}", f"optim.patch={size}"])
    plan = make_plan(settings)
    with tempfile.TemporaryDirectory() as folder:
        cache = SliceCache(Path(folder), plan.preprocessing.channels)
        cases = plan.dataset.split("train")
        cache.fill(cases, plan.preprocessing, plan.classes, plan.ignore)
        torch.manual_seed(0)
        network = build_network("unet", "resnet34", plan.preprocessing.channels, len(plan.classes))
        loop = segapp_loop if side == "segapp" else plain_loop
        losses, seconds, precision = loop(network, cache, plan, steps)
    last = losses[-max(1, steps // 4) :]
    return {
        "images_per_second": (steps - WARM_UP) * BATCH / seconds,
        "loss": sum(last) / len(last),
        "peak_memory_mb": peak_memory_mb(),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


def plain_loop(network, cache, plan, steps: int) -> tuple[list[float], float, str]:
    """What one writes first: fp32, channels first, one sample after the other."""
    import numpy as np
    import torch

    from segapp.augment import Augmentation
    from segapp.data import sample_order
    from segapp.losses import make_loss
    from segapp.optim import make_optimizer

    shape = 2 * (plan.settings.optim.patch,)
    augment = Augmentation(plan.settings.augment, plan.preprocessing.channels, shape)
    optimizer = make_optimizer(network, plan.settings.optim)
    for group in optimizer.param_groups:
        group["lr"], group["fused"] = MAX_LR, False
    order = sample_order(cache.empty, 0)
    loss_function = make_loss(plan.settings.loss, len(plan.classes))
    network.train()
    losses, began = [], time.perf_counter()
    for step in range(steps):
        if step == WARM_UP:
            began = time.perf_counter()
        samples = []
        for _ in range(BATCH):
            number, index = next(order)
            samples.append(augment(*cache[index], seed=(0, number, index)))
        images = torch.from_numpy(np.stack([image for image, _ in samples]))
        masks = torch.from_numpy(np.stack([mask for _, mask in samples]))
        loss = loss_function(network(images), masks)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), plan.settings.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, time.perf_counter() - began, "fp32"


def segapp_loop(network, cache, plan, steps: int) -> tuple[list[float], float, str]:
    """The steps and batches of `segapp train`, on this network."""
    import torch

    from segapp.augment import Augmentation
    from segapp.data import Samples, make_batches
    from segapp.engines.torch import choose_device, choose_precision
    from segapp.losses import make_loss
    from segapp.mix import Mixed
    from segapp.optim import make_optimizer
    from segapp.step import make_accelerator, training_step

    device = choose_device("cpu")
    precision = choose_precision("auto", device)
    shape = 2 * (plan.settings.optim.patch,)
    augment = Augmentation(plan.settings.augment, plan.preprocessing.channels, shape)
    optimizer = make_optimizer(network, plan.settings.optim)
    for group in optimizer.param_groups:
        group["lr"] = MAX_LR
    accelerator = make_accelerator(precision, device)
    network = network.to(memory_format=torch.channels_last)
    network, optimizer = accelerator.prepare(network, optimizer)
    batches = make_batches(Samples(cache, augment, 0), BATCH, workers=0)
    loss_function = make_loss(plan.settings.loss, len(plan.classes))
    network.train()
    losses, began = [], time.perf_counter()
    for step in range(steps):
        if step == WARM_UP:
            began = time.perf_counter()
        images, masks, _ = next(batches)
        done = training_step(
            *(accelerator, network, optimizer, loss_function),
            *([Mixed(images, masks)], plan.settings.optim.clip_norm),
        )
        losses.append(done.loss)
    return losses, time.perf_counter() - began, precision


if __name__ == "__main__":
    main()
