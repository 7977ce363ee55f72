"""What a finished training learns about its model: how sure it may be, and when to doubt it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from segapp import metrics
from segapp.calibration import fit_temperature, judged_pixels, some_pixels
from segapp.cases import Case
from segapp.data import SliceCache
from segapp.errors import ScanError
from segapp.figures import Evaluation
from segapp.novelty import Novelty, features, fit_novelty, scan_features
from segapp.pace import Clock
from segapp.predict import Predictor
from segapp.quality import Judged, Quality, fit_quality
from segapp.scan import Segmentation
from segapp.validation import Validation

log = logging.getLogger("segapp")

_PROBED = 30  # cases that the temperature is fitted to
_COMPARED = 1000  # cases of each split whose looks are learned
_SLICES = 32  # of a case
T = TypeVar("T")


def judge_model(
    predictor: Predictor,
    validation: Validation,
    cache: SliceCache,
    training: Sequence[Case],
    clock: Clock,
    draw: Callable[[Case, Segmentation, np.ndarray], None],
) -> tuple[Evaluation, Quality]:
    """Fit the predictor's temperature, validate it so, and fit how its results are judged.

    cache: the slices of `training`. draw: on_segmentation of the validation. Two passes over the
    validation cases, the first over at most thirty of them.
    """
    cases = validation.cases
    pixels: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def collect(case: Case, slab: np.ndarray, truth: np.ndarray) -> None:
        pixels[case.patient].append(some_pixels(*judged_pixels(slab, truth)))

    validation.cases = _some(cases, _PROBED)
    validation.run(clock, on_slab=collect)
    validation.cases = cases
    predictor.temperature = fit_temperature(
        [
            (np.concatenate(p), np.concatenate(t))
            for p, t in (zip(*v, strict=True) for v in pixels.values())
        ]
    )
    result = validation.run(clock, on_segmentation=draw)
    judged = [
        Judged(
            r.case.patient, r.matrix.sum(1), r.matrix.sum(0), metrics.mean_dice(r.matrix), r.soft
        )
        for r in result.done()
        if r.soft is not None
    ]
    declared = all(case.declared for case in cases)
    novelty = _novelty(validation, predictor, cache, training)
    return result, fit_quality(judged, len(predictor.classes), novelty, declared)


def _novelty(
    validation: Validation, predictor: Predictor, cache: SliceCache, training: Sequence[Case]
) -> Novelty | None:
    """What the slices of the training and the validation cases look like."""
    scans, patients = [], []
    spans = dict.fromkeys(cache.cases)  # one a case, in their order
    for case, span in _some(list(zip(training, spans, strict=True)), _COMPARED):
        images = (cache[k][0] for k in _some(span, _SLICES))
        first = cache.context * cache.channels
        scans.append(np.stack([features(i[first : first + cache.channels]) for i in images]))
        patients.append(case.patient)
    for case in _some(validation.cases, _COMPARED):
        try:
            scan, _ = validation.read(case)
        except ScanError:
            continue  # the validation said so
        scans.append(scan_features(predictor.preprocessing.prepare(scan)))
        patients.append(case.patient)
    return fit_novelty(scans, patients)


def _some(items: Sequence[T], most: int) -> tuple[T, ...]:
    """At most so many, evenly spaced."""
    chosen = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return tuple(items[n] for n in chosen)
