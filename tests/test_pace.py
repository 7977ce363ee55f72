"""Steps and time left, with clocks that the test sets."""

import math

import pytest
from conftest import SteppedTime

from segapp.pace import CLOSING_PASSES, CLOSING_S, Clock, Pace


def test_epochs_count_exactly(stepped_time: SteppedTime) -> None:
    pace = Pace(Clock(stepped_time.time()), steps_per_epoch=5, total_steps=10)
    assert [pace.steps_left(step, 1.0) for step in (1, 2, 10)] == [10, 9, 1]


def test_a_budget_counts_what_is_left_after_validation_and_writing(
    stepped_time: SteppedTime,
) -> None:
    clock = Clock(stepped_time.time(), earlier=0.0, budget_minutes=1)
    pace = Pace(clock, steps_per_epoch=10, total_steps=0)
    assert pace.steps_left(1, 5.0) == math.inf  # the first steps say nothing yet
    pace.step_seconds = 0.5
    # 60 s less 0.2 s for each of the last validations and the closing; a step 0.5 s + 0.2 s / 10
    last = 0.2 * CLOSING_PASSES + CLOSING_S
    assert pace.steps_left(4, 0.2) == pytest.approx(1 + (60 - last) / 0.52)
    # long validations are left out until they take a tenth of the time: 0.5 s + 0.05 s
    last = 5 * CLOSING_PASSES + CLOSING_S
    assert pace.steps_left(4, 5.0) == pytest.approx(1 + (60 - last) / 0.55)


def test_a_spent_budget_ends_with_the_step_just_taken(stepped_time: SteppedTime) -> None:
    clock = Clock(stepped_time.time(), earlier=61, budget_minutes=1)
    pace = Pace(clock, steps_per_epoch=10, total_steps=0)
    assert pace.steps_left(1, 0.0) == 1  # also before any step was measured
    pace.step_seconds = 0.5
    assert pace.steps_left(9, 0.0) == 1


def test_earlier_sittings_count(stepped_time: SteppedTime) -> None:
    clock = Clock(stepped_time.time(), earlier=30, budget_minutes=1)
    assert clock.elapsed() == pytest.approx(30)
    assert clock.left() == pytest.approx(30)
