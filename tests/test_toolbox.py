"""Every technique as a whole run: it changes what is learned, and a resume changes nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import draw_case, without_pictures
from PIL import Image
from safetensors.numpy import save_file
from test_train import history, interrupt_at, resume, run

from segapp.checkpoint import read_info, read_weights
from segapp.config import load_settings
from segapp.errors import ConfigError, Interrupted
from segapp.evaluate import evaluate_model
from segapp.formats import read_scan
from segapp.predict import Predictor
from segapp.train import find_rate

pytestmark = pytest.mark.usefixtures("no_pictures")

TECHNIQUES = {
    "average of the weights": ["optim.ema=0.9"],
    "dropout": ["model.dropout=0.3"],
    "stochastic depth": ["model.stochastic_depth=0.5"],
    "label smoothing": ["loss.label_smoothing=0.2"],
    "class weights": ["loss.class_weights=auto"],
    "focal loss": ["loss.name=focal_ce"],
    "Tversky loss": ["loss.name=tversky_ce"],
    "cross-entropy alone": ["loss.name=ce"],
    "mixup": ["augment.mixup_p=1", "augment.mixup_alpha=1"],
    "cutmix": ["augment.cutmix_p=1"],
    "patches on rare classes": ["augment.foreground_p=1"],
    "random operations": ["augment.policy=randaugment"],
    "pairs of operations": ["augment.policy=autoaugment"],
    "strong augmentation": ["augment.policy=strong"],
    "no augmentation": ["augment.policy=none"],
    "gradient accumulation": ["optim.accumulate=2"],
    "cosine": ["optim.schedule=cosine"],
    "polynomial": ["optim.schedule=poly"],
    "warm-up": ["optim.warm_up=0.6"],
    "progressive resizing": ["train.progressive=0.5,0.75,1", "optim.patch=128"],
    "separable convolutions": ["model.separable=true"],
    "plain decoder": ["model.residual=false"],
    "no skip from the image": ["model.full_resolution=false"],
    "a whole encoder": ["model.encoder_depth=5"],
    "another architecture": ["model.architecture=fpn"],
}
# Those that keep something of their own from step to step, or change what an epoch is
REMEMBER = {
    *("average of the weights", "dropout", "mixup"),
    *("gradient accumulation", "progressive resizing"),
}
# Those that go by chance, by the step or by what the data hold: a resumed run must find it again
DEPENDING = {
    *("stochastic depth", "cutmix", "random operations", "warm-up", "cosine", "polynomial"),
    *("class weights", "patches on rare classes"),
}
LENGTH = ("train.epochs=1", "train.steps_per_epoch=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices with room for patches of 64 to move in."""
    root = tmp_path_factory.mktemp("toolbox") / "data"
    for n in range(6):
        for part, array in zip(("images", "masks"), draw_case(n, (80, 96)), strict=True):
            (root / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / part / f"case{n}.png")
    return root


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with without_pictures():
        return run(data, tmp_path_factory.mktemp("plain") / "run", *LENGTH)


@pytest.mark.parametrize(
    "technique",
    [pytest.param(t, marks=[] if t in REMEMBER else [pytest.mark.slow]) for t in TECHNIQUES],
)
def test_a_technique_changes_what_is_learned_and_resumes_where_that_could_differ(
    data: Path,
    plain: Path,
    tmp_path: Path,
    technique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*TECHNIQUES[technique], *LENGTH]
    whole = run(data, tmp_path / "whole", *words)
    a, plainly = read_weights(whole), read_weights(plain)
    same = all(
        name in a and a[name].shape == w.shape and np.array_equal(a[name], w)
        for name, w in plainly.items()
    )
    assert not same
    if technique not in REMEMBER | DEPENDING:
        return
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(Interrupted):
            run(data, tmp_path / "part", *words)
    resume(tmp_path / "part")
    b = read_weights(tmp_path / "part")
    assert [r["train_loss"] for r in history(whole)] == [
        r["train_loss"] for r in history(tmp_path / "part")
    ]
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_the_technique_test_can_fail(data: Path, plain: Path, tmp_path: Path) -> None:
    """The same settings give the same weights, so that another weight is a technique's doing."""
    again = run(data, tmp_path / "again", *LENGTH)
    a, b = read_weights(plain), read_weights(again)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def encoder_file(path: Path) -> Path:
    """An encoder's weights, as a user would bring them."""
    from segapp.model import build_network

    torch.manual_seed(5)
    encoder = build_network("unet", "resnet18", 1, 2).get_submodule("encoder")
    save_file({n: t.numpy().copy() for n, t in encoder.state_dict().items()}, path)
    return path


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_is_until_it_is_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"model.encoder_weights={encoder_file(tmp_path / 'e.safetensors')}"
    words = [given, "train.epochs=1", "train.steps_per_epoch=4", "model.encoder_depth=5"]
    frozen = read_weights(run(data, tmp_path / "frozen", *words, "optim.freeze_encoder=0.99"))
    from safetensors.numpy import load_file

    start = load_file(tmp_path / "e.safetensors")
    for name, array in start.items():
        np.testing.assert_array_equal(frozen[f"encoder.{name}"], array)
    half = read_weights(run(data, tmp_path / "half", *words, "optim.freeze_encoder=0.5"))
    assert not np.array_equal(half["encoder.conv1.weight"], start["conv1.weight"])
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(Interrupted):
            run(data, tmp_path / "part", *words, "optim.freeze_encoder=0.5")
    resume(tmp_path / "part")
    part = read_weights(tmp_path / "part")
    assert all(np.array_equal(half[name], part[name]) for name in half)


@pytest.mark.slow
def test_the_first_layers_of_an_encoder_move_less(data: Path, tmp_path: Path) -> None:
    given = f"model.encoder_weights={encoder_file(tmp_path / 'e.safetensors')}"
    words = [given, "train.epochs=1", "optim.weight_decay=0"]
    slow = read_weights(run(data, tmp_path / "slow", *words, "optim.encoder_lr=0.01"))
    fast = read_weights(run(data, tmp_path / "fast", *words))
    from safetensors.numpy import load_file

    start = load_file(tmp_path / "e.safetensors")["conv1.weight"]
    moved = [np.abs(w["encoder.conv1.weight"] - start).mean() for w in (slow, fast)]
    assert 0 < moved[0] < 0.1 * moved[1]


def test_sparing_an_encoder_that_starts_from_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.freeze_encoder spares pretrained weights"):
        run(data, tmp_path / "run", "optim.freeze_encoder=0.5")
    assert not (tmp_path / "run").exists()


def volumes(root: Path, count: int = 4) -> Path:
    """Volumes in which only the neighbours tell what a slice is: its own pixels say nothing."""
    for n in range(count):
        rng = np.random.default_rng(n)
        side = rng.random((64, 64, 6)) < 0.5
        image = np.where(side, 100, 50).astype(np.float32)
        mask = np.zeros(side.shape, np.uint8)
        mask[..., 1:] = side[..., :-1]  # the slice below
        for part, array in (("images", image), ("masks", mask)):
            (root / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([1, 1, 3, 1])), root / part / f"v{n}.nii.gz")
    return root


@pytest.mark.slow
def test_neighbouring_slices_are_seen_in_training_and_in_prediction(tmp_path: Path) -> None:
    data = volumes(tmp_path / "data")
    words = ["train.epochs=4", "train.steps_per_epoch=15", "augment.policy=none"]
    words += ["optim.max_lr=0.01"]
    scores = []
    for context in (0, 1):
        out = run(data, tmp_path / f"run{context}", *words, f"data.context_slices={context}")
        result = evaluate_model(out, data, "val", tmp_path / f"evaluation{context}")
        scores.append(result["miou"])
        assert result["miou"] == pytest.approx(
            json.loads((out / "metrics.json").read_text())["val"]["miou"], abs=1e-6
        )
    assert scores[0] < 0.6, "a slice alone says nothing"
    assert scores[1] > scores[0] + 0.1


@pytest.mark.slow
def test_a_model_of_some_classes_is_measured_on_the_whole_masks(data: Path, tmp_path: Path) -> None:
    out = run(data, tmp_path / "run", "data.limit=class_2")
    info = read_info(out)
    assert ([c.value for c in info.classes], info.merged) == ([0, 2], (1,))
    result = evaluate_model(out, data, "all", tmp_path / "evaluation")
    assert result["n_failed"] == 0
    pixels = sum(int((draw_case(n, (80, 96))[1] == 2).sum()) for n in range(6))
    assert result["classes"]["class_2"]["true_voxels"] == pixels
    assert result["classes"]["background"]["true_voxels"] == 6 * 80 * 96 - pixels


@pytest.mark.slow
def test_going_on_from_a_model_with_other_classes(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "first", "train.epochs=3", "train.steps_per_epoch=15")
    second = run(
        data,
        tmp_path / "second",
        f"model.init_from={first}",
        "data.classes=background,square,class_1",
        "train.epochs=1",
        "train.steps_per_epoch=1",
        "optim.max_lr=1e-9",
    )
    info = read_info(second)
    assert info.starting_weights.startswith("segapp model sha256:")
    assert info.preprocessing == read_info(first).preprocessing
    scan = read_scan([data / "images" / "case0.png"])
    logits = []
    for model in (first, second):
        predictor = Predictor.load(model)
        batch = predictor.preprocessing.prepare(scan).network_input(0, 1)
        logits.append(predictor.engine(batch)[0])
    # One step at a rate of nearly 0 moves nothing but the norms' statistics, and these by a tenth.
    assert np.abs(logits[1][0] - logits[0][0]).mean() < 0.1  # background
    assert np.abs(logits[1][2] - logits[0][1]).mean() < 0.1  # class_1, now the third
    assert np.abs(logits[1][1] - logits[0][2]).mean() > 0.5  # a new class


@pytest.mark.slow
def test_folds_become_one_model_that_averages_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(("1 step", "2 steps", "3 steps"))
    said = "segapp.kfold.doubts_about"
    monkeypatch.setattr(said, lambda *_: ["hardly learned", next(steps)])
    out = run(data, tmp_path / "run", "train.folds=3", "train.epochs=1")
    figures = json.loads((out / "metrics.json").read_text())
    each = [json.loads((out / f"fold{n}" / "metrics.json").read_text()) for n in (1, 2, 3)]
    scores = [m["val"]["miou"] for m in each]
    assert figures["val"]["miou"] == pytest.approx(np.mean(scores), abs=1e-5)
    assert figures["val"]["miou_sd"] == pytest.approx(np.std(scores, ddof=1), abs=1e-5)
    assert figures["val"]["n"] == 6, "each case was validated once"
    scan = read_scan([data / "images" / "case0.png"])
    maps = []
    for model in (out, *(out / f"fold{n}" for n in (1, 2, 3))):
        predictor = Predictor.load(model)
        predictor.temperature = 1.0  # a fold's own is for the fold alone
        prepared = predictor.preprocessing.prepare(scan)
        maps.append(next(iter(predictor.probabilities(prepared)))[1])
    np.testing.assert_allclose(maps[0], np.mean(maps[1:], axis=0), atol=1e-5)
    assert len(read_info(out).data.images["train"]) == 6, "evaluation knows that all were seen"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("hardly learned") == page.count("fold2: 2 steps") == 1


@pytest.mark.slow
def test_folds_go_on_after_an_interruption(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "segapp")
    words = ["train.folds=2", "train.epochs=1", "train.steps_per_epoch=2"]
    whole = run(data, tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)  # the first step of the second fold
        with pytest.raises(Interrupted, match=f"fold 2 of 2 .*--resume {tmp_path / 'part'}$"):
            run(data, tmp_path / "part", *words)
    first = (tmp_path / "part" / "fold1" / "model.safetensors").stat().st_mtime_ns
    assert not (tmp_path / "part" / "model.safetensors").exists()
    resume(tmp_path / "part")
    assert (tmp_path / "part" / "fold1" / "model.safetensors").stat().st_mtime_ns == first
    a, b = read_weights(whole), read_weights(tmp_path / "part")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    page = (tmp_path / "part" / "report.html").read_text(encoding="utf-8")
    assert 'href="fold2/report.html"' in page
    assert (tmp_path / "part" / "fold2" / "report.html").is_file()
    resume(tmp_path / "part")
    assert "is finished" in caplog.text


def test_folds_that_can_not_begin_leave_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        run(data, tmp_path / "run", "train.folds=2", "model.encoder=nonsense")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_folds_of_a_data_set_with_a_val_split_are_measured_on_their_own(
    data: Path, tmp_path: Path
) -> None:
    """Its val cases are trained on in all folds but one, and must not pass for unseen."""
    root = tmp_path / "declared"
    for n in range(6):
        for part in ("images", "masks"):
            place = root / ("val" if n < 3 else "train") / part
            place.mkdir(parents=True, exist_ok=True)
            (place / f"case{n}.png").write_bytes((data / part / f"case{n}.png").read_bytes())
    out = run(root, tmp_path / "run", "train.folds=3", "train.epochs=1")
    fold = evaluate_model(out / "fold1", root, "val", tmp_path / "e1")
    assert fold["n"] == 2
    said = json.loads((out / "fold1" / "metrics.json").read_text())["val"]["miou"]
    assert fold["miou"] == pytest.approx(said, abs=1e-6)
    whole = evaluate_model(out, root, None, tmp_path / "e2")
    assert (whole["split"], whole["n_seen_in_training"]) == ("all", 6)


@pytest.mark.slow
def test_after_a_limit_the_val_split_is_measured(data: Path, tmp_path: Path) -> None:
    out = run(data, tmp_path / "run", "data.limit=2", "data.classes=background,disc,square")
    result = evaluate_model(out, data, None, tmp_path / "evaluation")
    assert (result["split"], result["n"]) == ("val", 1)


@pytest.mark.slow
def test_one_fold_alone_is_the_same_as_among_all(data: Path, tmp_path: Path) -> None:
    words = ["train.folds=2", "train.epochs=1"]
    whole = run(data, tmp_path / "whole", *words)
    alone = run(data, tmp_path / "alone", *words, "train.fold=2")
    a, b = read_weights(whole / "fold2"), read_weights(alone)
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_search_for_the_rate_leaves_a_plot_and_no_run(data: Path, tmp_path: Path) -> None:
    words = [f"data.root={data}", f"train.out={tmp_path / 'run'}", "model.encoder=resnet18"]
    words += ["model.encoder_weights=none", "optim.patch=64", "train.precision=fp32"]
    suggestion, plot = find_rate(load_settings(None, words))
    assert 1e-5 < suggestion < 1
    assert not (tmp_path / "run").exists()
    names = {path.name for path in plot.parent.iterdir()}
    assert names == {"learning_rates.png", "learning_rates.csv"}
