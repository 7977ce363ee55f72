"""Validation during training: the val split through the Predictor that users get."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

from segapp.cases import Case
from segapp.check import read_case
from segapp.errors import DataError
from segapp.evaluate import evaluate_cases
from segapp.exchange import gather
from segapp.figures import Evaluation
from segapp.pace import CLOSING_PASSES, CLOSING_S, VALIDATION_SHARE, Clock
from segapp.plan import Plan
from segapp.predict import Predictor
from segapp.preprocess import SliceAxis, ordering, scan_axis
from segapp.quality import LEAST_CASES
from segapp.scan import Scan
from segapp.together import ALONE, Together

log = logging.getLogger("segapp")

_MOST = 0.03  # of a budget that one validation may take
_TRIED = 8  # slices of a volume whose prediction is timed
_KEPT_BYTES = 1 << 29  # scans kept in memory between epochs


class Validation:
    """The val split through the Predictor that users get; scans stay in memory while they fit."""

    def __init__(self, predictor: Predictor, plan: Plan, together: Together = ALONE):
        """together: processes that measure a share of the cases each, but in `run_alone`."""
        self._together = together
        self._predictor, self._ignore, self._merged = predictor, plan.ignore, plan.merged
        self.cases = plan.dataset.split("val")
        self._kept: dict[str, tuple[Scan, Scan]] = {}
        self._room = _KEPT_BYTES
        self._last_end: float | None = None
        self._read_any = False
        self.every = 1  # takes each n-th slice of volumes, or each n-th single image
        self.shares: dict[str, float] = {}  # case → what its voxels that are taken count for each
        self.seconds = 0.0  # of one run over all cases

    def fit_into(self, budget_seconds: float, every: int = 0) -> None:
        """Guess `seconds`, before any step is planned; where that is more than 3 % of the
        budget, from then on take every n-th slice of volumes, or every n-th single image.

        every: what an earlier sitting of the run decided, which stays: figures of one history must
        be of the same cases. 0: nothing yet."""
        slices = 1
        for case in self.cases[:2]:  # the first also warms up
            scan, _ = self._read(case)
            along = slice_direction(scan, self._predictor.preprocessing.slice_axis)
            slices = scan.shape[along]
            few = every_nth(scan, along, math.ceil(slices / _TRIED))
            began = time.perf_counter()
            self._predictor(few)
            share = few.voxels.size / scan.voxels.size
            self.seconds = (time.perf_counter() - began) / share * len(self.cases)
        # by the pace of one process, as one alone judges the finished model
        every = every or self._affordable(slices, budget_seconds)
        self.seconds /= self._together.ranks.count
        self.seconds, agreed = self._together.of_first(self.seconds, every)
        self.every = int(agreed)
        if self.every == 1:
            return
        self.seconds /= self.every
        whole = self._takes_whole(slices)
        self.cases = self.cases[:: self.every] if whole else self.cases
        self._kept.clear()
        self._room = _KEPT_BYTES
        what = "cases" if whole else "slices"
        log.info("validation: 1 in %d of the %s, to save the budget's time", self.every, what)

    def _takes_whole(self, slices: int) -> bool:
        """Whether cases are left out, not slices of each: neighbours must stay together."""
        return slices == 1 or bool(self._predictor.preprocessing.context)

    def _affordable(self, slices: int, budget_seconds: float) -> int:
        """Each how many-th slice or case fits into the budget. Of five cases or more five stay, as
        nothing can be said by fewer, while one validation then takes at most a tenth."""
        shares = (_MOST, VALIDATION_SHARE)
        usual, least = (max(1, math.ceil(self.seconds / (s * budget_seconds))) for s in shares)
        enough = len(self.cases) // LEAST_CASES
        return min(usual, max(least, enough)) if self._takes_whole(slices) and enough else usual

    def due(self, clock: Clock) -> bool:
        """After each epoch; under a budget only while it takes a small share of the time, and not
        shortly before the last one."""
        left = clock.left()
        if left is None or self._last_end is None:
            return True
        is_short = self.seconds <= VALIDATION_SHARE * (clock.elapsed() - self._last_end)
        return is_short and left > (self.closing_passes + 1) * self.seconds + CLOSING_S

    @property
    def closing_passes(self) -> int:
        """How many times `seconds` the end takes: one process judges the finished model alone."""
        return CLOSING_PASSES * self._together.ranks.count

    def run(self, clock: Clock, **kwargs: Any) -> Evaluation:
        """Measure all cases. kwargs: those of `evaluate_cases`, of whose hooks each process sees
        its share. Raises DataError where none can be read any more."""
        result = self._measure(clock, self._together, **kwargs)
        result = gather(result, self.cases, self._together)
        for failed in result.failed():
            log.warning("validation: %s", failed.error)
        return result

    def run_alone(self, clock: Clock, **kwargs: Any) -> Evaluation:
        """The same in this process, whatever others do."""
        return self._measure(clock, ALONE, **kwargs)

    def _measure(self, clock: Clock, together: Together, **kwargs: Any) -> Evaluation:
        began = clock.elapsed()
        self._read_any = False
        result = evaluate_cases(
            *(self._predictor, together.share(self.cases), self._ignore, self._merged),
            read=self._read,
            **kwargs,
        )
        if self.cases and not together.most(self._read_any)[0]:
            first = next((r.error for r in result.failed()), "see the other processes")
            raise DataError(f"none of the validation cases can be read any more: {first}")
        self._last_end = clock.elapsed()
        self.seconds = self._last_end - began
        return result

    def _read(self, case: Case) -> tuple[Scan, Scan]:
        if case.name in self._kept:
            self._read_any = True
            return self._kept[case.name]
        scan, mask = read_case(case)
        self._read_any = True
        if not self._predictor.preprocessing.context:
            along = slice_direction(scan, self._predictor.preprocessing.slice_axis)
            whole = scan.shape[along]
            scan, mask = (every_nth(each, along, self.every) for each in (scan, mask))
            self.shares[case.name] = whole / scan.shape[along]
        self._room -= scan.voxels.nbytes + mask.voxels.nbytes
        if self._room > 0:
            self._kept[case.name] = (scan, mask)
        return scan, mask


def slice_direction(scan: Scan, slice_axis: SliceAxis) -> int:
    """The voxel axis that the slices of a scan follow each other on."""
    return ordering(scan.affine, scan_axis(scan.shape, scan.affine, slice_axis))[0][0]


def every_nth(scan: Scan, along: int, step: int) -> Scan:
    """Every `step`-th slice of a scan along a voxel axis, at least one, each in its own place."""
    first = min(step, scan.shape[along]) // 2 if step > 1 else 0
    kept = tuple(slice(first, None, step) if n == along else slice(None) for n in range(3))
    affine = None
    if scan.affine is not None:
        affine = scan.affine.copy()
        affine[:3, 3] += first * affine[:3, along]
        affine[:3, along] *= step
    return replace(scan, voxels=scan.voxels[:, *kept], affine=affine)
