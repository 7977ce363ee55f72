"""Validation that fits into a budget: fewer slices where there are too many."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import SteppedTime
from test_predict import CLASSES, RAW, BrightnessEngine

from segapp.cases import find_cases
from segapp.pace import Clock
from segapp.predict import Predictor
from segapp.preprocess import Preprocessing
from segapp.scan import Scan
from segapp.validation import Validation, every_nth


class SlowEngine(BrightnessEngine):
    """Takes ten milliseconds of the stepped time for a batch."""

    def __init__(self, batch_size: int, clock: SteppedTime):
        super().__init__(batch_size)
        self.clock = clock

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.clock.sleep(0.01)
        return super().__call__(batch)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Three val volumes of 40 axial slices, whose slice k holds 100 from k = 20 on."""
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    for part in ("images", "masks"):
        (tmp_path / "val" / part).mkdir(parents=True)
        for n in range(3):
            voxels = np.zeros((9, 7, 40), np.uint8)
            voxels[:, :, 20:] = 100
            nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "val" / part / f"{n}.nii.gz")
    return tmp_path


def validation(root: Path, clock: SteppedTime, **preprocessing: Any) -> Validation:
    prep = Preprocessing.model_validate({"channels": 1, **RAW, **preprocessing})
    plan: Any = SimpleNamespace(dataset=find_cases(root), ignore=None, merged=())
    return Validation(Predictor(SlowEngine(1, clock), prep, CLASSES), plan)


def test_a_long_validation_takes_every_nth_slice(volumes: Path, stepped_time: SteppedTime) -> None:
    whole = validation(volumes, stepped_time)  # 120 slices of 10 ms: 1.2 s
    whole.fit_into(60)
    assert (whole.every, whole.seconds) == (1, pytest.approx(1.2))
    part = validation(volumes, stepped_time)
    part.fit_into(9)  # one may take 0.27 s
    assert part.every == 5  # 1.2 s / 0.27 s, rounded up
    assert part.seconds == pytest.approx(1.2 / 5)
    began = stepped_time.time()
    result = part.run(Clock(stepped_time.time(), budget_minutes=1))
    assert stepped_time.time() - began == pytest.approx(0.24)
    assert result.matrix.sum() == 3 * 63 * len(range(part.every // 2, 40, part.every))
    assert result.matrix[1, 1] == pytest.approx(result.matrix.sum() / 2, rel=0.15)


def test_five_cases_stay_while_they_take_no_more_than_a_tenth(
    volumes: Path, stepped_time: SteppedTime
) -> None:
    v = validation(volumes, stepped_time)
    v.cases = v.cases * 8  # 24
    v.seconds = 39.0
    assert v._affordable(1, 100) == 4, "6 cases; 3 % of the budget would buy 2, 1 in 13"
    assert v._affordable(40, 100) == 13, "slices are left out, not cases"
    v.seconds = 90.0
    assert v._affordable(1, 100) == 9, "more would take too much"
    v.seconds = 6.0
    assert v._affordable(1, 100) == 2, "enough of them as it is"
    v.cases = v.cases[:4]
    v.seconds = 39.0
    assert v._affordable(1, 100) == 13


def test_a_run_that_goes_on_keeps_its_validation_cases(
    volumes: Path, stepped_time: SteppedTime
) -> None:
    again = validation(volumes, stepped_time)
    again.fit_into(10, every=3)  # this machine would take every 5th by now
    assert again.every == 3
    whole = validation(volumes, stepped_time)
    whole.fit_into(1, every=1)
    assert whole.every == 1


def test_neighbours_stay_where_the_network_looks_at_them(
    volumes: Path, stepped_time: SteppedTime
) -> None:
    part = validation(volumes, stepped_time, context=1)
    part.fit_into(6)
    assert [c.name for c in part.cases] == ["val/0"]
    result = part.run(Clock(stepped_time.time(), budget_minutes=1))
    assert result.matrix.sum() == 9 * 7 * 40


def test_validations_are_left_out_near_the_end_and_while_they_take_much(
    volumes: Path, stepped_time: SteppedTime
) -> None:
    v = validation(volumes, stepped_time)
    v.seconds = 2.0
    assert v.due(Clock(stepped_time.time(), budget_minutes=1)), "the first is always due"
    v._last_end = 30.0
    assert not v.due(Clock(stepped_time.time(), earlier=45, budget_minutes=2))  # 2 of 15 s
    assert v.due(Clock(stepped_time.time(), earlier=52, budget_minutes=2))  # 2 of 22 s
    assert not v.due(Clock(stepped_time.time(), earlier=111, budget_minutes=2))  # and 9 s left
    assert v.due(Clock(stepped_time.time(), earlier=31)), "without a budget after each epoch"


def test_every_nth_slice_stays_in_its_place() -> None:
    voxels = np.arange(2 * 3 * 10, dtype=np.float32).reshape(1, 2, 3, 10)
    affine = np.array([[2, 0, 0, 5], [0, 3, 1, -4], [0, 0, 4, 7], [0, 0, 0, 1]], float)
    scan = Scan(voxels, affine, Path("x.nii"))
    thin = every_nth(scan, 2, 4)  # slices 2 and 6
    assert np.array_equal(thin.voxels, voxels[..., [2, 6]])
    for new, old in ((0, 2), (1, 6)):
        assert np.allclose(thin.affine @ [1, 2, new, 1], affine @ [1, 2, old, 1])
    assert every_nth(scan, 2, 1).voxels.shape == voxels.shape
    assert np.array_equal(every_nth(scan, 2, 99).voxels, voxels[..., 5:6])
    assert every_nth(scan, 0, 2).voxels.shape == (1, 1, 3, 10)
