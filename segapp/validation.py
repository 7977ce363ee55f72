"""Validation during training: the val split through the Predictor that users get."""

from __future__ import annotations

import logging
import time
from typing import Any

from segapp.cases import Case
from segapp.check import read_case
from segapp.evaluate import Evaluation, evaluate_cases
from segapp.pace import Clock
from segapp.plan import Plan
from segapp.predict import Predictor
from segapp.scan import Scan

log = logging.getLogger("segapp")

_SHARE = 0.1  # of a budget's time may go into validation
_KEPT_BYTES = 1 << 29  # scans kept in memory between epochs


class Validation:
    """The val split through the Predictor that users get; scans stay in memory while they fit."""

    def __init__(self, predictor: Predictor, plan: Plan):
        self._predictor, self._ignore, self._merged = predictor, plan.ignore, plan.merged
        self.cases = plan.dataset.split("val")
        self._kept: dict[str, tuple[Scan, Scan]] = {}
        self._room = _KEPT_BYTES
        self._last_end: float | None = None
        self._budgeted = plan.settings.train.budget_minutes is not None
        self.seconds = 0.0  # of one run over all cases

    def estimate(self) -> None:
        """Guess `seconds` from two cases (the first also warms up), before any step is planned."""
        for case in self.cases[:2]:
            began = time.perf_counter()
            self._predictor(self._read(case)[0])
            self.seconds = (time.perf_counter() - began) * len(self.cases)

    def due(self, clock: Clock) -> bool:
        """After each epoch; under a budget only while it takes a small share of the time."""
        if not self._budgeted or self._last_end is None:
            return True
        return self.seconds <= _SHARE * (clock.elapsed() - self._last_end)

    def run(self, clock: Clock, **kwargs: Any) -> Evaluation:
        began = clock.elapsed()
        result = evaluate_cases(
            *(self._predictor, self.cases, self._ignore, self._merged),
            read=self._read,
            **kwargs,
        )
        for failed in result.failed():
            log.warning("validation: %s", failed.error)
        self._last_end = clock.elapsed()
        self.seconds = self._last_end - began
        return result

    def _read(self, case: Case) -> tuple[Scan, Scan]:
        if case.name in self._kept:
            return self._kept[case.name]
        pair = read_case(case)
        self._room -= pair[0].voxels.nbytes + pair[1].voxels.nbytes
        if self._room > 0:
            self._kept[case.name] = pair
        return pair
