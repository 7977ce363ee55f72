"""Patches: their size, the network's depth that follows, and where they are placed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segapp.config import load_settings
from segapp.plan import Plan, make_plan


def plan_of(root: Path, *words: str) -> Plan:
    return make_plan(load_settings(None, [f"data.root={root}", "train.epochs=1", *words]))


def write_slices(root: Path, width: int, height: int) -> Path:
    for part in ("images", "masks"):
        (root / part).mkdir()
        for n in range(2):
            pixels = np.zeros((height, width), np.uint8)
            pixels[:9] = 1
            Image.fromarray(pixels).save(root / part / f"{n}.png")
    return root


@pytest.mark.parametrize(
    ("side", "words", "patch"),
    [
        ((48, 40), (), 64),  # of slices no larger than that
        ((65, 40), (), 96),  # the least of others
        ((256, 256), (), 192),  # three quarters
        ((300, 200), (), 192),  # of the mean side, 187.5, to the next multiple of 32
        ((500, 500), (), 256),  # the most
        ((256, 256), ("preprocess.size=160",), 128),  # after resizing: 120
    ],
)
def test_patches_are_three_quarters_of_a_slice(
    tmp_path: Path, side: tuple[int, int], words: tuple[str, ...], patch: int
) -> None:
    root = write_slices(tmp_path, *side)
    assert plan_of(root, *words).settings.optim.patch == patch


@pytest.mark.parametrize(
    ("side", "words", "share"),
    [
        ((256, 256), (), 0.0),
        ((440, 440), (), 0.0),  # 256² are 0.339 of it
        ((450, 450), (), 0.33),  # 0.324
        ((450, 450), ("preprocess.size=400",), 0.0),
        ((450, 450), ("optim.patch=full",), 0.0),
        ((256, 256), ("optim.patch=128",), 0.33),
        ((450, 450), ("augment.foreground_p=0",), 0.0),
        ((450, 450), ("augment.policy=none",), 0.33),
    ],
)
def test_patches_that_show_little_are_placed_on_classes(
    tmp_path: Path, side: tuple[int, int], words: tuple[str, ...], share: float
) -> None:
    plan = plan_of(write_slices(tmp_path, *side), *words)
    assert plan.settings.augment.foreground_p == share
    assert ("33% about a class" in "\n".join(plan.reasons)) == (share > 0)


@pytest.mark.parametrize(
    ("overrides", "depth", "stride"),
    [
        ([], 3, 8),  # of patches of 96
        (["optim.patch=160"], 3, 8),
        (["optim.patch=192"], 4, 16),
        (["optim.patch=352"], 4, 16),
        (["optim.patch=384"], 5, 32),
        (["optim.patch=64"], 3, 8),
        (["optim.patch=512"], 5, 32),
        (["optim.patch=full"], 5, 32),
        (["model.encoder=resnet50", "optim.patch=256"], 4, 16),
        (["model.encoder=vgg11_bn"], 5, 32),
        (["model.encoder_depth=5"], 5, 32),
        (["model.encoder_depth=3"], 3, 8),
        (["model.architecture=unetplusplus", "model.encoder_depth=4"], 4, 16),
    ],
)
def test_slices_are_padded_to_what_the_encoder_needs(
    png_dataset: Path, overrides: list[str], depth: int, stride: int
) -> None:
    plan = plan_of(png_dataset, *overrides)
    assert (plan.settings.model.encoder_depth, plan.preprocessing.stride) == (depth, stride)
