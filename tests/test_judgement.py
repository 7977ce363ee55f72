import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evaluate import add_case
from test_predict import RAW, BrightnessEngine, brightness

from segapp import evaluate
from segapp.batch import list_inputs, predict_batch
from segapp.cases import Case, find_cases
from segapp.checkpoint import Architecture, DataRecord, ModelInfo
from segapp.evaluate import evaluate_cases, evaluate_model
from segapp.figures import CaseResult, Evaluation
from segapp.judgement import Calibration, gate_figures, size_coverage
from segapp.novelty import fit_novelty, scan_features
from segapp.predict import Predictor
from segapp.preprocess import Preprocessing
from segapp.quality import Judged, Quality, fit_quality
from segapp.scan import Assessment, Scan, make_classes

CLASSES = make_classes(["background", "grey", "bright"], [0, 100, 255])


def result(
    name: str, estimate: float | None, hits: int, review: tuple[str, ...] = ()
) -> CaseResult:
    case = Case(name, (Path(name),), Path(name), name, "test", True)
    matrix = np.array([[90, 0, 0], [10 - hits, hits, 0], [0, 0, 0]])
    ends = (None, (8.0, 12.0), None)
    return CaseResult(case, matrix, assessment=Assessment(estimate, 0.5, review, ends))


def test_gate_figures_by_hand() -> None:
    cases = [result(str(n), 0.1 * n, n, ("why",) if n < 2 else ()) for n in range(1, 7)]
    cases.append(result("empty", None, 5))
    found = gate_figures(Evaluation(CLASSES, cases))
    assert found == {"n": 7, "n_review": 1, "spearman": 1.0, "n_estimated": 6}
    backwards = [result(str(n), -0.1 * n, n) for n in range(1, 7)]
    assert gate_figures(Evaluation(CLASSES, backwards))["spearman"] == -1
    assert gate_figures(Evaluation(CLASSES, cases[:4]))["spearman"] is None
    level = [result(str(n), 0.5, n) for n in range(1, 7)]
    assert gate_figures(Evaluation(CLASSES, level))["spearman"] is None
    assert gate_figures(Evaluation(CLASSES, []))["n"] == 0


def quality(patients: int = 10) -> Quality:
    soft = np.array([[60.0, 40, 0], [60, 40, 0], [59, 39, 0]])
    sizes = np.array([60, 40, 0])
    cases = [Judged(str(n), sizes, sizes, 0.9, soft) for n in range(patients)]
    return fit_quality(cases, 3, None, True)


def test_size_coverage_by_hand() -> None:
    inside, outside = result("a", 0.9, 5), result("b", 0.9, 5)
    outside.matrix[1, 1] = 50  # 55 true ones
    assert size_coverage(quality(), [inside, outside], 1) == {
        **{"promised": 0.909091, "covered": 1, "n": 2},
        **{"patients": 10, "cases": 10},
    }
    assert "why_not" in size_coverage(quality(1), [inside], 1)
    outside.ignored = 3
    assert size_coverage(quality(), [inside, outside], 1)["n"] == 1, "its true size is not known"
    outside.ignored = 0
    inside.voxel = outside.voxel = 2.5
    assert size_coverage(quality(), [inside, outside], 1)["covered"] == 1, "in any unit"


def test_calibration_counts_both_ways(tmp_path: Path) -> None:
    add_case(tmp_path, "a", [[0, 0, 100, 100, 140, 60] * 4] * 8, [[0, 0, 100, 100, 100, 0] * 4] * 8)
    cases = find_cases(tmp_path).cases
    warm = Calibration(2.0)
    predictor = Predictor(BrightnessEngine(), Preprocessing(channels=1, **RAW), CLASSES, 2.0)
    evaluate_cases(predictor, cases, None, on_slab=warm.add)
    cold = Calibration(1.0)
    evaluate_cases(brightness(), cases, None, on_slab=cold.add)
    hot, plain = warm.figures(), cold.figures()
    assert hot["n_pixels"] == plain["n_pixels"] == 8 * 24
    assert hot["ece_unscaled"] == pytest.approx(plain["ece"], abs=1e-4)
    assert hot["ece"] != hot["ece_unscaled"]
    assert plain["ece"] == pytest.approx(plain["ece_unscaled"], abs=1e-4)
    assert sum(count for _, _, count in hot["bins"]) == 8 * 24
    assert Calibration(1.0).figures()["ece"] is None


def test_what_a_mask_ignores_is_expected_nowhere(tmp_path: Path) -> None:
    add_case(tmp_path, "a", [[0, 100, 200, 100]], [[0, 100, 7, 7]])
    (found,) = evaluate_cases(brightness(), find_cases(tmp_path).cases, ignore=7).cases
    assert found.soft is not None
    assert found.ignored == 2
    assert found.soft[0].tolist() == [1, 1, 0]
    assert found.soft[1] == pytest.approx([1, 1, 0], abs=1e-5)
    add_case(tmp_path, "a", [[0, 100, 200, 100]], [[0, 100, 255, 100]])
    (whole,) = evaluate_cases(brightness(), find_cases(tmp_path).cases, ignore=7).cases
    assert whole.soft is not None
    assert whole.soft[0].tolist() == [1, 2, 1]


@pytest.fixture
def judging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set with a grey square on black in each case, and a model (not really there) that
    knows such pictures."""
    scans = []
    for n in range(6):
        pixels = np.zeros((24, 32), np.uint8)
        pixels[6 : 14 + n % 3, 5 + n : 15 + n] = 100
        add_case(tmp_path / "data", f"c{n}", pixels, pixels, "test")
        scans.append(Scan(pixels.T[None, :, :, None], None, Path("x")))
    prep = Preprocessing(channels=1, **RAW)
    looks = [scan_features(prep.prepare(s)) for s in scans]
    soft = np.array([[650.0, 90, 0], [650, 90, 0], [649, 89, 0]])
    cases = [Judged(str(n), soft[0], soft[0], 0.95, soft) for n in range(10)]
    info = ModelInfo(
        architecture=Architecture(
            name="unet", encoder="resnet18", in_channels=1, classes=3, residual=False
        ),
        preprocessing=prep,
        classes=CLASSES,
        settings={},
        metrics={},
        starting_weights="none",
        data=DataRecord(root="x"),
        temperature=1.5,
        quality=fit_quality(cases, 3, fit_novelty(looks, list("abcdef")), True),
    )
    predictor = Predictor.of(BrightnessEngine(), info)
    monkeypatch.setattr(evaluate.Predictor, "load", lambda *_: predictor)
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_evaluate_says_how_the_model_judged(judging: Path) -> None:
    found = evaluate_model(Path("m"), judging / "data", None, judging / "out")
    first = (judging / "out" / "summary.json").read_bytes()
    assert found["calibration"]["temperature"] == 1.5
    assert found["gate"]["n"] == 6
    assert found["classes"]["grey"]["size_interval"]["n"] == 6
    assert found["classes"]["grey"]["size_interval"]["covered"] == 6
    table = rows(judging / "out" / "cases.csv")
    assert len(table) == 6
    assert all(float(r["unlikeness"]) < 1 for r in table)
    assert all(float(r["estimated_dice"]) > 0.9 for r in table)
    evaluate_model(Path("m"), judging / "data", None, judging / "out")
    assert (judging / "out" / "summary.json").read_bytes() == first
    json.loads(first)


def test_a_page_that_can_not_be_made_leaves_the_figures_and_no_older_page(
    judging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_model(Path("m"), judging / "data", None, judging / "out")
    assert (judging / "out" / "report.html").is_file()
    figures = (judging / "out" / "summary.json").read_bytes()
    (judging / "out" / "summary.json").unlink()

    def fail(*_: object) -> None:
        raise ValueError("too odd to draw")

    monkeypatch.setattr(evaluate, "write_report", fail)
    evaluate_model(Path("m"), judging / "data", None, judging / "out")
    assert (judging / "out" / "summary.json").read_bytes() == figures
    assert not (judging / "out" / "report.html").exists()


def test_a_scan_to_review_says_so_in_the_table(judging: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32)).astype(np.uint8)
    Image.fromarray(pixels).save(judging / "odd.png")
    usual = judging / "data" / "test" / "images" / "c0.png"
    predictor = evaluate.Predictor.load(Path("m"))
    entries = list_inputs([usual, judging / "odd.png"])
    counts = predict_batch(predictor, entries, judging / "o")
    assert counts == {"ok": 1, "review": 1}
    before = like, odd = rows(judging / "o" / "predictions.csv")
    for _ in range(2):
        counts = predict_batch(predictor, entries, judging / "o", skip_existing=True)
        assert counts == {"skipped": 1, "review_kept": 1}
        again = rows(judging / "o" / "predictions.csv")
        assert [r["status"] for r in again] == ["skipped", "review"], "it still is in doubt"
        assert again[1] == before[1]
    assert (like["status"], like["reason"]) == ("ok", "")
    assert odd["status"] == "review"
    assert "unlike the training scans" in odd["reason"]
    assert float(odd["unlikeness"]) > 1 > float(like["unlikeness"])
    assert odd["grey_voxels_low"] == odd["range_coverage"] == ""
    assert like["range_coverage"] == "0.9091"
    assert float(like["grey_voxels_low"]) <= float(like["grey_voxels"])
    assert float(like["grey_voxels"]) <= float(like["grey_voxels_high"])
    assert like["grey_ml_low"] == "", "no spacing, no ml"
    columns = list(like)
    assert columns[columns.index("bright_mm2") + 1] == "estimated_dice", "after the contract's"
