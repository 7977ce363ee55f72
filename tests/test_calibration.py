import math

import numpy as np
import pytest

from segapp.calibration import (
    BINS,
    calibration_error,
    fit_temperature,
    judged_pixels,
    reliability,
    some_pixels,
    tempered,
)
from segapp.quality import DOUBTS


def overconfident(temperature: float, seed: int, pixels: int = 20_000):
    """Probabilities whose logits were multiplied by `temperature`, and classes drawn from what they
    were before."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (pixels, 3))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (rng.random((pixels, 1)) > honest.cumsum(1)).sum(1)
    loud = np.exp(logits * temperature)
    return (loud / loud.sum(1, keepdims=True)).astype(np.float32), truth


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    patients = [overconfident(temperature, seed) for seed in range(40)]
    found = fit_temperature(patients)
    assert math.log(found) * (40 + DOUBTS) / 40 == pytest.approx(math.log(temperature), abs=0.02)
    assert fit_temperature([]) == 1
    empty = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    assert fit_temperature([empty, *patients]) == found, "a patient without pixels says nothing"


def test_few_patients_move_it_little() -> None:
    two = fit_temperature([overconfident(2.0, seed) for seed in range(2)])
    assert math.log(two) == pytest.approx(math.log(2) * 2 / (2 + DOUBTS), abs=0.02)


def test_scaling_mends_what_was_spoilt() -> None:
    spoilt, truth = overconfident(2.0, 0)
    before = calibration_error(reliability(spoilt, truth))
    after = calibration_error(reliability(tempered(spoilt, 2.0), truth))
    assert before > 0.1
    assert after < 0.02


def test_tempering_there_and_back() -> None:
    p, _ = overconfident(1.0, 1, 100)
    assert tempered(p, 1.0) == pytest.approx(p, abs=1e-6)
    assert tempered(tempered(p, 1.7), 1 / 1.7) == pytest.approx(p, abs=1e-4)
    assert tempered(np.array([[1.0, 0.0]], np.float32), 2.0).sum() == pytest.approx(1)


def test_reliability_by_hand() -> None:
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.0, 1.0]], np.float32)
    bins = reliability(p, np.array([0, 1, 1, 1]))
    assert bins[:, 0].sum() == 4
    assert bins[int(0.8 * BINS)].tolist() == pytest.approx([2, 1.6, 1])
    assert bins[BINS - 1].tolist() == [1, 1, 1]
    # bins differ by 1.6 - 1 = 0.6, 0.6 - 1 = -0.4, 1 - 1 = 0: their absolute sum over 4 pixels
    assert calibration_error(bins) == pytest.approx((0.6 + 0.4) / 4)
    assert math.isnan(calibration_error(np.zeros((BINS, 3))))


def test_only_foreground_and_its_surroundings_are_judged() -> None:
    truth = np.zeros((1, 9, 30), np.uint8)
    truth[0, 4, 4] = 1
    truth[0, 4, 6] = 7  # ignored
    slab = np.zeros((1, 2, 9, 30), np.float32)
    slab[:, 0] = 1
    slab[0, :, 4, 25] = (0.3, 0.7)  # invented
    p, true = judged_pixels(slab, truth)
    assert len(true) == 25 - 1 + 25  # two squares of five, one pixel ignored
    assert true.sum() == 1
    assert np.count_nonzero(p[:, 1] > 0.5) == 1
    assert len(judged_pixels(slab * 0 + [[[[1.0]], [[0.0]]]], truth * 0)[1]) == 0


def test_some_pixels_are_at_most_500() -> None:
    p, truth = overconfident(1.0, 0, 1234)
    few, _ = some_pixels(p, truth)
    assert 400 < len(few) <= 500
    assert len(some_pixels(p[:7], truth[:7])[1]) == 7
