import json

import numpy as np
import pytest

from segapp.novelty import fit_novelty
from segapp.quality import (
    DOUBTS,
    Judged,
    Quality,
    assess,
    conformal_quantile,
    distrust,
    doubted,
    expected_dice,
    fit_quality,
    judged_text,
    read_judged,
)
from segapp.scan import Assessment

SOFT = np.array([[80.0, 20.0], [78.0, 22.0], [75.0, 15.0]])  # chosen, expected, both


def judged(patient: str, true: int = 20, predicted: int = 20, dice: float = 0.7) -> Judged:
    sizes = [np.array([100 - n, n]) for n in (true, predicted)]
    return Judged(patient, *sizes, dice, SOFT)


def test_expected_dice_by_hand() -> None:
    assert expected_dice(SOFT) == pytest.approx(2 * 15 / (20 + 22))
    nothing = np.array([[100.0, 0.0], [98.0, 2.0], [98.0, 0.0]])
    assert np.isnan(expected_dice(nothing)), "a class that was not found tells nothing"
    both = np.hstack([SOFT, SOFT[:, 1:]])
    assert expected_dice(both) == pytest.approx(2 * 15 / (20 + 22)), "the mean over classes"


def test_a_scan_that_is_none_for_the_model_has_no_estimate_and_no_range() -> None:
    found = assess(fit_quality([judged(str(n)) for n in range(20)], 2, None, True), SOFT)
    assert found.estimated_dice is not None
    assert found.ranges[1] is not None
    assert doubted(found, (), 2) is found
    doubtful = doubted(found, ("a photo",), 2)
    assert doubtful is not None
    assert doubtful.review == ("a photo", *found.review)
    assert (doubtful.estimated_dice, doubtful.ranges, doubtful.promised) == (None, (None,) * 2, 0)
    assert doubted(None, ("a photo",), 2) == Assessment(None, None, ("a photo",), (None, None))


def test_probabilities_that_mean_it_expect_the_dice_that_comes() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 0.6, 200_000)
    truth, chosen = rng.random(p.size) < p, p > 0.5
    soft = np.array([[0, chosen.sum()], [0, p.sum()], [0, p[chosen].sum()]])
    dice = 2 * (truth & chosen).sum() / (truth.sum() + chosen.sum())
    assert expected_dice(soft) == pytest.approx(dice, abs=0.005)


def test_conformal_quantile_by_hand() -> None:
    scores = [float(n) for n in range(1, 20)]  # 19 patients: ⌈0.9 · 20⌉ = 18th smallest
    assert conformal_quantile(scores, [str(n) for n in range(19)]) == (18.0, 0.9)
    assert conformal_quantile(scores[:9], [str(n) for n in range(9)]) == (9.0, 0.9)
    assert conformal_quantile(scores[:14], [str(n) for n in range(14)]) == (14.0, 14 / 15)
    assert conformal_quantile([1.0, 5.0, 3.0], ["a", "b", "c"]) == (5.0, 0.75)
    assert conformal_quantile([1.0, 5.0], ["a", "a"]) == (None, 0.0), "one patient"
    assert conformal_quantile([], []) == (None, 0.0)


def test_a_patient_of_many_cases_weighs_like_one() -> None:
    """Of 19 patients one has a hundred cases, all of them far off: it stays one of twenty."""
    scores = [*np.arange(18.0), *[99.0] * 100]
    patients = [*map(str, range(18)), *["many"] * 100]
    factor, promised = conformal_quantile(scores, patients)
    assert (factor, promised) == (17.0, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patients", "each"), [(4, 1), (9, 1), (14, 1), (40, 1), (200, 1), (30, 6)]
)
def test_ranges_cover_what_they_promise(patients: int, each: int) -> None:
    """Skewed sizes, errors that grow with the doubtful voxels and that a patient's scans share: in
    4,000 data sets the true size of a new patient's scan is in its range as often as was promised,
    within 3 %. A range is factor · doubtful wide, so a size is in it where its score is at most the
    factor (see test_the_fit_by_hand)."""
    rng = np.random.default_rng(patients)
    names = [str(n) for n in range(patients) for _ in range(each)]
    hits, promised = 0, 0.0
    for _ in range(4000):
        size = rng.lognormal(7, 0.8, (patients + 1, each))
        doubtful = size * rng.uniform(0.05, 0.3, size.shape) + 1
        shared = rng.standard_t(4, (patients + 1, 1)) * (each > 1)
        true = np.maximum(0, size + doubtful * (rng.standard_t(4, size.shape) + shared))
        scores = np.abs(true - size) / doubtful
        factor, promised = conformal_quantile(scores[:-1].ravel().tolist(), names)
        assert factor is not None
        hits += scores[-1, 0] <= factor
    assert hits / 4000 == pytest.approx(promised, abs=0.03)


def test_the_fit_by_hand() -> None:
    cases = [judged("a", true=24), judged("a", true=26), judged("b", true=10, dice=0.6)]
    quality = fit_quality(cases, 2, None, patients_declared=True)
    expected = 2 * 15 / 42
    offset = ((0.7 - expected) + (0.6 - expected)) / (2 + DOUBTS)
    assert quality.offset == pytest.approx(offset)
    assert quality.least_dice == pytest.approx(expected + offset)
    doubtful = 20 + 22 - 2 * 15 + 1
    assert quality.margins[1].factor == pytest.approx(10 / doubtful)
    assert quality.margins[1].promised == pytest.approx(2 / 3)
    assert (quality.dice, quality.bias) == pytest.approx((0.65, offset * (2 + DOUBTS) / 2))
    enough = quality.model_copy(update={"cases": 5})
    found = assess(enough, SOFT)
    assert found.estimated_dice == pytest.approx(expected + offset)
    assert found.ranges[1] == pytest.approx((10, 30))
    assert (found.review, found.unlikeness) == ((), None)
    wide = tuple(m.model_copy(update={"factor": 9.0}) for m in enough.margins)
    found = assess(enough.model_copy(update={"margins": wide}), SOFT)
    assert found.ranges == ((0, 100), (0, 100)), "no size goes beyond the scan"


def test_a_model_whose_estimates_can_not_be_believed_marks_everything() -> None:
    """Few validation cases, or results far worse than expected: no estimate, whatever is found."""
    few = fit_quality([judged(str(n)) for n in range(4)], 2, None, True)
    found = assess(few, SOFT)
    assert found.estimated_dice is None
    reached = "this model reached a mean Dice of 0.70 in validation, on 4 cases"
    assert found.review == (f"{reached}, too few to judge results by",)
    poor = fit_quality([judged(str(n), dice=0.21) for n in range(20)], 2, None, True)
    found = assess(poor, SOFT)
    assert found.estimated_dice is None
    reached = "this model reached a mean Dice of 0.21 in validation, on 20 cases"
    assert found.review == (f"{reached}, 0.50 less than its probabilities make expect",)
    modest = fit_quality([judged(str(n), dice=0.95) for n in range(20)], 2, None, True)
    assert not distrust(modest), "better than expected is no reason"


def test_a_new_scan_is_compared_as_both_are_shown() -> None:
    def limit(value: float) -> Quality:
        cases = [judged(str(n)) for n in range(10)]
        quality = fit_quality(cases, 2, None, True)
        return quality.model_copy(update={"offset": 0.0, "least_dice": value})

    expected = expected_dice(SOFT)  # 0.714
    assert assess(limit(expected + 0.0005), SOFT).review == ()
    (reason,) = assess(limit(0.73), SOFT).review
    assert reason.endswith("nearly all validation cases have an estimate of 0.73 or more")
    perfect = np.array([[80.0, 20.0], [80.0, 20.0], [79.8, 19.6]])
    assert assess(limit(0.999), perfect).review == (), "0.98 of perfect ones is no reason"
    bad = np.array([[80.0, 20.0], [80.0, 20.0], [70.0, 9.0]])
    (reason,) = assess(limit(0.2), bad).review
    assert reason == "estimated Dice 0.45; below 0.50 more of a structure is wrong than right"


def test_what_is_marked_for_review() -> None:
    cases = [judged(str(n)) for n in range(10)]
    quality = fit_quality(cases, 2, None, patients_declared=True)
    worse = SOFT.copy()
    worse[2, 1] = 12
    (reason,) = assess(quality, worse).review
    assert reason.startswith("estimated Dice 0.56")
    nothing = np.array([[100.0, 0.0], [99.0, 1.0], [99.0, 0.0]])
    found = assess(quality, nothing)
    assert found.estimated_dice is None
    assert found.review == ("nothing was found; every validation case holds something",)
    sometimes = fit_quality([*cases, judged("z", true=0)], 2, None, patients_declared=True)
    assert assess(sometimes, nothing).review == ()


def test_a_patient_of_many_poor_cases_does_not_set_the_limit() -> None:
    poor = SOFT.copy()
    poor[2, 1] = 5
    cases = [Judged(str(n), *judged("x").soft[:2], 0.7, SOFT) for n in range(40)]
    cases += [Judged("many", *judged("x").soft[:2], 0.7, poor) for _ in range(100)]
    quality = fit_quality(cases, 2, None, True)
    assert quality.least_dice == pytest.approx(expected_dice(SOFT) + quality.offset)


def test_an_unlike_scan_is_marked_and_its_estimate_falls() -> None:
    rng = np.random.default_rng(0)
    usual = [rng.normal(0, 1, (1, 30)) for _ in range(60)]
    novelty = fit_novelty(usual, [str(n) for n in range(60)])
    quality = fit_quality([judged(str(n)) for n in range(10)], 2, novelty, True)
    like = assess(quality, SOFT, usual[0])
    far = assess(quality, SOFT, usual[0] + 20)
    assert like.review == ()
    assert like.unlikeness == pytest.approx(0, abs=1e-3)
    assert far.unlikeness is not None
    assert far.unlikeness > 3
    assert far.estimated_dice == pytest.approx(like.estimated_dice / far.unlikeness)
    assert far.review[0].startswith("unlike the training scans (")
    assert (far.ranges, far.promised) == ((None, None), 0.0), "nothing is promised of such scans"
    assert len(far.review) == 1, "one reason is enough"


def test_without_validation_cases_nothing_is_promised() -> None:
    quality = fit_quality([], 2, None, patients_declared=False)
    found = assess(quality, SOFT)
    assert found.ranges == (None, None)
    assert found.estimated_dice is None
    assert found.review == ("this model was validated on 0 cases, too few to judge results by",)


def test_judged_cases_are_kept_without_names(tmp_path) -> None:
    cases = [judged("mueller"), judged("schmidt"), judged("mueller", dice=float("nan"))]
    path = tmp_path / "judged.jsonl"
    path.write_text(judged_text(cases), encoding="utf-8")
    assert "mueller" not in path.read_text(encoding="utf-8")
    assert [json.loads(line)["patient"] for line in path.read_text().splitlines()] == [0, 1, 0]
    back = read_judged(path)
    assert len({c.patient for c in back}) == 2
    for before, after in zip(cases, back, strict=True):
        assert np.array_equal(before.soft, after.soft)
        assert np.array_equal(before.true, after.true)
        assert before.dice == pytest.approx(after.dice, nan_ok=True)
    assert fit_quality(back, 2, None, True) == fit_quality(cases, 2, None, True)
