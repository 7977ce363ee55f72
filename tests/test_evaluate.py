import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from test_predict import BrightnessEngine, brightness

from segapp import evaluate
from segapp.cases import find_cases
from segapp.checkpoint import Architecture, DataRecord, ModelInfo
from segapp.cli_text import evaluation_table
from segapp.errors import ConfigError, DataError, OutputError
from segapp.evaluate import evaluate_cases, evaluate_model, write_evaluation
from segapp.figures import summary
from segapp.files import sha256
from segapp.scan import make_classes

# Pixels 0, 100, 200 are what the engine calls background, grey, bright: mask values 0, 100, 255.
CERTAIN = 1 / (1 + 2 * math.exp(-16))  # p(grey | 100): both neighbours are 4 away, squared
EDGE = 1 / (1 + math.exp(-16) + math.exp(-64))  # p(background | 0)


def add_case(root, name, pixels, mask, split=""):
    for part, rows in (("images", pixels), ("masks", mask)):
        path = root / split / part / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(rows, np.uint8)).save(path)


@pytest.fixture
def two_cases(tmp_path):
    root = tmp_path / "data"
    add_case(root, "a", [[0, 0, 100, 100]], [[0, 0, 100, 0]])  # grey: 1 hit, 1 too much
    add_case(root, "b", [[0, 0, 0, 100]], [[0, 0, 100, 100]])  # grey: 1 hit, 1 missed
    return root


def test_figures_by_hand(two_cases):
    result = evaluate_cases(brightness(), find_cases(two_cases).cases, None)
    assert result.cases[0].matrix.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert result.matrix.tolist() == [[4, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert result.miou == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert result.dice == pytest.approx(4 / 6)
    found = summary(result, "all")
    assert found["miou"] == round((4 / 6 + 2 / 4) / 2, 6)
    assert found["dice"] == round(4 / 6, 6)
    assert found["mean_case_miou"] == round(((2 / 3 + 1 / 2) / 2 + (2 / 3 + 1 / 2) / 2) / 2, 6)
    assert found["mean_case_dice"] == round(2 / 3, 6)
    assert (found["n"], found["n_failed"], found["split"]) == (2, 0, "all")
    assert found["classes"]["bright"] == {"iou": None, "dice": None, "true_voxels": 0}
    assert found["classes"]["grey"] == {"iou": 0.5, "dice": round(2 / 3, 6), "true_voxels": 3}


def test_the_loss_is_the_negative_log_likelihood(two_cases):
    cases = find_cases(two_cases).cases[:1]
    result = evaluate_cases(brightness(), cases, None)
    wrong = CERTAIN * math.exp(-16)  # p(background | 100)
    expected = -(2 * math.log(EDGE) + math.log(CERTAIN) + math.log(wrong)) / 4
    assert result.counted == 4
    assert result.loss == pytest.approx(expected, rel=1e-4)
    assert summary(result, "all")["loss"] == pytest.approx(expected, rel=1e-4)


def test_ignored_pixels_count_nowhere(two_cases):
    add_case(two_cases, "a", [[0, 0, 100, 100]], [[0, 0, 100, 7]])
    result = evaluate_cases(brightness(), find_cases(two_cases).cases[:1], ignore=7)
    assert result.matrix.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert result.counted == 3
    assert result.loss == pytest.approx(-(2 * math.log(EDGE) + math.log(CERTAIN)) / 3, abs=1e-6)
    assert result.miou == 1


def test_nothing_counted_has_no_score(two_cases):
    result = evaluate_cases(brightness(), (), None)
    assert math.isnan(result.loss)
    assert math.isnan(result.miou)
    found = summary(result, "all")
    assert (found["miou"], found["loss"], found["mean_case_dice"], found["n"]) == (None,) * 3 + (0,)


def test_a_case_that_fails_is_recorded_and_the_others_go_on(two_cases, tmp_path):
    whole = evaluate_cases(brightness(), find_cases(two_cases).cases, None)
    add_case(two_cases, "aa", [[0, 0, 0, 0]], [[0, 3, 0, 0]])  # no such class
    add_case(two_cases, "ab", [[0, 0, 0, 0]], [[0, 0, 0]])  # another size
    add_case(two_cases, "ac", [[0, 0]], [[0, 0]])
    (two_cases / "images" / "ac.png").write_bytes(b"damaged")
    result = evaluate_cases(brightness(), find_cases(two_cases).cases, None)
    assert [r.case.name for r in result.failed()] == ["aa", "ab", "ac"]
    for r, reason in zip(result.failed(), ("mask value 3", "is 3×1", "ac.png: "), strict=True):
        assert reason in r.error
        assert str(two_cases) in r.error
    assert (result.nll, result.counted) == (whole.nll, whole.counted)
    assert np.array_equal(result.matrix, whole.matrix)
    found = write_evaluation(result, "all", tmp_path / "out")
    assert (found["n"], found["n_failed"]) == (2, 3)
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["status"] for r in rows] == ["ok", "failed", "failed", "failed", "ok"]
    assert rows[1]["miou"] == ""
    assert (rows[0]["iou_grey"], rows[0]["iou_bright"]) == ("0.5", "")
    assert "mask value 3" in rows[1]["reason"]


def test_files_that_may_not_be_read_fail_alone(two_cases, tmp_path, model, forbid):
    add_case(two_cases, "c", [[0, 0]], [[0, 0]])
    image, mask = two_cases / "images" / "a.png", two_cases / "masks" / "b.png"
    forbid(image, mask)
    found = evaluate_model(model, two_cases, None, tmp_path / "out")
    assert (found["n"], found["n_failed"]) == (1, 2)
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    refused = "can't be read (Permission denied)"
    assert reasons == [f"{image}: {refused}", f"{mask}: {refused}", ""]


class BrokenOnce(BrightnessEngine):
    """The second of its results is no number."""

    def __call__(self, batch):
        return super().__call__(batch) * (np.nan if len(self.shapes) == 2 else 1)


def test_a_failure_half_way_leaves_no_trace_in_the_loss(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for name in "ab":
            volume = nib.Nifti1Image(np.zeros((3, 4, 6), np.uint8), np.eye(4))
            nib.save(volume, tmp_path / part / f"{name}.nii")
    predictor = brightness()
    predictor.engine = BrokenOnce()
    result = evaluate_cases(predictor, find_cases(tmp_path).cases, None)
    assert [r.case.name for r in result.failed()] == ["a"]
    assert result.counted == 72
    assert result.loss == pytest.approx(-math.log(EDGE), abs=1e-6)


def test_each_segmentation_is_shown_with_its_truth(two_cases):
    seen = []
    cases = find_cases(two_cases).cases
    evaluate_cases(brightness(), cases, None, on_segmentation=lambda *args: seen.append(args))
    assert [s[0] for s in seen] == list(cases)
    assert seen[0][1].labels[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert seen[0][2][:, 0, 0].tolist() == [0, 0, 1, 0]


def test_each_slab_is_shown_with_its_truth(two_cases):
    seen = []
    cases = find_cases(two_cases).cases
    evaluate_cases(brightness(), cases, None, on_slab=lambda *args: seen.append(args))
    assert [s[0] for s in seen] == list(cases)
    assert seen[0][1].shape == (1, 3, 1, 4)
    assert seen[0][1].argmax(1).tolist() == [[[0, 0, 1, 1]]]
    assert seen[0][2].tolist() == [[[0, 0, 1, 0]]]


def test_volumes_are_compared_on_their_own_grid(tmp_path):
    voxels = np.random.default_rng(0).choice([0, 100, 200], (5, 6, 7)).astype(np.uint8)
    mask = np.where(voxels == 200, 255, voxels).astype(np.uint8)
    affine = np.diag([1.0, -1.0, 3.0, 1.0])[[1, 2, 0, 3]]
    for part, array in (("images", voxels), ("masks", mask)):
        (tmp_path / "data" / part).mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, affine), tmp_path / "data" / part / "v.nii.gz")
    for axis in ("axial", "coronal", "sagittal"):
        cases = find_cases(tmp_path / "data").cases
        result = evaluate_cases(brightness(3, slice_axis=axis), cases, None)
        assert result.miou == 1
        assert result.counted == 210
        assert result.loss < 1e-5, "truth and probabilities lie on the same slices"


# The whole command, on a model file that is stood in for


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A model that has seen the pixels of case `seen`."""
    seen = tmp_path / "seen.png"
    Image.fromarray(np.array([[0, 200]], np.uint8)).save(seen)
    predictor = brightness()
    predictor.info = ModelInfo(
        architecture=Architecture(
            name="unet", encoder="resnet18", in_channels=1, classes=3, residual=True
        ),
        preprocessing=predictor.preprocessing,
        classes=predictor.classes,
        ignore=9,
        settings={},
        metrics={},
        starting_weights="none",
        data=DataRecord(
            root="x",
            images={"train": [sha256(seen)], "test": ["0"]},
            patients={"train": 13},
        ),
    )
    monkeypatch.setattr(evaluate.Predictor, "load", lambda model, device: predictor)
    return Path("model.safetensors")


def test_the_summary_file_is_the_same_every_time(two_cases, tmp_path, model):
    texts = set()
    for out in (tmp_path / "one", tmp_path / "two"):
        found = evaluate_model(model, two_cases, None, out)
        texts.add((out / "summary.json").read_bytes() + (out / "cases.csv").read_bytes())
        assert json.loads((out / "summary.json").read_text()) == found
    assert len(texts) == 1
    assert (found["split"], found["n"], found["n_seen_in_training"]) == ("all", 2, 0)


def test_a_page_shows_the_cases_and_the_command(two_cases, tmp_path, model):
    command = "segapp evaluate model 'a <b>' --out out"
    before = sorted(p.name for p in two_cases.rglob("*"))
    evaluate_model(model, two_cases, None, tmp_path / "out", command=command)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "segapp evaluate model &#39;a &lt;b&gt;&#39; --out out" in page
    assert page.count('class="panels"') == 2
    assert '<th scope="row">size in voxels</th><td>4 × 1</td>' in page
    patients = "<td>2, each image counted as a patient of its own</td><td>13</td>"
    assert f'<th scope="row">patients</th>{patients}' in page
    assert before == sorted(p.name for p in two_cases.rglob("*"))


def test_cases_seen_in_training_are_counted(two_cases, tmp_path, model, caplog):
    add_case(two_cases, "renamed", [[0, 200]], [[0, 255]])
    found = evaluate_model(model, two_cases, None, tmp_path / "out")
    assert found["n_seen_in_training"] == 1
    assert "1 of these 3 cases was used to train" in caplog.text


def test_twins_of_training_images_are_not_new(two_cases, tmp_path, model, caplog):
    """Black slices are equal byte for byte; one in train must not make a test case of another."""
    add_case(two_cases, "s", [[0, 200]], [[0, 255]])  # the model's training case
    add_case(two_cases, "twin", [[0, 200]], [[0, 255]])
    found = evaluate_model(model, two_cases, "train", tmp_path / "out")
    assert (found["n"], found["n_seen_in_training"]) == (2, 2)
    for said in (caplog.text, (tmp_path / "out" / "report.html").read_text(encoding="utf-8")):
        assert "ll 2 cases were used to train or choose this model" in said
        assert "test in the split column of a cases.csv, or in a test/ folder" in said


def test_another_model_is_compared_on_the_same_cases(two_cases, tmp_path, model):
    found = evaluate_model(model, two_cases, None, tmp_path / "out", against=Path("other"))
    other = found["against"]
    assert (other["model"], other["n"], other["n_seen_in_training"]) == ("other", 2, 0)
    assert other["miou"] == {
        "difference": 0.0,
        "interval": None,
        "p": None,
        "smallest_detectable": None,
    }


def test_models_that_read_masks_differently_are_not_compared(
    two_cases, tmp_path, model, monkeypatch
):
    ours = evaluate.Predictor.load(model, "cpu")
    theirs = brightness()
    theirs.info = ours.info.model_copy(update={"ignore": None})
    loaded = {"model.safetensors": ours, "other": theirs}
    monkeypatch.setattr(evaluate.Predictor, "load", lambda model, device: loaded[str(model)])
    with pytest.raises(DataError, match=r"other: reads masks as .*\(ignored: None\)"):
        evaluate_model(model, two_cases, None, tmp_path / "out", against=Path("other"))
    for names in (["background", "class_100", "class_255"], ["background", "x", "y"]):
        theirs.info = ours.info.model_copy(update={"classes": make_classes(names, [0, 100, 255])})
        asked = (model, two_cases, None, tmp_path / "out", "auto", Path("other"))
        if "x" in names:
            with pytest.raises(DataError, match="only models of the same classes"):
                evaluate_model(*asked)
        else:  # nobody named them
            evaluate_model(*asked)


def test_names_that_look_like_fewer_patients_are_told_of(tmp_path, model, caplog):
    for name in ("012_a", "012_b", "013_a", "013_b"):
        add_case(tmp_path / "data", name, [[0, 200]], [[0, 255]])
    found = evaluate_model(model, tmp_path / "data", "all", tmp_path / "out")
    said = "the names look like 2 patients (012_a, 012_b, …), but each image counts as a patient"
    assert found["names_alike"].startswith(said)
    assert said in caplog.text
    assert "figures too good" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "names look like fewer, so figures may be too good" in evaluation_table(found)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_is_no_distance(two_cases, tmp_path, model, tolerance):
    with pytest.raises(ConfigError, match="--tolerance"):
        evaluate_model(model, two_cases, None, tmp_path / "out", tolerance=tolerance)


def test_which_split(tmp_path, model):
    root = tmp_path / "data"
    for split in ("train", "test"):
        add_case(root, split[:2], [[0, 100]], [[0, 100]], split)
    assert evaluate_model(model, root, None, tmp_path / "o")["split"] == "test"
    assert evaluate_model(model, root, "train", tmp_path / "o")["n"] == 1
    assert evaluate_model(model, root, "all", tmp_path / "o")["n"] == 2
    with pytest.raises(DataError, match="no case is in the split val; there is: test, train"):
        evaluate_model(model, root, "val", tmp_path / "o")


def test_the_data_set_is_not_written_into(two_cases, model):
    table = two_cases / "cases.csv"
    table.write_text("image,mask\nimages/a.png,masks/a.png\n")
    before = table.read_bytes()
    with pytest.raises(OutputError, match=r"cases\.csv would be overwritten"):
        evaluate_model(model, two_cases, None, two_cases)
    assert table.read_bytes() == before


def test_an_output_folder_that_is_a_file(two_cases, tmp_path, model):
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="choose another folder"):
        evaluate_model(model, two_cases, None, tmp_path / "out")
