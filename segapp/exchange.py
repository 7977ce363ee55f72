"""What processes tell each other about the cases that they measured, as JSON: exact, as a float's
shortest decimal form is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from segapp.boundary import Boundary
from segapp.cases import Case
from segapp.figures import CaseResult, Evaluation
from segapp.report.scans import ScanFacts
from segapp.scan import Assessment

T = TypeVar("T")


class Sharing(Protocol):
    """What measuring needs of `Together`, which is about torch."""

    @property
    def first(self) -> bool: ...
    def share(self, items: Sequence[T]) -> Sequence[T]: ...
    def texts(self, own: str) -> list[str]: ...
    def require_same(self, what: str, own: str) -> None: ...


def gather(own: Evaluation, cases: Sequence[Case], together: Sharing) -> Evaluation:
    """The evaluation of all `cases`, in their order, from those of together.share(cases) in each
    process: what one process alone would have found, to the last bit."""
    texts = together.texts(json.dumps([_result_json(r) for r in own.cases]))
    if len(texts) == 1:
        return own
    told = [json.loads(text) for text in texts]
    results = [
        _result_of(case, told[n % len(told)][n // len(told)]) for n, case in enumerate(cases)
    ]
    return replace(own, cases=results)


def _result_json(r: CaseResult) -> dict[str, Any]:
    """Everything about a case but the case itself, which all processes know."""
    return {
        "matrix": r.matrix.tolist(),
        "error": r.error,
        "warnings": r.warnings,
        "boundary": r.boundary,
        "distance_unit": r.distance_unit,
        "voxel": r.voxel,
        "size_unit": r.size_unit,
        "soft": None if r.soft is None else np.asarray(r.soft).tolist(),
        "assessment": r.assessment and asdict(r.assessment),
        "ignored": r.ignored,
        "nll": r.nll,
        "counted": r.counted,
    }


def _result_of(case: Case, told: dict[str, Any]) -> CaseResult:
    """The inverse of `_result_json`."""
    judged, soft = told["assessment"], told["soft"]
    if judged:
        ranges = tuple(ends and (ends[0], ends[1]) for ends in judged["ranges"])
        judged = Assessment(**judged | {"review": tuple(judged["review"]), "ranges": ranges})
    changed = {
        "matrix": np.array(told["matrix"], np.int64),
        "warnings": tuple(told["warnings"]),
        "boundary": tuple(Boundary(*b) for b in told["boundary"]),
        "soft": None if soft is None else np.array(soft, float),
        "assessment": judged,
    }
    return CaseResult(case, **told | changed)


def gather_facts(own: dict[str, ScanFacts], together: Sharing) -> dict[str, ScanFacts]:
    """Those of all processes."""
    texts = together.texts(json.dumps({name: asdict(f) for name, f in own.items()}))
    told = {name: f for text in texts for name, f in json.loads(text).items()}
    return {
        name: ScanFacts(
            shape=tuple(f["shape"]),
            spacing_mm=f["spacing_mm"] and tuple(f["spacing_mm"]),
            dtype=f["dtype"],
            intensities=tuple((low, high) for low, high in f["intensities"]),
        )
        for name, f in told.items()
    }


def gather_arrays(own: dict[str, np.ndarray], together: Sharing) -> dict[str, np.ndarray]:
    """Float arrays by name, those of all processes."""
    texts = together.texts(json.dumps({name: array.tolist() for name, array in own.items()}))
    return {name: np.array(a, float) for text in texts for name, a in json.loads(text).items()}
