"""Fifty steps in float64, alone or under torchrun: rank_steps.py DATA OUT CASES

CASES is JSON, words by names, each a training of its own: KEY=VALUE and frozen. Writes what each
learned to OUT/losses-COUNT.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from segapp.assemble import assemble, batches_at
from segapp.config import load_settings
from segapp.losses import make_loss
from segapp.mix import mix_batch
from segapp.optim import make_optimizer
from segapp.plan import make_plan
from segapp.step import make_accelerator, training_step
from segapp.together import Together, joined
from segapp.weights import freeze

STEPS = 50


def main(data: str, out: Path, cases: dict[str, list[str]]) -> None:
    with joined() as together, tempfile.TemporaryDirectory(dir=out) as own:
        root = Path(json.loads(together.texts(json.dumps(own))[0]))  # the first one's
        told = {name: train(data, root / name, words, together) for name, words in cases.items()}
        together.require_same("what was learned", json.dumps(told))
        if together.first:
            (out / f"losses-{together.ranks.count}.json").write_text(json.dumps(told))


def train(
    data: str, folder: Path, words: list[str], together: Together
) -> tuple[list[float], float]:
    """The losses of the steps, and the squared norm of the weights at the end. The word frozen: the
    encoder learns in the second half only."""
    frozen = "frozen" in words
    words = [word for word in words if word != "frozen"]
    plan = make_plan(load_settings(None, [f"data.root={data}", "train.out=x", *words]))
    folder.mkdir(exist_ok=True)
    parts = assemble(plan, folder, together=together)
    s, network = plan.settings, parts.network.double()
    optimizer = make_optimizer(network, s.optim)
    accelerator = make_accelerator("fp32", torch.device("cpu"), together)
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    loss = make_loss(s.loss, len(plan.classes), together.total)
    batches, losses = batches_at(parts, 1.0, 0), []
    encoder = network.get_submodule("encoder")
    for step in range(STEPS):
        network.train()
        freeze(encoder, frozen and step < STEPS / 2)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        micro = []
        for n in range(s.optim.accumulate):
            images, masks, _ = next(batches)
            mixed = mix_batch(images, masks, s.augment, (s.train.seed, step, n))
            micro.append(replace(mixed, images=mixed.images.double()))
        taken = training_step(
            *(accelerator, wrapped, optimizer, loss, micro, s.optim.clip_norm, 1, together)
        )
        losses.append(taken.loss)
    return losses, sum(float(p.detach().square().sum()) for p in network.parameters())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
