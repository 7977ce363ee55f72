"""The pages: what they say, that they hold everything, and that they stay small."""

import csv
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from browser import open_page
from PIL import Image
from test_card import info as model_info

from segapp.boundary import Boundary
from segapp.evaluate import write_evaluation
from segapp.figures import CaseResult, Evaluation, comparison
from segapp.layout import Case
from segapp.likeness import TrainingRange
from segapp.report import pictures
from segapp.report.evaluation import Material, write_report
from segapp.report.page import data_uri, drawing, number, p_value, signed, svg
from segapp.report.pictures import (
    INVENTED,
    MISSED,
    OF_BOTH,
    OF_MASK,
    OF_RESULT,
    SWAPPED,
    chosen_cases,
    draw_case,
    draw_difference,
)
from segapp.report.scans import ScanFacts, fingerprint_rows
from segapp.report.timeline import Timeline
from segapp.scan import Assessment, Scan, Segmentation, make_classes

NAMES = ("background", "liver", "tumour")
NONE = Boundary(np.nan, np.nan, np.nan)
CALIBRATION = {
    "temperature": 1.14,
    "ece": 0.0021,
    "ece_unscaled": 0.0049,
    "n_pixels": 12345,
    "bins": [[0.55, 0.56, 10], [0.95, 0.96, 90]],
    "bins_unscaled": [[0.6, 0.5, 20], [0.97, 0.95, 80]],
}


def evaluation(count, names=NAMES, seed=0, marked=False, name="case{:04}"):
    """So many cases of volumes, three a patient, with figures at random."""
    rng = np.random.default_rng(seed)
    classes = make_classes(list(names), list(range(len(names))))
    result = Evaluation(classes, tolerance=2.0)
    for n in range(count):
        true = rng.integers(200, 2000, len(classes)) + 10000 * (np.arange(len(classes)) == 0)
        hit = rng.binomial(true, rng.uniform(0.5, 0.98))
        matrix = np.diag(hit)
        matrix[:, 0] += true - hit
        surfaces = [Boundary(*rng.uniform(0.5, 9, 2), rng.random()) for _ in classes[1:]]
        path = Path(f"{n}.nii.gz")
        case = Case(name.format(n), (path,), path, f"patient{n // 3}", "test", "x")
        more = {"boundary": (NONE, *surfaces), "distance_unit": "mm"}
        if marked:
            low = n == 1
            why, nothing = ("a low estimate",) if low else (), (None,) * len(classes)
            more["assessment"] = Assessment(0.6 if low else 0.9, 0.3, why, nothing)
        more |= {"nll": 12.0 / count, "counted": 300}
        result.cases.append(CaseResult(case, matrix, voxel=0.01, size_unit="ml", **more))
    return result


def volume(classes, case):
    """A volume of thick slices with a block of each class, and a result one voxel off."""
    truth = np.zeros((40, 30, 6), np.uint8)
    for index in range(1, min(len(classes), 4)):
        truth[9 * index : 9 * index + 6, 8:20, 1:5] = index
    voxels = np.random.default_rng(0).normal(300, 60, truth.shape) + 200.0 * truth
    scan = Scan(voxels[None].astype(np.int16), np.diag([-1.0, -2.0, 5.0, 1.0]), case.images[0])
    return case, Segmentation(np.roll(truth, 1, 1), scan, classes), truth


def write(found, out, pictures=True, facts=None, **more):
    """The page, and what summary.json holds."""
    info = model_info([c.name for c in found.classes], created="2026-01-01T00:00:00+00:00")
    result = {**write_evaluation(found, "test", out), **more}
    cases = [r.case for group in chosen_cases(found).values() for r in group]
    drawn = [draw_case(*volume(found.classes, c), "axial") for c in cases if pictures]
    command = "segapp evaluate runs/x data/x --out report"
    material = Material(Path("runs/x"), Path("data/x"), command, facts or {}, drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(found, result, info, material, out)
    return (out / "report.html").read_text(encoding="utf-8"), result


def text_of(page):
    """What a reader reads, without the spaces between."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_what_no_case_could_show_is_no_zero(tmp_path):
    found = evaluation(6)
    page, result = write(found, tmp_path / "all", pictures=False)
    of_class = result["classes"]["tumour"]
    assert (of_class["n_missed"], of_class["n_false_positive"], of_class["n_absent"]) == (0, 0, 0)
    assert "whether one would be invented is not tested" in text_of(page)
    assert " 0 – 0" in section(page, "classes"), "missed, invented, absent"
    found.cases[0].matrix[1:] = found.cases[0].matrix[:, 1:] = 0
    page, _ = write(found, tmp_path / "some", pictures=False)
    assert "missed or invented altogether" in text_of(page)
    assert "not tested" not in text_of(page)


def section(page, name):
    return text_of(re.search(rf'<section id="{name}">.*?</section>', page, re.S)[0])


def test_the_page_shows_the_figures_of_the_summary(tmp_path):
    page, result = write(evaluation(30), tmp_path, n_seen_in_training=2)
    said = text_of(page)
    for key in ("miou", "dice", "mean_case_miou", "mean_case_dice"):
        low, high = result[f"{key}_interval"]
        assert f"{result[key]:.3f} 95 % interval {low:.3f} to {high:.3f}" in said
    of_class = result["classes"]["tumour"]
    low, high = of_class["dice_interval"]
    assert f"tumour {of_class['iou']:.3f}" in section(page, "classes")
    assert f"{of_class['dice']:.3f} {low:.3f}–{high:.3f}" in section(page, "classes")
    assert f"{of_class['cases']['hd95']['mean']:.2f}" in section(page, "classes")
    assert "30 cases of 10 patients" in said
    assert "2 of these 30 cases were used to train" in said
    assert "segapp evaluate runs/x data/x --out report" in section(page, "made")
    assert "not a medical device" in section(page, "card")
    assert "None: every case could be read" in section(page, "failures")
    assert page.count('class="panels"') == 9
    headings = re.findall(r"<h3>(\w+ cases)</h3>", page)
    assert headings == ["Worst cases", "Median cases", "Best cases"]
    with (tmp_path / "cases.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["dice"]))
    assert section(page, "cases").index(rows[0]["case"]) < section(page, "cases").index(
        rows[-1]["case"]
    )


def test_the_confusion_by_hand(tmp_path):
    found = evaluation(1)
    found.cases[0].matrix = np.array([[90, 10, 0], [5, 15, 0], [0, 8, 0]])
    said = section(write(found, tmp_path)[0], "confusion")
    assert "background 90.0 % 10.0 % 0.00 % 100" in said
    assert "liver 25.0 % 75.0 % 0.00 % 20" in said
    assert "tumour 0.00 % 100.0 % 0.00 % 8" in said
    assert "background liver 10 10.00 % tumour liver 8 100.00 % liver background 5 25.00 %" in said


def test_what_is_not_recorded_is_said(tmp_path):
    page, _ = write(evaluation(30), tmp_path)
    for name in ("calibration", "review", "sizes", "data"):
        assert "ot recorded" in section(page, name)
    assert 'id="against"' not in page


def test_calibration_gate_and_size_intervals(tmp_path):
    gate = {"n_review": 1, "n": 30, "spearman": 0.85, "expected_share": 0.05}
    found = evaluation(30, marked=True)
    classes = write(found, tmp_path)[1]["classes"]
    classes["liver"]["size_interval"] = {"promised": 0.9, "covered": 22, "n": 24, "patients": 9}
    classes["tumour"]["size_interval"] = {"why_not": "fewer than 5 patients"}
    page, _ = write(found, tmp_path, calibration=CALIBRATION, gate=gate, classes=classes)
    said = section(page, "calibration")
    assert "temperature 1.14" in said
    assert "0.0021" in said
    assert "0.0049" in said
    assert "made it worse" not in said
    worse = {**CALIBRATION, "ece": 0.0063}
    assert "0.0049; scaling made it worse on these cases" in section(
        write(found, tmp_path, calibration=worse, gate=gate, classes=classes)[0], "calibration"
    )
    said = section(page, "review")
    assert "1 of 30 cases is marked for review" in said
    assert "case0001 0.600" in said
    assert "a low estimate" in said
    assert "case0002" not in said
    assert "liver 90 % 92 % 22 of 24 9" in section(page, "sizes")
    assert "no intervals: fewer than 5 patients" in section(page, "sizes")
    assert page.count("<svg role") == 3


def test_little_known_of_calibration_and_gate(tmp_path):
    calibration = {"temperature": 1.0, "ece": None, "bins": []}
    gate = {"n_review": 0, "n": 1, "spearman": None, "n_estimated": 0}
    page, _ = write(evaluation(1), tmp_path, calibration=calibration, gate=gate)
    assert "can't be told" in section(page, "review")


@pytest.mark.slow
def test_a_second_model(tmp_path):
    ours, theirs = evaluation(30), evaluation(30, seed=1)
    against = {"model": "runs/old", **comparison(ours, theirs), "n_seen_in_training": 1}
    page, _ = write(ours, tmp_path, against=against)
    said = section(page, "against")
    assert "Difference, this model minus runs/old on the 30 cases of 10 patients" in said
    assert f"Mean IoU {signed(against['miou']['difference'])}" in said
    assert p_value(against["miou"]["p"]) in said
    assert "smallest detectable" in said
    assert "1 of these cases was used" in said
    few = {"model": "runs/old", **comparison(evaluation(3), evaluation(3)), "n_seen_in_training": 0}
    assert "Too few patients" in section(write(ours, tmp_path, against=few)[0], "against")


@pytest.mark.parametrize(("count", "classes"), [(0, 3), (1, 2), (2, 3), (4, 30), (7, 9)])
def test_few_cases_and_many_classes(tmp_path, count, classes):
    names = [
        "background",
        *(f"structure {n} $x_{n}$ with a very long name" for n in range(1, classes)),
    ]
    page, result = write(evaluation(count, names), tmp_path)
    assert "No intervals: fewer than 5 patients" in text_of(page)
    assert page.count('class="panels"') == min(count, 3)
    assert page.count("<html") == 1
    assert result["n"] == count


def test_failed_cases_have_reasons_and_no_figures(tmp_path):
    found = evaluation(2)
    for r in found.cases:
        r.error, r.matrix = "masks/1.png: mask value <7> is outside", 0 * r.matrix
    page, _ = write(found, tmp_path)
    assert "2 cases failed" in text_of(page)
    assert "mask value &lt;7&gt; is outside" in section(page, "failures")
    assert "No case could be measured" in text_of(page)


def test_names_are_text(tmp_path):
    evil = "<script>alert(1)</script>\"'&{{{{7*7}}}}{:04}"
    names = ("background", "<img src=http://x/y onerror=alert(1)>", "</svg><script>")
    found = evaluation(6, names, name=evil)
    found.cases[0].warnings = ("<b>warned</b>",)
    page, _ = write(found, tmp_path)
    assert "<script" not in page
    assert "<img src=http" not in page
    assert "<b>warned" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{7*7}}" in page


def test_the_page_asks_for_nothing(tmp_path):
    page, _ = write(evaluation(12), tmp_path, calibration=CALIBRATION)
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    sources = re.findall(r'<img src="([^"]+)"', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert all(re.findall(r'<img [^>]*alt="([^"]*)"', page))
    assert len(re.findall(r'<img [^>]*alt="', page)) == page.count("<img ")
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert set(used) <= set(identifiers)


@pytest.mark.slow
def test_the_page_stays_small(tmp_path):
    found = evaluation(100, ["background", *(f"c{n}" for n in range(1, 12))], marked=True)
    page, _ = write(found, tmp_path, calibration=CALIBRATION, gate={"n_review": 1, "n": 100})
    assert len(page.encode()) < 2_000_000
    many, _ = write(evaluation(2000, marked=True), tmp_path, gate={"n_review": 1, "n": 2000})
    assert len(many.encode()) < 2_000_000
    assert "The 100 worst of 2000 cases" in section(many, "cases")
    assert "Every case with all its figures is in cases.csv" in section(many, "cases")


def test_the_same_figures_draw_the_same(tmp_path):
    pages = {write(evaluation(9), tmp_path / n)[0].split("<footer>")[0] for n in ("a", "b")}
    assert len(pages) == 1


# Which cases, and their pictures


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(0, [0, 0, 0]), (1, [0, 1, 0]), (2, [1, 0, 1]), (4, [1] * 3), (17, [2] * 3), (40, [3] * 3)],
)
def test_chosen_cases_do_not_repeat(count, sizes):
    groups = chosen_cases(evaluation(count))
    assert [len(groups[rank]) for rank in ("worst", "median", "best")] == sizes
    names = [r.case.name for group in groups.values() for r in group]
    assert len(set(names)) == len(names)


def test_a_case_without_foreground_is_not_chosen():
    found = evaluation(1)
    found.cases[0].matrix = np.diag([100, 0, 0])
    assert not any(chosen_cases(found).values())


def test_differences_by_hand():
    """Within the contours, which are two pixels wide."""
    mask, label = _blocks()
    drawn = draw_difference(np.full((20, 20, 3), 100, np.uint8), mask, label)
    for place, colour in (((3, 3), MISSED), ((3, 12), INVENTED), ((12, 3), SWAPPED)):
        expected = np.rint(0.35 * 85 + 0.65 * np.array(colour))
        assert np.abs(drawn[place].astype(int) - expected).max() <= 1
    assert tuple(drawn[1, 1]) == tuple(drawn[2, 4]) == OF_MASK
    assert tuple(drawn[1, 10]) == OF_RESULT
    assert tuple(drawn[10, 1]) == OF_BOTH
    assert tuple(drawn[0, 0]) == tuple(drawn[12, 13]) == (85, 85, 85)


def _blocks():
    mask, label = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    mask[1:8, 1:8], label[1:8, 10:17] = 1, 2
    mask[10:17, 1:8], label[10:17, 1:8] = 1, 2
    return mask, label


def test_the_slice_with_most_disagreement_in_the_scans_proportions():
    found = evaluation(1)
    case, segmentation, truth = volume(found.classes, found.cases[0].case)
    labels = truth.copy()
    labels[9:15, 8:20, 3] = 0  # slices 1 to 4 hold the block; in 3 it is missed
    segmentation = Segmentation(labels, segmentation.scan, segmentation.classes)
    picture = draw_case(case, segmentation, truth, "axial")
    assert (picture.slice_number, picture.slices) == (4, 6)
    assert [what for what, _ in picture.panels] == ["image", "mask", "result", "difference"]
    narrow, tall = picture.size  # rows are 2 mm apart, columns 1 mm
    assert picture.cropped
    assert tall <= 440
    assert narrow > 100


def test_ignored_pixels_are_no_difference(monkeypatch):
    real = pictures.draw_difference
    found = evaluation(1)
    case, segmentation, truth = volume(found.classes, found.cases[0].case)
    ignored = np.where(truth != segmentation.labels, 255, truth).astype(np.uint8)
    tints = []
    monkeypatch.setattr(pictures, "draw_difference", lambda *a: tints.append(a[1:3]) or real(*a))
    draw_case(case, segmentation, ignored, "axial")
    ((mask, label),) = tints
    assert np.array_equal(mask, label)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (3, 500, 1)])
def test_pictures_of_odd_shapes(shape):
    case = Case("odd", (Path("a.png"),), Path("m.png"), "p")
    truth = np.zeros(shape, np.uint8)
    scan = Scan(np.zeros((1, *shape), np.uint8), None, Path("a.png"))
    segmentation = Segmentation(truth + np.uint8(1), scan, make_classes(["b", "x"], [0, 1]))
    picture = draw_case(case, segmentation, truth, "axial")
    assert min(picture.size) >= 1
    assert max(picture.size) <= 440


def test_a_picture_is_the_smaller_of_two_kinds():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert data_uri(noise).startswith("data:image/webp;base64,")
    assert len(data_uri(np.zeros((64, 64, 3), np.uint8))) < 200


def test_drawings_are_safe_and_named():
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure()
        figure.subplots().set_title("</svg><b>$x$ 0.12345")
        drawn = svg(figure, "one", 'a "title"')
    assert "<b>" not in drawn
    assert "$x$ 0.12345" in drawn
    assert 'aria-label="a &#34;title&#34;"' in drawn
    names = re.findall(r' id="([^"]+)"', drawn)
    assert names
    assert all(name.startswith("one-") for name in names)


def test_numbers_as_they_are_written():
    assert (number(None), number(0.89116), number(-3.14159, 1)) == ("–", "0.891", "−3.1")
    assert number(1234567, 0) == "1 234 567"
    assert (signed(0.5, 1), signed(-0.5, 1), signed(None)) == ("+0.5", "−0.5", "–")
    assert (p_value(0.0004), p_value(0.25), p_value(None)) == ("< 0.001", "0.250", "–")


def test_the_fingerprint_beside_the_trainings():
    facts = [
        ScanFacts((512, 512, 90), (0.7, 0.7, 5.0), "int16", ((-1000.0, 1400.0),)),
        ScanFacts((512, 512, 90), (0.8, 0.8, 5.0), "int16", ((-1024.0, 1200.0),)),
    ]
    known = TrainingRange(
        dtypes=("int16",),
        pixel_mm=(0.6, 0.9),
        slice_mm=(1.0, 5.0),
        thickest=("axial",),
        intensities=((-1000.0, 1500.0),),
        narrowest=(900.0,),
        highest_low=(-900.0,),
    )
    rows = {what: (here, there) for what, here, there in fingerprint_rows(facts, known)}
    assert rows == {
        "size in voxels": ("512 × 512 × 90", "not recorded"),
        "pixel size": ("0.7–0.8 mm", "0.6–0.9 mm"),
        "slice distance": ("5 mm", "1–5 mm"),
        "stored as": ("int16", "int16"),
        "intensities": ("−1024 … 1400", "−1000 … 1500"),
    }
    assert fingerprint_rows([], known) == []
    unknown = dict(
        row[:2] for row in fingerprint_rows([ScanFacts((9, 8, 1), None, "uint8", ((0, 1),))], None)
    )
    assert (unknown["size in voxels"], unknown["pixel size"]) == ("9 × 8", "unknown")


# A run's pictures over time


def test_the_timeline_keeps_few_pictures_and_survives_a_restart(tmp_path):
    found = evaluation(12)
    cases = [r.case for r in found.cases]

    for half in (range(1, 25), range(20, 51)):  # stopped after epoch 24, gone on from 19
        timeline = Timeline(tmp_path, cases, "axial")
        for epoch in half:
            draw = timeline.at(epoch / 50, epoch)
            for case in cases:
                draw(*volume(found.classes, case))
    end = timeline.at_end(50)
    for case in cases:
        end(*volume(found.classes, case))
    stories = timeline.stories()
    assert len(stories) == 2
    for story in stories:
        assert [what for what, _ in story.frames] == [
            *("mask", "epoch 1", "epoch 4", "epoch 10", "epoch 23", "epoch 35"),
            "the model, epoch 50",
        ]
        assert all(max(Image.open(path).size) <= 240 for _, path in story.frames)


def test_a_run_without_validation_cases_has_no_timeline(tmp_path):
    assert Timeline(tmp_path, (), "axial").stories() == []


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_opens_it_offline(tmp_path):
    gate = {"n_review": 1, "n": 30, "spearman": 0.85, "expected_share": 0.05}
    write(evaluation(30, marked=True), tmp_path, calibration=CALIBRATION, gate=gate)
    with open_page(lambda url: url.startswith(("file:", "data:"))) as page:
        page.context.set_offline(True)
        page.goto((tmp_path / "report.html").as_uri())
        assert page.locator("h1").inner_text() == "runs/x on data/x"
        assert page.locator("nav a").count() == page.locator("main section").count()
        loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 1)"
        assert page.evaluate(loaded)
        for width in (1280, 800, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 680, "height": 990})  # A4 within its margins
        beyond = "[...document.querySelectorAll('table, svg, img')].filter("
        beyond += "e => e.getBoundingClientRect().right > 681).length"
        assert page.evaluate(beyond) == 0
        assert not page.locator("nav").is_visible()
