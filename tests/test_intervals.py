import numpy as np
import pytest
from scipy import stats

from segapp.intervals import intervals, paired


def mean(totals):
    """Of rows (value, 1) summed: the mean."""
    return totals[:, :1] / totals[:, 1:]


def rows(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def test_equal_patients_leave_no_doubt():
    assert intervals(rows(np.full(6, 0.25)), mean).tolist() == [[0.25], [0.25]]


def test_few_patients_give_no_interval():
    assert np.isnan(intervals(rows(np.arange(4.0)), mean)).all()
    assert np.isnan(intervals(np.zeros((0, 2)), lambda t: np.full((len(t), 1), np.nan))).all()


def test_the_same_numbers_give_the_same_interval():
    values = rows(np.random.default_rng(1).beta(8, 2, 30))
    assert np.array_equal(intervals(values, mean), intervals(values, mean))


def test_only_patients_who_have_a_figure_count():
    def of_those_who_have_it(totals):
        return np.divide(
            totals[:, :1],
            totals[:, 1:],
            out=np.full((len(totals), 1), np.nan),
            where=totals[:, 1:] > 0,
        )

    values = np.zeros((30, 2))
    values[:4] = rows(np.linspace(0.2, 0.8, 4))  # nearly every draw has one of the four
    assert np.isnan(intervals(values, of_those_who_have_it)).all()
    values[4] = 0.5, 1
    low, high = intervals(values, of_those_who_have_it)[:, 0]
    assert low < 0.5 < high


def test_many_patients_have_the_interval_of_scipys_bca():
    values = np.random.default_rng(2).beta(8, 2, 400)
    ends = stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=0)
    low, high = intervals(rows(values), mean)[:, 0]
    width = ends.confidence_interval.high - ends.confidence_interval.low
    assert low == pytest.approx(ends.confidence_interval.low, abs=0.05 * width)
    assert high == pytest.approx(ends.confidence_interval.high, abs=0.05 * width)


@pytest.mark.slow
@pytest.mark.parametrize("skewed", ["beta", "mixed"])
def test_intervals_hold_the_true_mean_as_often_as_they_say(skewed):
    """1,000 data sets of 50 cases, like Dice: most are good, and a tail is not."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(1000):
        values, true = rng.beta(8, 2, 50), 0.8
        if skewed == "mixed":
            poor = rng.random(50) < 0.2
            values, true = np.where(poor, rng.uniform(0, 0.8, 50), rng.beta(30, 3, 50)), None
            true = 0.2 * 0.4 + 0.8 * 30 / 33
        low, high = intervals(rows(values), mean)[:, 0]
        held += low <= true <= high
    assert 0.93 <= held / 1000 <= 0.97


@pytest.mark.slow
def test_no_difference_is_found_in_1_of_20_and_the_smallest_in_4_of_5():
    rng = np.random.default_rng(4)
    nothing = rows(np.zeros(20))
    scatter = rng.normal(0, 1, (300, 20))
    found = [paired(rows(row), nothing, mean) for row in scatter]
    assert 0.02 <= np.mean([p[0] < 0.05 for p, _ in found]) <= 0.09
    least = float(np.median([smallest[0] for _, smallest in found]))
    found = [paired(rows(row + least), nothing, mean)[0][0] < 0.05 for row in scatter]
    assert 0.72 <= np.mean(found) <= 0.88


def test_a_pair_without_difference():
    p, least = paired(rows(np.arange(10.0)), rows(np.arange(10.0)), mean)
    assert (p[0], least[0]) == (1.0, 0.0)


def test_the_randomisation_by_hand():
    """Of 2^6 ways to swap six equal differences, two are as extreme as what was seen."""
    p, _ = paired(rows(np.ones(6)), rows(np.zeros(6)), mean)
    assert p[0] == pytest.approx(2 / 64, abs=0.008)
    few, least = paired(rows(np.ones(5)), rows(np.zeros(5)), mean)
    assert np.isnan([few[0], least[0]]).all()
