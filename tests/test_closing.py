"""What a run learns about its model at its end."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import without_pictures, write_png_dataset
from PIL import Image
from test_train import run

from segapp import closing, validation
from segapp.cases import Case
from segapp.checkpoint import read_info, read_weights, save_model
from segapp.cli_text import verification_text
from segapp.errors import ConfigError, DataError, OutputError
from segapp.formats import read_scan
from segapp.predict import Predictor
from segapp.progress import inessential
from segapp.report.training import picture_names
from segapp.settings import Settings
from segapp.verify import verify_model

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("closing")
    data = write_png_dataset(root / "data", 12)
    with without_pictures():
        return run(data, root / "run", "train.epochs=8", "train.steps_per_epoch=8"), data


def test_a_run_ends_with_a_model_that_judges_its_results(trained) -> None:
    out, data = trained
    info = read_info(out)
    assert info.quality
    assert info.quality.novelty
    assert info.quality.novelty.scans == 12, "training and validation"
    assert info.quality.cases == len(info.data.images["val"]) == 2
    assert 0.5 < info.temperature < 2
    assert info.temperature != 1
    lines = (out / "judged.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["patient"] for line in lines] == [0, 1]
    picture = data / "images" / "case0.png"
    found = Predictor.load(out)(read_scan((picture,))).assessment
    assert found
    assert found.estimated_dice is None, "two validation cases are no ground for an estimate"
    assert "in validation, on 2 cases, too few to judge results by" in found.review[0]
    assert found.unlikeness is not None
    assert found.unlikeness < 1
    marked = "esults? of this model will be marked for review: this model reached"
    for name in ("log.txt", "report.html"):
        assert re.search(marked, (out / name).read_text(encoding="utf-8")), name


def test_a_scan_of_something_else_is_marked(trained, tmp_path: Path) -> None:
    out, data = trained
    picture = 255 - np.asarray(Image.open(data / "images" / "case0.png"))
    Image.fromarray(picture).save(tmp_path / "inverted.png")
    found = Predictor.load(out)(read_scan((tmp_path / "inverted.png",))).assessment
    assert found
    assert found.unlikeness is not None
    assert found.unlikeness > 1
    assert any("unlike the training scans" in reason for reason in found.review)


def test_the_recorded_figures_are_those_of_the_model_as_it_is(trained) -> None:
    out, _ = trained
    found = verify_model(out, "cpu")
    assert found["verified"]
    assert (
        found["now"]
        == found["recorded"]
        == json.loads((out / "metrics.json").read_text())["val"]["miou"]
    )
    assert (found["n"], found["n_missing"]) == (2, 0)
    for difference in (0.0, -1e-6):
        said = verification_text(found | {"difference": difference})
        assert "verified: differs by 0.0000, 0.005 are allowed" in said


def test_a_model_that_changed_is_not_verified(trained, tmp_path: Path) -> None:
    out, _ = trained
    info = read_info(out)
    metrics = {**info.metrics, "miou": info.metrics["miou"] + 0.01}
    path = tmp_path / "model.safetensors"
    save_model(path, read_weights(out), info.model_copy(update={"metrics": metrics}))
    found = verify_model(path)
    assert not found["verified"]
    assert found["difference"] == pytest.approx(-0.01, abs=1e-5)
    assert "NOT VERIFIED" in verification_text(found)
    record = info.data.model_copy(update={"images": {"val": ["0" * 64]}})
    save_model(path, read_weights(out), info.model_copy(update={"data": record}))
    with pytest.raises(DataError, match="holds none of the 1 cases"):
        verify_model(path)
    gone = info.data.model_copy(update={"root": str(tmp_path / "gone")})
    save_model(path, read_weights(out), info.model_copy(update={"data": gone}))
    with pytest.raises(DataError, match="run this where it was trained"):
        verify_model(path)


def test_every_nth_case_is_verified_as_it_was_validated(trained, tmp_path: Path) -> None:
    out, _ = trained
    info = read_info(out)
    path = tmp_path / "model.safetensors"
    half = info.model_copy(update={"metrics": {**info.metrics, "every": 2}})
    save_model(path, read_weights(out), half)
    found = verify_model(path)
    assert (found["n"], found["n_missing"]) == (1, 0)


@pytest.mark.slow
def test_volumes_are_verified_by_the_slices_that_were_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_MOST", 0.002)
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    for n in range(5):
        mask = np.zeros((40, 40, 30), np.uint8)
        mask[10:30, 12 : 26 + n, 5:25] = 1
        voxels = (100 * mask + rng.normal(60, 5, mask.shape)).astype(np.uint8)
        for part, array in (("images", voxels), ("masks", mask)):
            (data / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 3, 1])), data / part / f"{n}.nii")
    out = run(data, tmp_path / "run", "train.budget_minutes=0.08")
    info = read_info(out)
    assert info.metrics["every"] > 1, "the budget is too short to validate all slices"
    assert verify_model(out, "cpu")["verified"]
    lines = [json.loads(t) for t in (out / "judged.jsonl").read_text().splitlines()]
    whole = [sum(line["true"]) for line in lines]
    assert whole == pytest.approx([40 * 40 * 30], rel=0.35), "sizes are those of whole scans"


def test_folds_share_their_validation_cases(png_dataset: Path, tmp_path: Path) -> None:
    out = run(png_dataset, tmp_path / "run", "train.folds=3", "train.epochs=1")
    info, first = read_info(out), read_info(out / "fold1")
    assert info.quality
    assert first.quality
    assert (first.quality.cases, info.quality.cases, info.quality.patients) == (2, 6, 6)
    assert info.quality.margins[1].promised == pytest.approx(6 / 7)
    assert info.temperature == 1
    with pytest.raises(ConfigError, match="verify its folds"):
        verify_model(out)


def test_the_history_and_the_record_agree(trained) -> None:
    out, _ = trained
    best = read_info(out).metrics["epoch"]
    with (out / "history.csv").open(newline="") as file:
        row = next(r for r in csv.DictReader(file) if int(r["epoch"]) == best)
    assert float(row["val_miou"]) == pytest.approx(read_info(out).metrics["miou"], abs=1e-5)


@pytest.mark.pictures
def test_a_page_that_can_not_be_made_stops_no_run(
    png_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("too odd to draw")

    for name in ("write_run_page", "write_curves", "write_comparison"):
        monkeypatch.setattr(closing, name, fail)
    out = run(png_dataset, tmp_path / "run")
    assert (out / "metrics.json").is_file()
    assert read_info(out).quality
    assert not (out / "report.html").exists()
    for what in ("report.html", "curves.png", "a validation picture"):
        said = f"{what} could not be made (ValueError: too odd to draw)"
        assert said in (out / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("liver"), "KeyError: 'liver'"),
        (AssertionError(), "AssertionError"),
        (OSError(28, "No space left on device", "a.png"), "OSError: [Errno 28] No space left on"),
        (OutputError("a.png: can't be written\n(No space left)"), "a.png: can't be written (No"),
    ],
)
def test_what_could_not_be_made_is_said_with_the_cause(
    caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    with inessential("a picture"):
        raise error
    assert caplog.messages[0].startswith(f"a picture could not be made ({said}")
    assert "\n" not in caplog.messages[0]


@pytest.mark.pictures
def test_classes_may_have_any_name(tmp_path: Path) -> None:
    data = write_png_dataset(tmp_path / "data", 6)
    (data / "classes.txt").write_text("background\n$x_$\n<b>&{{ }}\n", encoding="utf-8")
    out = run(data, tmp_path / "run")
    assert (out / "curves.png").is_file()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;{{ }}" in page
    assert "<b>&" not in page


def test_a_run_that_learned_too_little_says_so() -> None:
    def doubts(steps: int, origin: str, budget: float | None = 1.0) -> list[str]:
        plan: Any = SimpleNamespace(settings=Settings(train={"budget_minutes": budget}))
        return closing.doubts_about(plan, {"steps": steps, "starting_weights": origin})

    short, random = doubts(15, "none (hub unreachable)")
    assert short.startswith("the network learned for 15 steps only")
    assert random.startswith("the encoder started from random weights (hub unreachable)")
    assert doubts(30, "imagenet (x@1)") == doubts(30, "none") == []


def test_pictures_have_names_of_their_own() -> None:
    cases = [
        Case(name, (Path(name),), Path(name), "p")
        for name in ("a/b", "a_b", "c", "x/" * 60 + "end", "y/" * 60 + "end")
    ]
    names = picture_names(cases)
    assert list(names.values())[:3] == ["a_b.png", "a_b_2.png", "c.png"]
    assert len(set(names.values())) == 5
    assert max(len(name) for name in names.values()) < 70
