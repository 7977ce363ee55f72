"""The scripts in benchmarks/ run and print what they promise."""

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
