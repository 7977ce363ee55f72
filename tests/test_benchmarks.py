"""The scripts in benchmarks/ run and print what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segapp.cases import find_cases
from segapp.check import read_case
from segapp.config import load_settings
from segapp.plan import make_plan

ROOT = Path(__file__).parents[1]
VARIANTS = ("few", "two", "rgb", "odd", "thick", "large")


def call(script: str, *words: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("variants")
    assert call("variants.py", str(root)).count("slices") == len(VARIANTS)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train", "test", "dtype", "classes", "shape"),
    [
        ("few", 12, 24, "uint8", 4, (1, 233, 197)),
        ("two", 70, 24, "uint8", 2, (1, 233, 197)),
        ("rgb", 70, 24, "uint8", 4, (3, 233, 197)),
        ("odd", 70, 24, "uint16", 4, (1, 233, 197)),
        ("thick", 11, 12, "uint8", 4, (1, 233, 197)),
        ("large", 70, 24, "uint8", 4, (1, 1024, 1024)),
    ],
)
def test_each_variant_is_what_it_says_and_can_be_trained_on(
    variants: Path, name: str, train: int, test: int, dtype: str, classes: int, shape: tuple
) -> None:
    cases = find_cases(variants / name)
    counts = [len(cases.split(s)) for s in ("train", "test")]
    assert counts == [train, test]
    scan, mask = read_case(cases.split("test")[0])
    assert scan.voxels.dtype == np.dtype(dtype)
    assert (scan.channels, *scan.voxels.shape[1:3]) in {shape, (shape[0], shape[2], shape[1])}
    assert mask.voxels.max() == classes - 1
    plan = make_plan(load_settings(None, [f"data.root={variants / name}"]))
    assert len(plan.classes) == classes


@pytest.mark.slow
def test_the_recipe_is_measured_beside_its_rival(tmp_path: Path) -> None:
    words = ("--seconds", "8", "--seeds", "1", "--out", str(tmp_path))
    first = call("recipe.py", *words)
    assert "1 seeds" in first
    assert " 8 s " in first
    assert first == call("recipe.py", *words), "a finished run is not repeated"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has hardly learned anything."""
    out = tmp_path_factory.mktemp("runs") / "brain"
    words = ("data.root=data/brain", f"train.out={out}", "train.epochs=1")
    words += ("train.steps_per_epoch=20", "model.encoder_weights=none")
    command = [sys.executable, "-m", "segapp.cli", "train", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_engines_are_compared_on_one_network(run: Path) -> None:
    text = call("engines.py", str(run), "--size", "96", "--onnx", "--seconds", "0.5")
    ratios = [float(ratio) for ratio in re.findall(r"(\d+\.\d\d)×", text)]
    assert len(ratios) == 7, "plain, torch, OpenVINO three times, ONNX Runtime twice"
    assert ratios[0] == 1
    assert min(ratios) > 0
    scores = [float(line.split()[-2]) for line in text.splitlines()[2:]]
    assert max(scores) - min(scores) < 0.02


@pytest.mark.slow
def test_folders_volumes_and_cold_starts_are_measured(run: Path) -> None:
    (row,) = call("folder.py", str(run), "--files", "30").splitlines()[3:]
    assert row.split()[0] == "30"
    text = call("cold_start.py", str(run), "--repeats", "1")
    assert "one slice" in text
    assert text.endswith("modules imported: False\n")
    text = call("volume.py", str(run), "--shape", "64", "64", "20")
    assert "64 × 64 × 20" in text
    assert "peak" in text
