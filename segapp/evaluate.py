"""A Predictor on labelled cases: per-case figures, and the split's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from segapp import metrics
from segapp.ahead import in_order
from segapp.cases import Case, find_cases, image_hash, labels_to_indices
from segapp.check import read_case
from segapp.checkpoint import DataRecord
from segapp.errors import DataError, OutputError, ScanError
from segapp.files import require_writable, write_table, write_text
from segapp.formats.listing import is_small
from segapp.predict import Predictor
from segapp.preprocess import scan_axis, to_slices
from segapp.progress import track
from segapp.scan import Scan, SegClass, Segmentation

log = logging.getLogger("segapp")


@dataclass
class CaseResult:
    """One case: its confusion (truth rows, prediction columns), or why it has none."""

    case: Case
    matrix: np.ndarray
    error: str = ""
    warnings: tuple[str, ...] = ()


@dataclass
class Evaluation:
    """Results over cases. `nll` is the summed negative log-likelihood of `counted` voxels."""

    classes: tuple[SegClass, ...]
    cases: list[CaseResult] = field(default_factory=list)
    nll: float = 0.0
    counted: int = 0

    @property
    def matrix(self) -> np.ndarray:
        """The summed confusion, (classes, classes)."""
        empty = np.zeros((len(self.classes),) * 2, np.int64)
        return sum((r.matrix for r in self.cases), empty)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the true class per voxel; NaN without a voxel."""
        return self.nll / self.counted if self.counted else float("nan")

    @property
    def miou(self) -> float:
        return metrics.mean_iou(self.matrix)

    @property
    def dice(self) -> float:
        return metrics.mean_dice(self.matrix)

    def failed(self) -> list[CaseResult]:
        return [r for r in self.cases if r.error]


def evaluate_cases(
    predictor: Predictor,
    cases: Iterable[Case],
    ignore: int | None,
    merged: tuple[int, ...] = (),
    read: Callable[[Case], tuple[Scan, Scan]] = read_case,
    on_segmentation: Callable[[Case, Segmentation, np.ndarray], None] = lambda *_: None,
) -> Evaluation:
    """Segment each case on its own grid and compare it with its mask.

    A case that can't be read, or whose mask has a value outside the model's classes, is recorded
    with its error; the others go on. on_segmentation gets each result and the true indices.
    """

    def measure(case: Case) -> _Measured:
        try:
            return _measure(predictor, case, *read(case), ignore, merged)
        except (ScanError, ValueError) as error:
            message = str(error) if isinstance(error, ScanError) else f"{case.mask}: {error}"
            return _Measured(CaseResult(case, _zeros(predictor.classes), message))

    result = Evaluation(predictor.classes)
    for small, group in groupby(cases, lambda case: is_small(case.images)):
        threads = predictor.engine.calls_at_once if small else 1  # volumes go one by one
        for measured in in_order(measure, group, threads):
            result.cases.append(measured.result)
            result.nll += measured.nll
            result.counted += measured.counted
            if measured.segmentation is not None and measured.truth is not None:
                on_segmentation(measured.result.case, measured.segmentation, measured.truth)
    return result


@dataclass
class _Measured:
    """What a case adds to an evaluation. truth: (I, J, K) class indices."""

    result: CaseResult
    nll: float = 0.0
    counted: int = 0
    segmentation: Segmentation | None = None
    truth: np.ndarray | None = None


def _measure(
    predictor: Predictor,
    case: Case,
    scan: Scan,
    mask: Scan,
    ignore: int | None,
    merged: tuple[int, ...],
) -> _Measured:
    classes = predictor.classes
    truth = labels_to_indices(mask.voxels, classes, ignore, merged)  # (1, I, J, K)
    axis = scan_axis(scan.shape, scan.affine, predictor.preprocessing.slice_axis)
    in_slices = to_slices(truth, scan.affine, axis)[:, 0]  # (K, H, W)
    likelihoods: list[tuple[float, int]] = []

    def add(stop: int, _: int, slab: np.ndarray) -> None:
        likelihoods.append(_negative_log_likelihood(slab, in_slices[stop - len(slab) : stop]))

    segmentation = predictor(scan, on_slab=add)
    matrix = metrics.confusion(truth[0], segmentation.labels, len(classes))
    return _Measured(
        CaseResult(case, matrix, warnings=segmentation.warnings),
        sum(nll for nll, _ in likelihoods),
        sum(counted for _, counted in likelihoods),
        segmentation,
        truth[0],
    )


def _negative_log_likelihood(slab: np.ndarray, truth: np.ndarray) -> tuple[float, int]:
    """Sum over counted voxels of -log p(true class); slab (n, classes, H, W), truth (n, H, W)."""
    counted = truth < slab.shape[1]
    chosen = np.take_along_axis(slab, np.where(counted, truth, 0)[:, None].astype(np.int64), 1)
    p = np.maximum(chosen[:, 0][counted], 1e-12)
    return float(-np.log(p).sum(dtype=np.float64)), int(counted.sum())


def _zeros(classes: tuple[SegClass, ...]) -> np.ndarray:
    return np.zeros((len(classes), len(classes)), np.int64)


def summary(evaluation: Evaluation, split: str) -> dict[str, Any]:
    """What summary.json holds: split-level miou and dice, figures per class, and counts.

    Classes that neither the masks nor the predictions hold are null and left out of the means.
    """
    matrix = evaluation.matrix
    per_class = {
        c.name: {"iou": _number(i), "dice": _number(d), "true_voxels": int(n)}
        for c, i, d, n in zip(
            evaluation.classes,
            metrics.iou(matrix),
            metrics.dice(matrix),
            matrix.sum(1),
            strict=True,
        )
    }
    done = [r for r in evaluation.cases if not r.error]
    return {
        "split": split,
        "n": len(done),
        "n_failed": len(evaluation.cases) - len(done),
        "miou": _number(evaluation.miou),
        "dice": _number(evaluation.dice),
        "mean_case_miou": _mean([metrics.mean_iou(r.matrix) for r in done]),
        "mean_case_dice": _mean([metrics.mean_dice(r.matrix) for r in done]),
        "loss": _number(evaluation.loss),
        "classes": per_class,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _mean(values: list[float]) -> float | None:
    known = [v for v in values if not np.isnan(v)]
    return _number(float(np.mean(known))) if known else None


def write_evaluation(
    evaluation: Evaluation, split: str, out: Path, seen: int = 0
) -> dict[str, Any]:
    """Write out/cases.csv and out/summary.json; returns the summary. Raises OutputError."""
    names = [c.name for c in evaluation.classes]
    columns = ["case", "patient", "split", "status", "reason", "miou", "dice"]
    columns += [f"iou_{n}" for n in names] + [f"dice_{n}" for n in names] + ["warnings"]
    rows = []
    for r in evaluation.cases:
        row: dict[str, Any] = {"case": r.case.name, "patient": r.case.patient}
        row |= {"split": r.case.split, "status": "failed" if r.error else "ok"}
        row |= {"reason": r.error, "warnings": "; ".join(r.warnings)}
        if not r.error:
            row["miou"] = _number(metrics.mean_iou(r.matrix))
            row["dice"] = _number(metrics.mean_dice(r.matrix))
            for name, i, d in zip(
                names, metrics.iou(r.matrix), metrics.dice(r.matrix), strict=True
            ):
                row[f"iou_{name}"], row[f"dice_{name}"] = _number(i), _number(d)
        rows.append(row)
    result = {**summary(evaluation, split), "n_seen_in_training": seen}
    write_table(out / "cases.csv", columns, rows)
    write_text(out / "summary.json", json.dumps(result, indent=2) + "\n")
    return result


def evaluate_model(
    model: Path, data: Path, split: str | None, out: Path, device: str = "auto"
) -> dict[str, Any]:
    """Evaluate a model file on a split of a labelled data set; write and return the figures.

    Where the data set declares no split, or no val, cases have the split in which this model's
    training took them, known by their hash. split None means test where there is one; else val,
    unless there are cases of no split, new to the model; else all. Cases that the model was
    trained or chosen on are counted in `n_seen_in_training` and warned about. Raises DataError for
    a data set without that split, ModelFileError, ConfigError, OutputError.
    """
    if out.resolve() == data.resolve():
        raise OutputError(f"{out}: is the data set itself, whose cases.csv would be overwritten")
    require_writable(out)
    predictor = Predictor.load(model, device)
    assert predictor.info is not None
    dataset = find_cases(data)
    earlier = _splits_in_training(dataset.cases, predictor.info.data)
    asked = predictor.info.settings
    cases = tuple(
        _with_split_of_training(case, splits, bool(asked.get("train", {}).get("folds")))
        for case, splits in zip(dataset.cases, earlier, strict=True)
    )
    dataset = replace(dataset, cases=cases)
    if split is None:
        split = "test" if dataset.split("test") else "all"
        limit = asked.get("data", {}).get("limit")
        limited = isinstance(limit, int | float)  # cases that training left out
        if split == "all" and dataset.split("val"):
            split = "val" if limited or all(c.split for c in dataset.cases) else "all"
    cases = dataset.split(split)
    if not cases:
        there = ", ".join(sorted({c.split for c in dataset.cases if c.split})) or "none"
        raise DataError(f"{data}: no case is in the split {split}; there is: {there}")
    info = predictor.info
    result = evaluate_cases(predictor, track(cases, "evaluating"), info.ignore, info.merged)
    for r in result.failed():
        log.error("%s", r.error)
    used = {
        c.images
        for c, splits in zip(dataset.cases, earlier, strict=True)
        if splits & {"train", "val", "earlier"}
    }
    seen = sum(c.images in used for c in cases)
    if seen:
        log.warning(
            "%d of these %d cases were used to train or choose this model; "
            "its figures on them say little about new scans",
            seen,
            len(cases),
        )
    return write_evaluation(result, split, out, seen)


def _splits_in_training(cases: Sequence[Case], record: DataRecord) -> list[set[str]]:
    """For each case the splits in which the model's training had this very image; `earlier` where
    that of the model it went on from had it."""
    splits_of: dict[str, set[str]] = {}
    for split, hashes in (*record.images.items(), ("earlier", record.earlier)):
        for known in hashes:
            splits_of.setdefault(known, set()).add(split)
    readable = (all(path.is_file() for path in c.images) for c in cases)
    return [
        splits_of.get(image_hash(c), set()) if ok else set()
        for c, ok in zip(cases, readable, strict=True)
    ]


def _with_split_of_training(case: Case, splits: set[str], folds: bool) -> Case:
    """A case the data set leaves open goes where training had it; twins of a training image, such
    as black slices, count as trained on. Folds made training cases of the data set's val split."""
    splits = splits - {"earlier"}
    declared = ("test",) if folds else ("val", "test")
    if case.split in declared or not splits:
        return case
    return replace(case, split="train" if "train" in splits else sorted(splits)[-1])
