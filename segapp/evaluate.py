"""A Predictor on labelled cases: per-case figures, and the split's own."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from segapp import metrics
from segapp.ahead import in_order
from segapp.boundary import Boundary, boundary
from segapp.cases import Case, find_cases, labels_to_indices
from segapp.check import read_case
from segapp.checkpoint import ModelInfo
from segapp.errors import ConfigError, DataError, OutputError, ScanError
from segapp.exchange import Sharing, gather, gather_arrays, gather_facts
from segapp.figures import PER_CASE, CaseResult, Evaluation, comparison, full_summary, number
from segapp.files import require_writable, write_table, write_text
from segapp.formats.listing import is_small
from segapp.judgement import Calibration, gate_figures, size_coverage
from segapp.leakage import names_alike
from segapp.predict import Predictor, most_probable, soft_counts
from segapp.preprocess import scan_axis, to_slices
from segapp.progress import inessential, track
from segapp.report.evaluation import Material, write_report
from segapp.report.pictures import CasePicture, chosen_cases, draw_case
from segapp.report.scans import noting
from segapp.scan import Scan, SegClass, Segmentation
from segapp.seen import cases_to_measure, count_seen, hashes_of

log = logging.getLogger("segapp")


def evaluate_cases(
    predictor: Predictor,
    cases: Iterable[Case],
    ignore: int | None,
    merged: tuple[int, ...] = (),
    read: Callable[[Case], tuple[Scan, Scan]] = read_case,
    on_segmentation: Callable[[Case, Segmentation, np.ndarray], None] = lambda *_: None,
    on_slab: Callable[[Case, np.ndarray, np.ndarray], None] = lambda *_: None,
    tolerance: float | None = None,
) -> Evaluation:
    """Segment each case on its own grid and compare it with its mask.

    A case that can't be read, or whose mask has a value outside the model's classes, is recorded
    with its error; the others go on. on_segmentation gets each result and the true indices;
    on_slab each slab's probabilities (n, classes, H, W) and true indices (n, H, W), from whichever
    thread computed it, also of a case that fails later. tolerance: compare surfaces too, which
    takes time; in mm, or pixels where the spacing is unknown.
    """

    def measure(case: Case) -> _Measured:
        try:
            measured = _measure(predictor, case, *read(case), ignore, merged, on_slab)
            if tolerance is not None:
                _add_surfaces(measured, tolerance)
            return measured
        except (ScanError, ValueError) as error:
            message = str(error) if isinstance(error, ScanError) else f"{case.mask}: {error}"
            return _Measured(CaseResult(case, _zeros(predictor.classes), message))

    result = Evaluation(predictor.classes, tolerance=tolerance)
    for small, group in groupby(cases, lambda case: is_small(case.images)):
        threads = predictor.engine.calls_at_once if small else 1  # volumes go one by one
        for measured in in_order(measure, group, threads):
            result.cases.append(measured.result)
            if measured.segmentation is not None and measured.truth is not None:
                on_segmentation(measured.result.case, measured.segmentation, measured.truth)
    return result


@dataclass
class _Measured:
    """What a case adds to an evaluation. truth: (I, J, K) class indices."""

    result: CaseResult
    segmentation: Segmentation | None = None
    truth: np.ndarray | None = None


def _measure(
    predictor: Predictor,
    case: Case,
    scan: Scan,
    mask: Scan,
    ignore: int | None,
    merged: tuple[int, ...],
    on_slab: Callable[[Case, np.ndarray, np.ndarray], None],
) -> _Measured:
    classes = predictor.classes
    truth = labels_to_indices(mask.voxels, classes, ignore, merged)  # (1, I, J, K)
    axis = scan_axis(scan.shape, scan.affine, predictor.preprocessing.slice_axis)
    in_slices = to_slices(truth, scan.affine, axis)[:, 0]  # (K, H, W)
    likelihoods: list[tuple[float, int]] = []
    ignored = int(np.count_nonzero(truth >= len(classes)))
    soft = np.zeros((3, len(classes)))  # of what is counted, where that is not all

    def add(stop: int, _: int, slab: np.ndarray) -> None:
        nonlocal soft
        true = in_slices[stop - len(slab) : stop]
        likelihoods.append(_negative_log_likelihood(slab, true))
        if ignored:
            counted = true < len(classes)
            labels, best = most_probable(slab)
            soft += soft_counts(slab * counted[:, None], np.where(counted, labels, 255), best)
        on_slab(case, slab, true)

    segmentation = predictor(scan, on_slab=add)
    matrix = metrics.confusion(truth[0], segmentation.labels, len(classes))
    voxel, unit = scan.voxel_size()
    return _Measured(
        CaseResult(
            case,
            matrix,
            warnings=segmentation.warnings,
            voxel=voxel,
            size_unit=unit,
            soft=soft if ignored else segmentation.soft,
            assessment=segmentation.assessment,
            ignored=ignored,
            nll=sum(nll for nll, _ in likelihoods),
            counted=sum(counted for _, counted in likelihoods),
        ),
        segmentation,
        truth[0],
    )


def _add_surfaces(measured: _Measured, tolerance: float) -> None:
    """Compare the surfaces of each foreground class; what the mask ignores belongs to none."""
    result, truth, segmentation = measured.result, measured.truth, measured.segmentation
    assert truth is not None
    assert segmentation is not None
    affine = segmentation.scan.affine
    result.distance_unit = "px" if affine is None else "mm"
    steps = np.eye(3) if affine is None else affine[:3, :3].T
    counted = truth < len(result.matrix)
    of_classes = [Boundary(np.nan, np.nan, np.nan)]
    for index in range(1, len(result.matrix)):
        predicted = (segmentation.labels == index) & counted
        of_classes.append(boundary(truth == index, predicted, steps, tolerance))
    result.boundary = tuple(of_classes)


def _negative_log_likelihood(slab: np.ndarray, truth: np.ndarray) -> tuple[float, int]:
    """Sum over counted voxels of -log p(true class); slab (n, classes, H, W), truth (n, H, W)."""
    counted = truth < slab.shape[1]
    chosen = np.take_along_axis(slab, np.where(counted, truth, 0)[:, None].astype(np.int64), 1)
    p = np.maximum(chosen[:, 0][counted], 1e-12)
    return float(-np.log(p).sum(dtype=np.float64)), int(counted.sum())


def _zeros(classes: tuple[SegClass, ...]) -> np.ndarray:
    return np.zeros((len(classes), len(classes)), np.int64)


def write_evaluation(evaluation: Evaluation, split: str, out: Path, **more: Any) -> dict[str, Any]:
    """Write out/cases.csv and out/summary.json; returns the summary, with `more` at its end.
    Raises OutputError."""
    names = [c.name for c in evaluation.classes]
    columns = ["case", "patient", "split", "status", "reason", "miou", "dice"]
    columns += [f"{key}_{name}" for key in PER_CASE for name in names]
    columns += ["distance_unit", "size_unit", "warnings", "estimated_dice", "unlikeness"]
    columns += [f"size_{end}_{name}" for end in ("low", "high") for name in names]
    rows = []
    for r in evaluation.cases:
        row: dict[str, Any] = {"case": r.case.name, "patient": r.case.patient}
        status = "failed" if r.error else "review" if r.review else "ok"
        row |= {"split": r.case.split, "status": status, "warnings": "; ".join(r.warnings)}
        row |= {"reason": r.error or "; ".join(r.review)}
        if not r.error:
            row["miou"] = number(metrics.mean_iou(r.matrix))
            row["dice"] = number(metrics.mean_dice(r.matrix))
            for key, values in zip(PER_CASE, r.figures(), strict=True):
                row |= {f"{key}_{name}": number(v) for name, v in zip(names, values, strict=True)}
            row |= {"distance_unit": r.distance_unit, "size_unit": r.size_unit}
            for key, judged in (("estimated_dice", r.estimated_dice), ("unlikeness", r.unlikeness)):
                row[key] = None if judged is None else number(judged)
            for name, ends in zip(names, r.ranges(), strict=True):
                if ends:
                    row |= {f"size_low_{name}": ends[0], f"size_high_{name}": ends[1]}
        rows.append(row)
    result = {**full_summary(evaluation, split), **more}
    if evaluation.quality:
        for k, name in enumerate(names):
            found = size_coverage(evaluation.quality, evaluation.done(), k)
            result["classes"][name]["size_interval"] = found
    write_table(out / "cases.csv", columns, rows)
    write_text(out / "summary.json", json.dumps(result, indent=2) + "\n")
    return result


def evaluate_model(
    model: Path,
    data: Path,
    split: str | None,
    out: Path,
    device: str = "auto",
    against: Path | None = None,
    tolerance: float = 2.0,
    command: str = "",
    together: Sharing | None = None,
) -> dict[str, Any]:
    """Evaluate a model file on a split of a labelled data set; write and return the figures, and
    write a page about them (report.html), which shows `command` as what made it.

    split: see `cases_to_measure`. against: another model, to be compared with on the same cases.
    tolerance: of NSD, in mm, or pixels where the spacing is unknown. together: processes that have
    a share of the cases each; the first writes, and the others return {}. Raises DataError for a
    data set without that split and for models that read masks differently, ModelFileError,
    ConfigError, OutputError.
    """
    if out.resolve() == data.resolve():
        raise OutputError(f"{out}: is the data set itself, whose cases.csv would be overwritten")
    if not 0 <= tolerance < math.inf:
        raise ConfigError(f"--tolerance: got {tolerance}, expected 0 or more mm")
    first = together is None or together.first
    if first:
        require_writable(out)
    predictor, info = _load(model, device)
    other = _load(against, device) if against else None
    if against and other:
        _require_alike(model, info, against, other[1])
    dataset = find_cases(data)
    hashes = hashes_of(dataset.cases)
    cases, split = cases_to_measure(dataset, info, split, hashes)
    if together:
        seen_alike = [info.model_dump_json(), other and other[1].model_dump_json(), tolerance]
        files = [(c.name, hashes.get(c.images, "")) for c in cases]
        together.require_same("a model, the data or an option", json.dumps([*seen_alike, files]))
    material = Material(model, data, command)
    read = noting(read_case, material.facts)
    calibration = Calibration(info.temperature)
    result = _evaluate(
        *(predictor, info, cases, "evaluating", together, tolerance),
        read=read,
        on_slab=calibration.add,
    )
    if together:
        material.facts |= gather_facts(material.facts, together)
        calibration.bins |= gather_arrays(calibration.bins, together)
    more: dict[str, Any] = {"n_seen_in_training": count_seen(cases, info, hashes)}
    for finding in names_alike(dataset) if first else ():
        log.warning("%s", finding)
        more["names_alike"] = finding.message
    more["calibration"] = calibration.figures()
    if info.quality:
        more["gate"] = gate_figures(result)
    if other:
        theirs = _evaluate(*other, cases, "evaluating the other", together)
        seen = count_seen(cases, other[1], hashes, "the other")
        compared = {"model": str(against), **comparison(result, theirs)}
        more["against"] = {**compared, "n_seen_in_training": seen}
    if not first:
        return {}
    written = write_evaluation(result, split, out, **more)
    (out / "report.html").unlink(missing_ok=True)  # an older one would belie the figures
    with inessential("report.html"):
        material.pictures = _draw(predictor, info, result)
        write_report(result, written, info, material, out)
    return written


def _draw(predictor: Predictor, info: ModelInfo, evaluation: Evaluation) -> list[CasePicture]:
    """Pictures of the best, median and worst cases, segmented once more: no segmentation is kept,
    and which ones to draw is known at the end."""
    cases = [r.case for group in chosen_cases(evaluation).values() for r in group]
    pictures: list[CasePicture] = []

    def draw(case: Case, segmentation: Segmentation, truth: np.ndarray) -> None:
        pictures.append(draw_case(case, segmentation, truth, info.preprocessing.slice_axis))

    evaluate_cases(
        predictor, track(cases, "drawing"), info.ignore, info.merged, on_segmentation=draw
    )
    return pictures


def _load(model: Path, device: str) -> tuple[Predictor, ModelInfo]:
    predictor = Predictor.load(model, device)
    assert predictor.info is not None
    return predictor, predictor.info


def _evaluate(
    predictor: Predictor,
    info: ModelInfo,
    cases: tuple[Case, ...],
    what: str,
    together: Sharing | None,
    tolerance: float | None = None,
    **hooks: Any,
) -> Evaluation:
    cases_with_bar = track(together.share(cases) if together else cases, what)
    result = evaluate_cases(
        *(predictor, cases_with_bar, info.ignore, info.merged), tolerance=tolerance, **hooks
    )
    result.quality = info.quality
    if together:
        result = gather(result, cases, together)
    for r in result.failed() if together is None or together.first else ():
        log.error("%s", r.error)
    return result


def _require_alike(model: Path, info: ModelInfo, against: Path, other: ModelInfo) -> None:
    """Refuse to compare models that would make different truths of the same masks."""
    both = (info, other)
    ours, theirs = (([c.value for c in i.classes], i.ignore, {*i.merged}) for i in both)
    named_alike = all(a.may_be(b) for a, b in zip(info.classes, other.classes, strict=False))
    if ours != theirs or not named_alike:
        said = [", ".join(f"{c.name} = {c.value}" for c in i.classes) for i in both]
        raise DataError(
            f"{against}: reads masks as {said[1]} (ignored: {other.ignore}), {model} as {said[0]} "
            f"(ignored: {info.ignore}); only models of the same classes can be compared"
        )
