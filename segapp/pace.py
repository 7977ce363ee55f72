"""How much of a run is left: in steps where epochs are given, in time where a budget is."""

from __future__ import annotations

import math
import time

VALIDATION_SHARE = 0.1  # of a budget's time may go into validation
CLOSING_S = 2.0  # kept free at a budget's end for writing the model
CLOSING_PASSES = 3  # over the validation cases: the last one's score, the temperature, the judging
_SETTLING_STEPS = 3  # the first steps also choose kernels and grow the heap


class Clock:
    """Seconds since the command began, earlier sittings of the run included."""

    def __init__(self, started: float, earlier: float = 0.0, budget_minutes: float | None = None):
        self._started, self._earlier = started, earlier
        self._budget = budget_minutes * 60 if budget_minutes else None

    def elapsed(self) -> float:
        return self._earlier + time.time() - self._started

    def left(self) -> float | None:
        """Seconds left of the budget; None without one."""
        return None if self._budget is None else self._budget - self.elapsed()


class Pace:
    """Measures steps and says how many are left.

    total_steps counts without a budget. With one, a step costs its own time and its share of the
    validation that ends an epoch, at most a tenth more (validations that cost more are left out),
    and the last validations and the writing are kept free.
    """

    def __init__(
        self,
        clock: Clock,
        steps_per_epoch: int,
        total_steps: int,
        closing_passes: int = CLOSING_PASSES,
    ):
        self._closing_passes = closing_passes
        self.clock, self._per_epoch, self._total = clock, steps_per_epoch, total_steps
        self.step_seconds: float | None = None
        self._steps = 0
        self._mark = time.perf_counter()

    def resume_timing(self) -> None:
        """Start the next step's clock now: what lies behind was no part of a step."""
        self._mark = time.perf_counter()

    def step_done(self) -> None:
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._steps += 1
        if self._steps == _SETTLING_STEPS:
            self.step_seconds = seconds
        elif self.step_seconds is not None:
            self.step_seconds += 0.1 * (seconds - self.step_seconds)

    def steps_left(self, step: int, validation_seconds: float) -> float:
        """Steps left when the `step`-th (from 1) has just been taken, this one included.

        Infinity while the first steps of a budget settle: they say nothing about the others.
        """
        left = self.clock.left()
        if left is None:
            return self._total - step + 1
        left -= self._closing_passes * validation_seconds + CLOSING_S
        if self.step_seconds is None:
            return math.inf if left > 0 else 1
        return 1 + max(0.0, left) / self._seconds_each(validation_seconds)

    def seconds_left(self, step: int, validation_seconds: float) -> float:
        """The ETA of the whole run."""
        if (left := self.clock.left()) is not None:
            return left
        return (self._total - step) * self._seconds_each(validation_seconds)

    def _seconds_each(self, validation_seconds: float) -> float:
        step, validation = self.step_seconds or 0.0, validation_seconds / self._per_epoch
        most = math.inf if self.clock.left() is None else VALIDATION_SHARE * step
        return step + min(validation, most)
