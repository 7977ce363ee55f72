import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_predict import brightness

from segapp.boundary import Boundary
from segapp.cases import find_cases
from segapp.cli_text import evaluation_table
from segapp.evaluate import evaluate_cases, write_evaluation
from segapp.figures import PER_CASE, CaseResult, Evaluation, comparison, full_summary
from segapp.layout import Case
from segapp.scan import make_classes

CLASSES = make_classes(["background", "lesion"], [0, 1])
NONE = Boundary(np.nan, np.nan, np.nan)


def result(name, matrix, patient="", surfaces=(0.0, 0.0, 1.0), **more):
    case = Case(name, (Path(f"{name}.png"),), Path(f"{name}_mask.png"), patient or name)
    of_class = Boundary(*surfaces)
    return CaseResult(case, np.array(matrix), boundary=(NONE, of_class), **more)


HIT = [[90, 0], [0, 10]]
HALF = [[90, 0], [5, 5]]
MISSED = [[90, 0], [10, 0]]
INVENTED = [[95, 5], [0, 0]]
ABSENT = [[100, 0], [0, 0]]


def test_the_figures_of_a_case_by_hand():
    found = dict(zip(PER_CASE, result("a", HALF, voxel=0.5).figures()[:, 1], strict=True))
    assert found["dice"] == pytest.approx(2 / 3)
    assert (found["iou"], found["sensitivity"], found["precision"]) == (0.5, 0.5, 1.0)
    assert found["difference"] == -2.5
    of_background = result("a", HALF).figures()[:, 0]
    assert np.isnan(of_background[4:7]).all(), "the background has no surface"
    assert not np.isnan(of_background[:4]).any()
    nothing = result("a", ABSENT, surfaces=NONE).figures()[:, 1]
    assert np.isnan(nothing).all()


def test_what_means_leave_out_stands_beside_them():
    far = (50.0, 50.0, 0.0)
    cases = [result("a", HIT), result("b", HALF), result("c", MISSED, surfaces=far)]
    cases += [result("d", INVENTED, surfaces=far), result("e", ABSENT, surfaces=NONE)]
    found = full_summary(Evaluation(CLASSES, cases, tolerance=1.0), "test")
    lesion = found["classes"]["lesion"]
    assert (lesion["n_missed"], lesion["n_false_positive"], lesion["n_absent"]) == (1, 1, 1)
    of_cases = lesion["cases"]
    assert of_cases["dice"]["n"] == 4
    assert of_cases["dice"]["mean"] == pytest.approx((1 + 2 / 3 + 0 + 0) / 4, abs=1e-6)
    assert of_cases["sensitivity"] | {"interval": 0} == {"mean": 0.5, "interval": 0, "n": 3}
    assert of_cases["precision"] | {"interval": 0} == {
        "mean": pytest.approx(2 / 3, abs=1e-6),
        "interval": 0,
        "n": 3,
    }
    assert of_cases["hd95"]["mean"] == 25.0
    assert of_cases["nsd"] | {"interval": 0} == {"mean": 0.5, "interval": 0, "n": 4}
    assert of_cases["difference"]["mean"] == (0 - 5 - 10 + 5) / 4
    assert lesion["iou"] == pytest.approx(15 / 35, abs=1e-6)
    assert lesion["iou_interval"] is None, "only four patients have it"
    low, high = found["classes"]["background"]["iou_interval"]
    assert low < found["classes"]["background"]["iou"] < high


def test_a_structure_that_is_found_elsewhere_only_is_missed():
    elsewhere = [[85, 5], [10, 0]]
    found = full_summary(Evaluation(CLASSES, [result(n, elsewhere) for n in "abc"]), "test")
    lesion = found["classes"]["lesion"]
    assert (lesion["dice"], lesion["n_missed"], lesion["n_false_positive"]) == (0.0, 3, 0)


def test_patients_not_cases_are_what_counts():
    four = [result(f"{p}{n}", HALF, patient=p) for p in "abcd" for n in range(10)]
    found = full_summary(Evaluation(CLASSES, four, tolerance=1.0), "test")
    assert (found["n"], found["n_patients"]) == (40, 4)
    assert found["why_no_intervals"] == "fewer than 5 patients"
    assert found["dice_interval"] is None
    five = [*four, result("e", HIT, patient="e")]
    found = full_summary(Evaluation(CLASSES, five, tolerance=1.0), "test")
    assert "why_no_intervals" not in found
    assert found["dice_interval"] is not None


def test_a_mean_over_classes_needs_no_patient_who_has_them_all():
    """Six patients with one organ and six with the other: the split's mIoU has an interval."""
    classes = make_classes(["background", "liver", "spleen"], [0, 1, 2])

    def one(name, matrix):
        return CaseResult(Case(name, (Path(name),), Path("m"), name), np.array(matrix))

    liver = [one(f"l{n}", [[90, 0, 0], [n, 10, 0], [0, 0, 0]]) for n in range(6)]
    spleen = [one(f"s{n}", [[90, 0, 0], [0, 0, 0], [n, 0, 10]]) for n in range(6)]
    found = full_summary(Evaluation(classes, [*liver, *spleen]), "test")
    low, high = found["miou_interval"]
    assert low < found["miou"] < high
    low, high = found["dice_interval"]
    assert low < found["dice"] < high
    few = full_summary(Evaluation(classes, [*liver, *spleen[:4]]), "test")
    assert few["miou_interval"] is None, "only four know the spleen"
    assert few["classes"]["liver"]["iou_interval"] is not None


def test_units_that_differ_have_no_mean():
    cases = [result("a", HIT, distance_unit="mm", size_unit="ml"), result("b", HIT)]
    found = full_summary(Evaluation(CLASSES, cases, tolerance=1.0), "test")
    assert (found["distance_unit"], found["size_unit"]) == ("mixed", "mixed")
    for key in ("hd95", "msd", "nsd", "difference"):
        assert found["classes"]["lesion"]["cases"][key]["mean"] is None
    assert found["classes"]["lesion"]["cases"]["dice"]["mean"] == 1.0
    assert "HD95 mixed" in evaluation_table(found)


def test_no_cases_no_figures():
    found = full_summary(Evaluation(CLASSES, tolerance=1.0), "test")
    assert (found["n"], found["n_patients"], found["miou"]) == (0, 0, None)
    assert found["classes"]["lesion"]["cases"]["dice"] == {"mean": None, "interval": None, "n": 0}


def test_two_models_on_the_same_cases():
    names = "abcdefgh"
    ours = Evaluation(CLASSES, [result(n, HIT if n != "h" else HALF) for n in names])
    theirs = Evaluation(CLASSES, [result(n, HALF) for n in reversed(names)])
    failed = result("i", HIT)
    theirs.cases.append(CaseResult(failed.case, np.zeros((2, 2), int), error="damaged"))
    ours.cases.append(failed)
    found = comparison(ours, theirs)
    assert (found["n"], found["n_failed"], found["n_patients"]) == (8, 1, 8)
    of_case = found["mean_case_dice"]
    assert of_case["difference"] == pytest.approx(7 / 8 / 3, abs=1e-6)
    assert of_case["interval"][0] > 0
    assert of_case["p"] < 0.05
    assert 0 < of_case["smallest_detectable"] < 1 / 3
    assert found["dice"]["difference"] == pytest.approx(2 * 75 / 155 - 2 / 3, abs=1e-6)
    same = comparison(ours, ours)["miou"]
    assert (same["difference"], same["interval"], same["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_an_invented_class_counts_in_the_test_as_in_the_difference():
    """Where most patients have nothing to find, a model that invents is worse by what is said."""
    sick = [result(n, HIT) for n in "abc"]
    ours = Evaluation(CLASSES, [*sick, *(result(f"h{n}", ABSENT, surfaces=NONE) for n in range(9))])
    theirs = Evaluation(CLASSES, [*sick, *(result(f"h{n}", INVENTED) for n in range(9))])
    found = comparison(ours, theirs)["mean_case_dice"]
    assert found["difference"] == 0.75
    assert found["p"] < 0.05


def test_volumes_are_measured_in_mm_and_ml(tmp_path):
    voxels = np.zeros((6, 6, 4), np.uint8)
    voxels[1:3, 1:5, 1:3] = 100
    mask = np.zeros_like(voxels)
    mask[1:4, 1:5, 1:3] = 100
    affine = np.diag([2.0, 1.0, 5.0, 1.0])
    for part, array in (("images", voxels), ("masks", mask)):
        (tmp_path / part).mkdir()
        nib.save(nib.Nifti1Image(array, affine), tmp_path / part / "v.nii.gz")
    cases = find_cases(tmp_path).cases
    evaluation = evaluate_cases(brightness(), cases, None, tolerance=1.0)
    found = write_evaluation(evaluation, "all", tmp_path / "out", n_seen_in_training=0)
    grey = found["classes"]["grey"]["cases"]
    assert (found["distance_unit"], found["size_unit"]) == ("mm", "ml")
    assert grey["hd95"]["mean"] == 2.0
    assert grey["difference"]["mean"] == pytest.approx(-8 * 0.01)
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["hd95_grey"], row["distance_unit"], row["size_unit"]) == ("2", "mm", "ml")
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == found


def test_what_the_mask_ignores_belongs_to_no_surface(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    voxels = np.zeros((6, 1, 1), np.uint8)
    voxels[1:5] = 100
    mask = np.array([0, 100, 100, 9, 9, 0], np.uint8).reshape(6, 1, 1)
    for part, array in (("images", voxels), ("masks", mask)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / part / "v.nii.gz")
    evaluation = evaluate_cases(brightness(), find_cases(tmp_path).cases, 9, tolerance=1.0)
    assert evaluation.cases[0].boundary[1] == (0.0, 0.0, 1.0)


def test_the_table_reads_well():
    cases = [result(n, HIT if n < "e" else HALF) for n in "abcdefg"]
    found = full_summary(Evaluation(CLASSES, cases, tolerance=2.0), "test")
    theirs = Evaluation(CLASSES, [result(n, HALF) for n in "abcdefg"])
    other = {"model": "runs/other", **comparison(Evaluation(CLASSES, cases), theirs)}
    text = evaluation_table({**found, "against": other})
    scaled = {"temperature": 1.2, "ece": 0.03, "ece_unscaled": 0.02}
    said = evaluation_table({**found, "calibration": scaled})
    assert "0.0200 before scaling by the temperature 1.20; scaling made it worse on these" in said
    better = {**scaled, "ece_unscaled": 0.03}
    assert "made it worse" not in evaluation_table({**found, "calibration": better})
    assert text.startswith("split test: 7 cases of 7 patients (each counted as one)\n")
    assert "HD95 px  NSD at 2 px  missed  invented" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("lesion ")]
    assert row[-2:] == ["0", "–"], "every mask has it"
    some = full_summary(Evaluation(CLASSES, [*cases, result("h", ABSENT, surfaces=NONE)]), "test")
    (row,) = [r.split() for r in evaluation_table(some).splitlines() if r.startswith("lesion ")]
    assert row[-2:] == ["0", "0"]
    assert "Difference, this model minus runs/other, on 7 cases of 7 patients:" in text
    assert "smallest detectable" in text
    assert "would be found" not in text
    assert max(map(len, text.splitlines())) <= 100
