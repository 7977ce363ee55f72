"""Training from settings to run folder, on a data set of seconds."""

from __future__ import annotations

import csv
import html
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import SteppedTime, draw_case, without_pictures, write_png_dataset
from PIL import Image
from safetensors import safe_open

from segapp.checkpoint import read_info, read_weights
from segapp.config import load_settings
from segapp.errors import ConfigError, DataError, Interrupted, OutputError, TrainingError
from segapp.evaluate import evaluate_model
from segapp.plan import open_run, reopen_run
from segapp.predict import Predictor
from segapp.resume import State, saved_states
from segapp.step import Step
from segapp.train import run_plan

pytestmark = pytest.mark.usefixtures("no_pictures")

QUICK = (
    "model.encoder=resnet18",
    "model.encoder_weights=none",
    "optim.patch=64",
    "optim.batch_size=4",
    "train.precision=fp32",
    "train.epochs=2",
    "train.steps_per_epoch=3",
)


def run(data: Path, out: Path, *words: str, command: str = "") -> Path:
    given = {word.split("=")[0] for word in words}
    quick = [word for word in QUICK if word.split("=")[0] not in given]
    if "train.budget_minutes" in given:
        quick.remove("train.epochs=2")
    words = (f"data.root={data}", f"train.out={out}", *quick, *words)
    return run_plan(replace(open_run(load_settings(None, list(words))), command=command))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing came across, of data like `png_dataset`'s."""
    folder = tmp_path_factory.mktemp("whole")
    with without_pictures():
        return run(write_png_dataset(folder / "data"), folder / "run")


def resume(out: Path) -> Path:
    settings = load_settings(out / "config.yaml", [])
    settings.train.out = out
    plan = reopen_run(settings)
    return run_plan(plan) if plan else out


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.pictures
def test_a_run_leaves_what_the_contract_names(png_dataset: Path, tmp_path: Path) -> None:
    out = run(png_dataset, tmp_path / "run")
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("model.safetensors", "last", "config.yaml", "history.csv", "metrics.json"),
        *("curves.png", "augmentations.png", "overlays", "log.txt", "judged.jsonl", "report.html"),
        "began.json",
    }
    assert len(list((out / "overlays").glob("*.png"))) == 1  # one val case of six
    rows = history(out)
    assert list(rows[0]) == [
        *("epoch", "step", "lr", "train_loss", "val_loss", "val_miou", "val_dice"),
        *("iou_background", "iou_class_1", "iou_class_2"),
        *("seconds", "images_per_second", "peak_memory_mb"),
    ]
    assert [row["step"] for row in rows] == ["3", "6"]
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert "auto" not in json.dumps(resolved)
    info = read_info(out)
    assert info.starting_weights == "none"
    assert info.training is not None
    assert info.training.dtypes == ("uint8",)
    assert {s: len(cases) for s, cases in info.data.images.items()} == {"train": 5, "val": 1}
    assert info.data.patients == {"train": 5, "val": 1}
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["steps"] == 6
    chosen = rows[figures["best_epoch"] - 1]
    assert figures["val"]["miou"] == pytest.approx(float(chosen["val_miou"]), abs=1e-5)


@pytest.mark.pictures
def test_the_page_of_a_run_holds_everything(png_dataset: Path, tmp_path: Path) -> None:
    words = (f"data.root={png_dataset}", f"train.out={tmp_path / 'run'}", *QUICK)
    plan = open_run(load_settings(None, list(words)))
    out = run_plan(replace(plan, command="segapp train data.root='a b'"))
    page = (out / "report.html").read_text(encoding="utf-8")
    figures = json.loads((out / "metrics.json").read_text())
    assert f"{figures['val']['miou']:.3f}" in page
    assert "segapp train data.root=&#39;a b&#39;" in page
    assert "<td>max_lr</td><td>0.002</td>" in page
    assert page.count("<svg role") == 1
    assert "the model, epoch 2" in page
    assert "Validation has 1 case: its figures may be luck" in page
    assert "http:" not in page
    assert "https:" not in page
    assert len(list((out / "overlays" / "progress").glob("*.png"))) <= 7
    assert len(page) < 1_000_000


def test_the_written_model_scores_what_training_said(png_dataset: Path, tmp_path: Path) -> None:
    """The file, read back by the path users walk, is the network that was validated."""
    out = run(png_dataset, tmp_path / "run", "train.epochs=4", "train.steps_per_epoch=10")
    said = json.loads((out / "metrics.json").read_text())["val"]
    weights = read_weights(out)
    predictor = Predictor.load(out)
    network = predictor.engine.network  # type: ignore[attr-defined]
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[name])
    measured = evaluate_model(out, png_dataset, None, tmp_path / "evaluation")
    assert measured["split"] == "val", "set aside by the run, and known by its hash"
    assert said["miou"] > 0.4, "it learned nothing, so equal figures would say nothing"
    assert measured["n_seen_in_training"] == 1
    assert measured["miou"] == pytest.approx(said["miou"], abs=1e-6)


def test_two_runs_of_one_seed_are_equal(whole: Path, png_dataset: Path, tmp_path: Path) -> None:
    one, other = whole, run(png_dataset, tmp_path / "other")
    assert [r["train_loss"] for r in history(one)] == [r["train_loss"] for r in history(other)]
    a, b = read_weights(one), read_weights(other)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    another = run(png_dataset, tmp_path / "another", "train.seed=1")
    assert [r["train_loss"] for r in history(one)] != [r["train_loss"] for r in history(another)]


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during the `step`-th optimiser step."""
    import segapp.train as module

    real, count = module.training_step, 0

    def counted(*args: object) -> object:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "training_step", counted)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_interrupt_saves_and_resume_ends_where_the_whole_run_does(
    whole: Path, png_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(Interrupted, match="--resume"):
            run(png_dataset, tmp_path / "part", command="segapp train one two")
    part = tmp_path / "part"
    began = json.loads((part / "began.json").read_text())
    assert any(line.startswith("flips: off, ") for line in began["reasons"])
    with safe_open(saved_states(part / "last")[0], "numpy") as file:
        assert json.loads(file.metadata()["state"])["run"]["every"] == 1, "as it was decided"
    assert not (part / "metrics.json").exists()
    assert not (part / ".cache").exists()
    resume(part)
    page = (part / "report.html").read_text(encoding="utf-8")
    for line in (*began["reasons"], "segapp train one two"):
        assert html.escape(line) in page, "of the first sitting, which decided it"
    assert [r["train_loss"] for r in history(part)] == [r["train_loss"] for r in history(whole)]
    a, b = read_weights(whole), read_weights(part)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_resume_of_a_finished_run_says_so(
    png_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = run(png_dataset, tmp_path / "run", "train.epochs=1")
    before = (out / "model.safetensors").read_bytes()
    with caplog.at_level("INFO", "segapp"):
        resume(out)
    further = f"data.root={png_dataset} model.init_from={out} train.out={out}-2"
    assert f"{out} is finished; to train further: segapp train {further}" in caplog.text
    assert (out / "model.safetensors").read_bytes() == before


def test_resume_of_a_run_killed_before_its_first_save_starts_again(
    png_dataset: Path, tmp_path: Path
) -> None:
    out = run(png_dataset, tmp_path / "run")
    for name in ("metrics.json", "model.safetensors"):
        (out / name).unlink()
    shutil.rmtree(out / "last")
    (out / ".cache").mkdir()  # what a kill leaves
    resume(out)
    assert (out / "metrics.json").is_file()
    assert not (out / ".cache").exists()


def test_resume_refuses_changed_data(
    png_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(Interrupted):
            run(png_dataset, tmp_path / "run")
    image, _ = draw_case(99)
    Image.fromarray(image).save(png_dataset / "images" / "case0.png")
    with pytest.raises(DataError, match="changed"):
        resume(tmp_path / "run")


def test_an_occupied_folder_is_refused(png_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    (tmp_path / "run-2").mkdir()
    with pytest.raises(ConfigError, match=rf"not empty.* train\.out={tmp_path / 'run-3'}$"):
        run(png_dataset, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_written_is_refused(png_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run(png_dataset, tmp_path / "file" / "run")


@pytest.mark.parametrize("word", ["model.encoder=resnet35", "model.encoder_weights=no.pth"])
def test_settings_that_cannot_be_followed_leave_no_run_behind(
    png_dataset: Path, tmp_path: Path, word: str
) -> None:
    with pytest.raises(ConfigError):
        run(png_dataset, tmp_path / "run", word)
    assert not (tmp_path / "run").exists()


def test_bad_data_leaves_no_run_behind(png_dataset: Path, tmp_path: Path) -> None:
    (png_dataset / "masks" / "case3.png").unlink()
    with pytest.raises(DataError, match=r"case3\.png: its mask is missing"):
        run(png_dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_the_batch(
    png_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import segapp.train as module

    broken = Step(float("nan"), taken=False, finite=False, pieces=1)
    monkeypatch.setattr(module, "training_step", lambda *_: broken)
    with pytest.raises(TrainingError, match=r"nan.*case\d"):
        run(png_dataset, tmp_path / "run")


def test_a_budget_is_kept(
    png_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stepped_time: SteppedTime,
) -> None:
    import segapp.train as module

    real = module.training_step

    def half_a_second(*args: Any) -> Step:
        stepped_time.sleep(0.5)
        return real(*args)

    monkeypatch.setattr(module, "training_step", half_a_second)
    out = run(png_dataset, tmp_path / "run", "train.budget_minutes=0.15")
    rows = history(out)
    assert float(rows[-1]["lr"]) < 1e-6, "the schedule must end with the budget"
    # 9 s, of which 2 are for writing the model
    assert int(rows[-1]["step"]) == 14
    assert sum(float(row["seconds"]) for row in rows) == 7


def test_patience_stops(png_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter((0.3, 0.5, 0.4, 0.5, 0.6))  # the running mean rises all the time
    judge = State.judge
    monkeypatch.setattr(State, "judge", lambda state, *_: judge(state, next(scores)))
    words = ("train.epochs=12", "train.steps_per_epoch=1", "train.patience=2")
    out = run(png_dataset, tmp_path / "run", *words)
    assert len(history(out)) == 4
    assert json.loads((out / "metrics.json").read_text())["epochs"] == 4


def test_training_outside_the_main_thread(png_dataset: Path, tmp_path: Path) -> None:
    """Signals can't be caught there; it must work all the same."""
    thread = threading.Thread(target=run, args=(png_dataset, tmp_path / "run", "train.epochs=1"))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(("architecture", "patch"), [("unet", "full"), ("unetplusplus", "64")])
def test_architectures_and_whole_slices(
    png_dataset: Path, tmp_path: Path, architecture: str, patch: str
) -> None:
    words = (f"model.architecture={architecture}", f"optim.patch={patch}", "train.epochs=1")
    out = run(png_dataset, tmp_path / "run", *words)
    assert read_info(out).architecture.name == architecture
    assert Predictor.load(out)


@pytest.mark.slow
def test_png_slices_and_the_volumes_they_came_from_both_train(tmp_path: Path) -> None:
    """The same pictures as PNG slices and as NIfTI volumes; each serves a volume of the other."""
    pairs = [draw_case(n) for n in range(8)]
    png, nifti = tmp_path / "png", tmp_path / "nifti"
    for root in (png, nifti):
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)
    for n, pair in enumerate(pairs):
        for part, array in zip(("images", "masks"), pair, strict=True):
            Image.fromarray(array).save(png / part / f"p{n // 2}_slice{n % 2}.png")
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])  # columns to the left, rows to posterior
    for n in range(4):
        for position, part in enumerate(("images", "masks")):
            slices = [pairs[2 * n + k][position].T for k in range(2)]
            nib.save(nib.Nifti1Image(np.stack(slices, 2), affine), nifti / part / f"p{n}.nii.gz")
    from_png = run(png, tmp_path / "run_png")
    from_nifti = run(nifti, tmp_path / "run_nifti")
    data = read_info(from_png).data
    assert (len(data.images["val"]), data.patients["val"]) == (2, 1), "both slices of one patient"
    for model in (from_png, from_nifti):
        assert read_info(model).preprocessing.slice_axis == "axial"
        result = evaluate_model(model, nifti, "all", tmp_path / f"{model.name}_evaluation")
        assert result["n"] == 4
        assert result["n_failed"] == 0


def test_resume_of_a_folder_that_is_no_run_touches_nothing(
    png_dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    settings = load_settings(None, [f"data.root={png_dataset}", "model.encoder=resnet35"])
    (folder / "config.yaml").write_text(settings.to_yaml())
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no run"):
        resume(folder)
    (folder / "log.txt").write_text("")  # now it could be a run killed before its first save
    with pytest.raises(ConfigError, match="resnet35"):
        resume(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "config.yaml").is_file()


def test_classes_on_opposite_sides_are_not_flipped(tmp_path: Path) -> None:
    root = tmp_path / "sides"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for n in range(6):
        mask = np.zeros((48, 64), np.uint8)
        mask[10 + n : 20 + n, 4 + n : 24], mask[10 + n : 20 + n, 40 : 60 - n] = 1, 2
        noise = np.random.default_rng(n).integers(0, 40, mask.shape)
        Image.fromarray((100 * (mask > 0) + noise).astype(np.uint8)).save(
            root / "images" / f"c{n}.png"
        )
        Image.fromarray(mask).save(root / "masks" / f"c{n}.png")
    out = run(root, tmp_path / "run", "train.epochs=1", "train.steps_per_epoch=1")
    assert yaml.safe_load((out / "config.yaml").read_text())["augment"]["flip_p"] == 0
    assert "lie on opposite sides" in (out / "log.txt").read_text()
