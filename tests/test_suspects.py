"""`segapp check --model`: which mask is suspect, who judges it, and what is written."""

from __future__ import annotations

import csv
import json
import logging
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from test_cli import run
from test_predict import CLASSES, brightness

from segapp import suspects
from segapp.cases import Case, list_cases
from segapp.checkpoint import Architecture, DataRecord, ModelInfo, save_model
from segapp.errors import DataError, ModelFileError
from segapp.files import sha256
from segapp.report.pairs import Shown
from segapp.scan import Segmentation
from segapp.seen import hashes_of
from segapp.suspects import Judge, assign, find_judges, judge_cases, review, suspects_text
from segapp.suspicion import tally

VALUES = np.array([0, 100, 255], np.uint8)  # of the masks, by class


def add_case(root: Path, name: str, labels: np.ndarray, mask: np.ndarray, level: int) -> Path:
    """An image whose brightness says what it shows, darker by `level` so that all differ."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    image = np.array([10, 100, 200], np.uint8)[labels] - np.uint8(level)
    Image.fromarray(image).save(root / "images" / f"{name}.png")
    Image.fromarray(VALUES[mask]).save(root / "masks" / f"{name}.png")
    return root / "images" / f"{name}.png"


def picture() -> np.ndarray:
    labels = np.zeros((40, 48), np.uint8)
    labels[8:28, 8:30] = 1
    labels[10:18, 12:20] = 2
    return labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four masks as they should be, and one with a hole."""
    root = tmp_path / "data"
    for n in range(5):
        mask = picture()
        if n == 3:
            mask[20:26, 20:28] = 0
        add_case(root, f"case{n}", picture(), mask, n)
    return root


def info_of(trained_on: list[Path], folds: int | None = None) -> ModelInfo:
    return ModelInfo(
        architecture=Architecture(
            name="unet", encoder="resnet18", in_channels=1, classes=3, residual=True
        ),
        preprocessing=brightness().preprocessing,
        classes=CLASSES,
        settings={"train": {"folds": folds}},
        metrics={},
        starting_weights="none",
        data=DataRecord(root="x", images={"train": [sha256(p) for p in trained_on]}),
    )


def write_model(folder: Path, info: ModelInfo) -> Path:
    save_model(folder / "model.safetensors", {"w": np.zeros(1, np.float32)}, info)
    return folder


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every model segments by brightness; the names of those that were loaded."""
    names: list[str] = []

    def load(model: Path, device: str):
        names.append(model.name)
        return brightness()

    monkeypatch.setattr(suspects.Predictor, "load", load)
    return names


def image(data: Path, n: int) -> Path:
    return data / f"images/case{n}.png"


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "suspects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_mask_with_a_hole_comes_first(data: Path, tmp_path: Path, loaded: list[str]) -> None:
    model = write_model(tmp_path / "run", info_of([]))
    found = review(list_cases(data), find_judges(model), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [r["rank"] for r in rows] == ["1", "2", "3", "4", "5"]
    assert (rows[0]["case"], rows[0]["mask"]) == ("case3", str(data / "masks/case3.png"))
    assert rows[0]["reason"].startswith("background where the model sees grey: 48 pixels in one")
    assert "(a hole?)" in rows[0]["reason"]
    assert {row["reason"] for row in rows[1:]} == {"no difference"}
    grey = 20 * 22 - 64
    assert float(rows[0]["dice"]) == pytest.approx((2 * (grey - 48) / (2 * grey - 48) + 1) / 2)
    assert float(rows[0]["expected_dice"]) == pytest.approx(1, abs=1e-3)
    assert float(rows[0]["score"]) > 0.1 > float(rows[1]["score"])
    assert (found["n"], found["n_seen"], found["n_failed"]) == (5, 0, 0)
    with Image.open(tmp_path / "out" / "suspects.png") as sheet:
        assert sheet.width > 3 * 480


def test_who_judges(data: Path, tmp_path: Path) -> None:
    """Each case the fold that did not train on it, whichever others did."""
    write_model(tmp_path / "run", info_of([image(data, n) for n in range(4)], folds=2))
    write_model(tmp_path / "run/fold1", info_of([image(data, 0), image(data, 1)]))
    write_model(tmp_path / "run/fold2", info_of([image(data, 2), image(data, 1)]))
    judges = find_judges(tmp_path / "run")
    assert [j.name for j in judges] == ["fold1", "fold2"]
    assert judges == find_judges(tmp_path / "run/model.safetensors")
    cases = list_cases(data).cases
    chosen = [(s.judge.name, s.seen) for s in assign(cases, judges, hashes_of(cases))]
    assert chosen == [
        ("fold2", False),
        ("fold1", True),  # both have it
        ("fold1", False),
        ("fold1", False),  # no fold has it
        ("fold1", False),
    ]


def test_being_validated_on_is_not_being_trained_on(data: Path, tmp_path: Path) -> None:
    info = info_of([])
    info.data.images["val"] = [sha256(image(data, 0))]
    info.data.earlier.append(sha256(image(data, 1)))  # trained on by the model it went on from
    judges = find_judges(write_model(tmp_path / "run", info))
    cases = list_cases(data).cases
    assert [s.seen for s in assign(cases, judges, hashes_of(cases))] == [False, True] + 3 * [False]


def test_a_run_that_lacks_a_fold_is_one_model(data: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "run", info_of([image(data, 0)], folds=2))
    write_model(tmp_path / "run/fold1", info_of([]))
    assert [j.name for j in find_judges(tmp_path / "run")] == ["run"]


def test_what_a_model_learned_is_marked_and_ranked_with_the_others(
    data: Path,
    tmp_path: Path,
    loaded: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "segapp")
    model = write_model(tmp_path / "run", info_of([image(data, 3), image(data, 1)]))
    found = review(list_cases(data), find_judges(model), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert {r["case"]: r["seen"] for r in rows} == {
        f"case{n}": "yes" if n in (1, 3) else "no" for n in range(5)
    }
    assert rows[0]["case"] == "case3", "a mask that even its pupil contradicts comes first"
    lines = list(suspects_text(found))
    assert lines[1].startswith("5 masks, 3 judged by a model that was not trained on it; 1 differs")
    assert lines[3].endswith(" (trained on)")
    assert found["n_seen"] == 2
    assert "the model that judges 2 of 5 masks was trained on them" in caplog.text


def test_images_in_an_archive_are_known_by_their_hashes(data: Path, loaded: list[str]) -> None:
    trained = [image(data, n) for n in (0, 1)]
    info = info_of(trained)
    with zipfile.ZipFile(data / "images" / "site.zip", "w") as archive:
        for n in range(5):
            archive.write(image(data, n), f"case{n}.png")
            image(data, n).unlink()
    (data / "masks").rename(data / "site")
    (data / "masks").mkdir()
    (data / "site").rename(data / "masks" / "site")
    cases = list_cases(data).cases
    assert len(cases) == len(hashes_of(cases)) == 5
    judge = Judge(Path("m"), info)
    assert [s.seen for s in assign(cases, [judge], hashes_of(cases))] == [True] * 2 + [False] * 3
    gone = replace(cases[0], images=(Path("nowhere.png"),))
    assert hashes_of([gone]) == {}


def test_each_fold_is_loaded_once(data: Path, tmp_path: Path, loaded: list[str]) -> None:
    write_model(tmp_path / "run", info_of([], folds=2))
    write_model(tmp_path / "run/fold1", info_of([image(data, n) for n in (0, 2)]))
    write_model(tmp_path / "run/fold2", info_of([image(data, n) for n in (1, 3)]))
    review(list_cases(data), find_judges(tmp_path / "run"), tmp_path / "out")
    assert sorted(loaded) == ["fold1", "fold2"]
    assert {r["case"]: r["model"] for r in rows_of(tmp_path / "out")} == {
        **{"case0": "fold2", "case1": "fold1", "case2": "fold2"},
        **{"case3": "fold1", "case4": "fold1"},
    }


def test_a_case_that_can_not_be_read_is_listed_and_the_others_go_on(
    data: Path, tmp_path: Path, loaded: list[str]
) -> None:
    image(data, 0).write_bytes(b"damaged")
    odd = picture()
    Image.fromarray(np.where(odd == 1, 7, 0).astype(np.uint8)).save(data / "masks/case1.png")
    model = write_model(tmp_path / "run", info_of([]))
    found = review(list_cases(data), find_judges(model), tmp_path / "out")
    assert (found["n"], found["n_failed"]) == (3, 2)
    rows = rows_of(tmp_path / "out")
    assert [(r["rank"], r["case"]) for r in rows[3:]] == [("", "case0"), ("", "case1")]
    assert "case0.png" in rows[3]["reason"]
    assert "mask value 7 is outside the classes" in rows[4]["reason"]
    assert rows[4]["score"] == rows[4]["dice"] == ""


def test_a_model_of_other_classes_is_refused(data: Path, tmp_path: Path, loaded: list[str]) -> None:
    for path in data.glob("masks/*.png"):
        Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8)).save(path)
    model = write_model(tmp_path / "run", info_of([]))
    with pytest.raises(DataError, match=r"mask value 1 is outside .*grey = 100.* trained on these"):
        review(list_cases(data), find_judges(model), tmp_path / "out")
    assert not (tmp_path / "out" / "suspects.csv").exists()


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        find_judges(tmp_path)


def test_the_worst_slice_of_a_volume(tmp_path: Path, loaded: list[str]) -> None:
    labels = np.stack([picture().T] * 5, axis=2)  # (I, J, K)
    mask = labels.copy()
    mask[20:28, 20:26, 3] = 0
    for part, array in (("images", np.array([10, 100, 200])[labels]), ("masks", VALUES[mask])):
        (tmp_path / "data" / part).mkdir(parents=True)
        volume = nib.Nifti1Image(array.astype(np.uint8), np.diag([-1, -1, 3, 1]))
        nib.save(volume, tmp_path / "data" / part / "v.nii.gz")
    model = write_model(tmp_path / "run", info_of([]))
    suspect = assign(list_cases(tmp_path / "data").cases, find_judges(model), {})[0]
    pairs: list[tuple] = []

    def keep(case: Case, segmentation: Segmentation, truth: np.ndarray) -> None:
        pairs.append(truth.shape)

    def add(case: Case, slab: np.ndarray, truth: np.ndarray) -> None:
        part = tally(slab, truth)
        suspect.tally = suspect.tally + part if suspect.tally else part

    judge_cases([suspect], add, keep)
    assert pairs == [(48, 40, 5)]
    assert suspect.tally is not None
    k, row, column = suspect.tally.peak
    assert k == 3
    assert 20 <= row < 26
    assert 20 <= column < 28
    review(list_cases(tmp_path / "data"), find_judges(model), tmp_path / "out")
    (listed,) = rows_of(tmp_path / "out")
    assert (
        listed["reason"] == "background where the model sees grey: 48 voxels in one piece (a hole?)"
    )


def test_only_the_worst_are_looked_at_for_a_shift_and_drawn(
    data: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (0, 2):
        moved = np.roll(picture(), (3 + n, 2), (0, 1))
        Image.fromarray(VALUES[moved]).save(data / f"masks/case{n}.png")
    monkeypatch.setattr(suspects, "MOST", 2)
    model = write_model(tmp_path / "run", info_of([]))
    drawn: list[str] = []
    monkeypatch.setattr(
        suspects, "write_pairs", lambda heading, shown, *_: drawn.extend(s.title for s in shown)
    )
    review(list_cases(data), find_judges(model), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert {r["case"] for r in rows[:2]} == {"case0", "case2"}
    assert all(r["reason"].startswith("shifted? moving the mask 2 left") for r in rows[:2])
    assert drawn == [f"{n}  {r['case']}" for n, r in enumerate(rows[:2], 1)]


def test_no_case_at_all(tmp_path: Path, loaded: list[str]) -> None:
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    Image.fromarray(picture()).save(tmp_path / "data/images/alone.png")
    model = write_model(tmp_path / "run", info_of([]))
    found = review(list_cases(tmp_path / "data"), find_judges(model), tmp_path / "out")
    assert (found["n"], found["masks"], found["sheet"]) == (0, [], None)


def test_masks_without_a_difference_are_no_suspects(
    data: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the model is less sure of them than of what it contradicts."""
    model, out = write_model(tmp_path / "run", info_of([image(data, 4)])), tmp_path / "out"
    tallied = suspects.tally
    monkeypatch.setattr(
        suspects,
        "tally",
        lambda *arrays: replace(t := tallied(*arrays), score=t.score if t.differs else 9.0),
    )
    drawn: list[str] = []
    draw = suspects.write_pairs

    def write(heading: str, shown: list[Shown], *more: Any) -> None:
        drawn.extend(item.title for item in shown)
        draw(heading, shown, *more)

    monkeypatch.setattr(suspects, "write_pairs", write)
    found = review(list_cases(data), find_judges(model), out)
    assert drawn == ["1  case3"]
    assert (found["masks"][0]["case"], found["masks"][1]["score"]) == ("case3", 9)
    lines = list(suspects_text(found))
    assert [line.split()[0] for line in lines if "case" in line] == ["rank", "1"]
    Image.fromarray(VALUES[picture()]).save(data / "masks/case3.png")
    found = review(list_cases(data), find_judges(model), out)
    assert found["sheet"] is None
    assert not (out / "suspects.png").exists(), "that of the run before"
    assert len(rows_of(out)) == 5
    nothing = "nothing suspicious, not a pixel differs from the model's results"
    assert list(suspects_text(found)) == [
        "",
        f"5 masks, 4 judged by a model that was not trained on it: {nothing}",
        f"all masks: {out / 'suspects.csv'}",
    ]


# The command


def test_the_command(data: Path, tmp_path: Path, loaded: list[str]) -> None:
    model, out = write_model(tmp_path / "run", info_of([])), tmp_path / "out"
    plain = run("check", data, "--out", out)
    result = run("check", data, "--model", model, "--out", out)
    assert result.code == plain.code, "review never changes the exit code"
    assert f"pictures: {out / 'sheet.png'}" in result.out
    said = "5 masks, 5 judged by a model that was not trained on it; 1 differs from the model's "
    assert said in result.out
    assert "\n   1   " in result.out
    assert f"pictures: {out / 'suspects.png'}   all masks: {out / 'suspects.csv'}" in result.out
    assert "suspects" not in plain.out
    found = json.loads(run("check", data, "--model", model, "--out", out, "--json").out)
    assert found["suspects"]["masks"][0]["case"] == "case3"
    assert found["errors"] == 0


def test_the_command_with_what_is_no_model(data: Path, tmp_path: Path) -> None:
    result = run("check", data, "--model", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert "expected a run folder or a model file" in result.error
    assert not (tmp_path / "out").exists()


def test_the_command_with_what_is_no_data_set(tmp_path: Path) -> None:
    model = write_model(tmp_path / "run", info_of([]))
    words = ("check", tmp_path / "nowhere", "--model", model, "--out", tmp_path / "out")
    assert run(*words).code == 2
    result = run(*words, "--json")
    assert result.code == 2
    assert json.loads(result.out)["suspects"] is None
