"""The scripts in benchmarks/ run and print what they promise."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_png_dataset

from segapp.cases import find_cases
from segapp.check import read_case
from segapp.config import load_settings
from segapp.export import export_model
from segapp.plan import make_plan

ROOT = Path(__file__).parents[1]
VARIANTS = ("few", "two", "rgb", "odd", "thick", "large")


def call(script: str, *words: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def cells(text: str) -> list[list[str]]:
    """The rows of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


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


def train(data: Path, out: Path, *words: str) -> Path:
    """A model that has hardly learned anything."""
    command = [sys.executable, "-m", "segapp.cli", "train", f"data.root={data}"]
    command += [f"train.out={out}", "train.epochs=1", "model.encoder_weights=none", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "brain"
    words = ("train.steps_per_epoch=10", "model.encoder=resnet18")
    return train(ROOT / "data/brain", out, *words)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small slices in data/, and what was learned of them in run/."""
    root = tmp_path_factory.mktemp("small")
    for split, count in (("train", 12), ("test", 4)):
        write_png_dataset(root / "data" / split, count)
    words = ("train.steps_per_epoch=40", "model.encoder=resnet18")
    train(root / "data", root / "run", *words)
    return root


@pytest.mark.slow
@pytest.mark.timeout(1200)  # four exports, two of them quantised, on one core
def test_engines_are_compared_on_one_network(small: Path) -> None:
    words = ("--data", str(small / "data"), "--size", "64", "--onnx", "--seconds", "0.5")
    rows = cells(call("engines.py", str(small / "run"), *words))
    ratios = [float(row[3].removesuffix("×")) for row in rows]
    assert len(ratios) == 7, "plain, torch, OpenVINO three times, ONNX Runtime twice"
    assert ratios[0] == 1
    assert min(ratios) > 0
    scores = [float(row[5]) for row in rows]
    assert max(scores) - min(scores) < 0.02


@pytest.mark.slow
def test_folders_volumes_and_cold_starts_are_measured(run: Path, tmp_path: Path) -> None:
    export_model(run, export := tmp_path / "export")
    words = ("--files", "30", "--seconds", "0.5")
    ((files, _, pace, _, share, peak),) = cells(call("folder.py", str(export), *words))
    assert files == "30"
    assert float(pace) > 0
    assert share.endswith("%")
    assert 50 < float(peak) < 700
    text = call("cold_start.py", str(export), "--repeats", "1")
    assert [row[0] for row in cells(text)][:2] == ["one slice", "36 slices"]
    assert text.endswith("modules imported: False.\n")
    words = ("--shape", "64", "64", "20", "--seconds", "0.5")
    text = call("volume.py", str(run), *words)  # which exports it
    assert "64 × 64 × 20" in text
    ((_, engine, io, seconds, more, peak),) = cells(text)
    assert float(seconds) > float(engine) + float(io)
    assert more.startswith("+")
    assert float(peak) > 50


@pytest.mark.slow
def test_altered_scans_are_told_from_usual_ones(run: Path) -> None:
    """Also by a model that has hardly learned: what it compares is how slices look."""
    text = call("gate.py", str(run), "--also", "data/brain/t1.nii.gz")
    rows = [row for row in cells(text) if len(row) == 3]
    areas = {row[0]: float(row[1]) for row in rows if " of " in row[2]}
    assert len(areas) == 8
    usual = areas.pop("t1.nii.gz")
    assert usual < 0.9, "the slices that it learned from are nothing else"
    assert min(areas.values()) >= 0.9
    assert min(area for name, area in areas.items() if name != "upside down") >= 0.95
    grades = [row for row in rows if row[0] in ("as it is", "noise, sd 20")]
    assert float(grades[0][1]) > 10 * float(grades[1][1])
    assert -1 <= float(text.split("rank correlation over 384: ")[1]) <= 1


@pytest.mark.slow
def test_training_takes_no_more_memory_for_more_cases() -> None:
    few, many = cells(call("training_memory.py", "--cases", "20", "400", "--steps", "3"))
    assert (few[0], many[0]) == ("20", "400")
    assert abs(float(many[1]) / float(few[1]) - 1) < 0.1


@pytest.mark.slow
@pytest.mark.timeout(1200)  # trains and measures four of them
def test_smaller_networks_are_compared(small: Path) -> None:
    words = ("--data", str(small / "data"), "--minutes", "0.02", "--amounts", "0.5")
    rows = cells(call("compression.py", str(small / "run"), *words))
    names = ["original", "50 % of the channels cut", "50 % of the weights cut"]
    names += ["separable decoder"]  # RUN's is over a ResNet18 already
    assert [row[0].removesuffix(" (chosen)") for row in rows] == names
    assert sum("(chosen)" in row[0] for row in rows) == 1
    weights = [int(row[1].replace(",", "")) for row in rows]
    assert weights[1] < 0.5 * weights[0]
    assert weights[0] == weights[2] > weights[3]


@pytest.mark.slow
def test_spoilt_masks_are_looked_for(tmp_path: Path) -> None:
    words = "import sys; sys.path.insert(0, 'benchmarks'); import training_memory, pathlib; "
    words += f"training_memory.write_cases(pathlib.Path({str(tmp_path / 'data')!r}), 40, 64)"
    subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "segapp.cli", "train", f"data.root={tmp_path / 'data'}"]
    command += [f"train.out={tmp_path / 'run'}", "train.folds=2", "train.epochs=1"]
    command += ["train.steps_per_epoch=20", "model.encoder_weights=none"]
    subprocess.run(command, check=True, capture_output=True)
    words = ("label_review.py", str(tmp_path / "run"), str(tmp_path / "data"))
    text = call(*words, "--draws", "3")
    assert text.startswith("3 draws of 2 spoilt masks in 44; share of them among the first 4:")
    rows = cells(text)
    assert [row[0] for row in rows if not row[0].startswith("…")] == [
        *("shifted", "classes swapped", "a hole", "all"),
    ]
    assert [row[1] for row in rows if not row[0].startswith("…")] == ["2", "2", "2", "6"]
    assert all(row[3].endswith("%") for row in rows)


@pytest.mark.slow
def test_training_steps_are_compared() -> None:
    ours, plain = cells(call("train_speed.py", "--steps", "11", "--size", "64"))
    assert (ours[0], plain[0], plain[2]) == ("segapp", "plain", "1.00×")
    assert float(ours[1]) > 0


def test_the_model_of_many_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares by names are as unequal as it supposes, and it ends where it should."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    from segapp.ranks import Ranks

    names = [f"scans/{n:06}.png" for n in range(20_000)]
    for count in (2, 8, 40):
        shares = [sum(map(Ranks(rank, count).takes, names)) for rank in range(count)]
        assert sum(shares) == len(names)
        assert max(shares) == pytest.approx(scaling.largest_share(len(names), count), rel=0.04)
    fixed = {"list": 1e-4, "name": 1e-4, "read the list": 0.0, "merge": 0.0}
    args = (1_000_000, 10.0, 0.1, fixed)
    one = scaling.predicted(1, *args, 0.0)
    assert one == pytest.approx(10 + 100_000 + 200)
    assert scaling.predicted(2, *args, 0.0) == pytest.approx(one / 2, rel=0.01)
    assert scaling.predicted(1000, *args, 0.0) > 200 + 100
    slow = [scaling.predicted(count, *args, 0.01) for count in (10, 20)]
    assert slow[1] == pytest.approx(slow[0], rel=0.01), "the storage is busy from 10 on"


@pytest.mark.slow
def test_scaling_prints_its_tables() -> None:
    said = call("scaling.py", "--entries", "500", "--slices", "20")
    rows = cells(said.partition("1,000,000 slices:")[2])
    assert [row[0] for row in rows] == [f"{2**n:,}" for n in range(11)]
    assert rows[0][2] == "1.0"
    assert "Two of these, 20 slices: " in said
