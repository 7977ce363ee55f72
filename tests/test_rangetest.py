"""The learning-rate range test, on losses whose best rate is known."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segapp.errors import TrainingError
from segapp.rangetest import RangeTest, range_test, suggest, write_range_test


def valley(lr: float) -> float:
    """1 up to 1e-5, falling by 0.3 a decade to 0.1 at 1e-2, flat to 1e-1, then steeply up."""
    decades = math.log10(lr)
    if decades > -1:
        return 0.1 + 10 * (decades + 1)
    return 1 - 0.3 * min(3, max(0, decades + 5))


def test_rates_rise_by_one_factor_from_the_lowest_to_the_highest() -> None:
    seen: list[float] = []

    def step(lr: float) -> float:
        seen.append(lr)
        return 1 / len(seen)

    result = range_test(step, 1e-4, 1e-1, steps=4)
    assert seen == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert result.rates == tuple(seen)
    assert result.losses == (1, 1 / 2, 1 / 3, 1 / 4)


def test_smoothing_is_a_running_mean_that_begins_without_bias() -> None:
    """After losses 1 and 0: (0.9 × 0.1 × 1 + 0.1 × 0) / (1 - 0.81) = 0.09 / 0.19."""
    losses = iter((1.0, 0.0))
    result = range_test(lambda lr: next(losses), steps=2)
    assert result.smoothed == pytest.approx((1, 0.09 / 0.19))


def curve(*fall: float) -> tuple[list[float], list[float]]:
    """Rates 1, 2, 3, … and a loss of 1 for ten steps, then as given."""
    smoothed = [1.0] * 10 + list(fall)
    return [float(i + 1) for i in range(len(smoothed))], smoothed


def test_the_suggestion_is_where_19_of_20_parts_of_the_fall_are_done_less_the_lag() -> None:
    """The 16th step is the first at 0.1 + 0.9 / 20 = 0.145 or below; nine before is the 7th."""
    assert suggest(*curve(0.8, 0.6, 0.4, 0.2, 0.15, 0.14, 0.1, 0.5)) == 7


def test_where_the_least_loss_falls_on_a_flat_bottom_does_not_matter() -> None:
    for lowest in range(5):
        bottom = [0.11] * 5
        bottom[lowest] = 0.1
        assert suggest(*curve(0.8, 0.5, *bottom, 2.0)) == 4


def test_a_fall_within_the_first_steps_gives_the_lowest_rate() -> None:
    assert suggest([1e-3, 1e-2, 1e-1], [1.0, 0.1, 0.5]) == 1e-3


def test_a_known_valley_is_found_through_noise() -> None:
    """19 of 20 parts of the way from 1e-5 to 1e-2, in decades, are done at 10^-2.15 = 7e-3."""
    for seed in range(5):
        rng = np.random.default_rng((seed,))
        result = range_test(lambda lr, rng=rng: valley(lr) * rng.uniform(0.8, 1.2))
        assert 3.5e-3 < result.suggestion < 1.4e-2


def test_a_valley_a_decade_lower_gives_a_rate_a_decade_lower() -> None:
    here, lower = (range_test(lambda lr, f=f: valley(f * lr), 1e-7 / f, 1 / f) for f in (1, 10))
    assert lower.suggestion == pytest.approx(here.suggestion / 10)


def test_it_stops_where_the_loss_is_four_times_its_least() -> None:
    result = range_test(valley)
    diverged = result.smoothed > 4 * np.minimum.accumulate(result.smoothed)
    assert diverged.tolist() == [False] * (len(diverged) - 1) + [True]
    assert len(result.rates) == len(result.losses) == len(result.smoothed) < 100


@pytest.mark.parametrize("wild", [math.nan, math.inf])
def test_it_stops_where_the_loss_is_no_number_and_uses_what_came_before(wild) -> None:
    result = range_test(lambda lr: valley(lr) if lr < 0.05 else wild)
    assert max(result.rates) < 0.05
    assert all(map(math.isfinite, result.smoothed))
    assert 1e-3 < result.suggestion < 0.05


@pytest.mark.parametrize(
    "step",
    [
        lambda lr: 1.0,
        lambda lr: 1 + lr,
        lambda lr: 1 - 0.01 * (lr > 1e-3),
        lambda lr: math.nan,
        lambda lr: 1.0 if lr < 1e-5 else math.nan,
    ],
    ids=["flat", "rising", "falling by a percent", "nan", "flat, then nan"],
)
def test_a_loss_that_never_fell_is_an_error(step) -> None:
    with pytest.raises(TrainingError, match=r"never fell .* optim\.max_lr"):
        range_test(step)


def test_the_table_holds_every_step_and_the_picture_marks_the_suggestion(tmp_path: Path) -> None:
    result = RangeTest((1e-3, 1e-2, 1e-1), (1.0, 0.25, 0.5), (1.0, 0.6, 0.55), 1e-2)
    write_range_test(result, tmp_path)
    with (tmp_path / "learning_rates.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["learning_rate", "loss", "smoothed"],
        ["0.001", "1", "1"],
        ["0.01", "0.25", "0.6"],
        ["0.1", "0.5", "0.55"],
    ]
    picture = np.asarray(Image.open(tmp_path / "learning_rates.png").convert("RGB")).astype(int)
    orange = (np.abs(picture - (0xD5, 0x5E, 0x00)) < 20).all(-1)
    columns = np.nonzero(orange.sum(0) > 50)[0]  # of the dashed line, not of its legend's
    assert abs(columns.mean() / picture.shape[1] - 0.5) < 0.1  # 1e-2 is the middle
