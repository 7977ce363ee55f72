"""`segapp check DATA --model MODEL`: masks ranked by how suspect a model finds them.

A model agrees too readily with masks that it learned from. So a cross-validation's run judges each
case by a fold that was not trained on it (it may have been validated on it, which no weight learns
from). The scores of what a model was trained on are too low, if anything, and marked as such.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segapp.cases import Case, list_cases
from segapp.checkpoint import MODEL_NAME, ModelInfo, read_info
from segapp.dispute import NO_DIFFERENCE, reason
from segapp.doctor import report_on
from segapp.errors import DataError
from segapp.evaluate import evaluate_cases
from segapp.figures import number
from segapp.files import require_writable, write_table
from segapp.finding import counted
from segapp.layout import Dataset
from segapp.predict import Predictor
from segapp.progress import track
from segapp.report.overlay import display_slices, display_window, pixel_aspect, truth_slices
from segapp.report.pairs import MOST, Pair, Shown, write_pairs
from segapp.scan import Segmentation
from segapp.seen import hashes_of, splits_in_training
from segapp.suspicion import Tally, radius, tally

log = logging.getLogger("segapp")

_ON_SCREEN = 10
_SEEN = (
    "the model that judges %d of %s was trained on them, and agrees too readily with what it "
    "learned: their scores may be too low. A model trained with train.folds=5 judges each mask by "
    "a fold that did not learn from it"
)
_SCORE = (
    "score: how much more a mask surprises the model, at its worst place, than the model expects; "
    "it compares masks, and none need be wrong"
)
_COLUMNS = ["rank", "case", "mask", "score", "dice", "expected_dice", "seen", "reason", "model"]
OnSlab = Callable[[Case, np.ndarray, np.ndarray], None]
OnSegmentation = Callable[[Case, Segmentation, np.ndarray], None]


@dataclass(frozen=True)
class Judge:
    """A model, and what it was trained on. name: "fold2", or that of its folder or file."""

    model: Path
    info: ModelInfo

    @property
    def name(self) -> str:
        return self.model.resolve().name


@dataclass
class Suspect:
    """A mask and what was found. seen: its judge was trained on it. tally None: see error."""

    case: Case
    judge: Judge
    seen: bool
    tally: Tally | None = None
    reason: str = ""
    pair: Pair | None = None
    error: str = ""


def find_judges(model: Path) -> tuple[Judge, ...]:
    """The folds of a cross-validation's run where they are all there, else the model alone.

    model: a run folder, a model file or an exported folder. Raises ModelFileError.
    """
    alone = Judge(model, read_info(model))
    folds = alone.info.settings.get("train", {}).get("folds") or 0
    run = model if model.is_dir() else model.parent
    models = [run / f"fold{n}" for n in range(1, folds + 1)]
    if models and all((fold / MODEL_NAME).is_file() for fold in models):
        return tuple(Judge(fold, read_info(fold)) for fold in models)
    return (alone,)


def assign(
    cases: Sequence[Case], judges: Sequence[Judge], hashes: Mapping[tuple[Path, ...], str]
) -> list[Suspect]:
    """Each case with the first judge that was not trained on its image, nor was what that judge
    went on from; else with the first, as `seen`."""
    learned = [
        [
            bool(splits & {"train", "earlier"})
            for splits in splits_in_training(cases, j.info.data, hashes)
        ]
        for j in judges
    ]
    suspects = []
    for case, by_judge in zip(cases, zip(*learned, strict=True), strict=True):
        seen = all(by_judge)
        suspects.append(Suspect(case, judges[0 if seen else by_judge.index(False)], seen))
    return suspects


def judge_cases(
    suspects: Sequence[Suspect],
    on_slab: OnSlab,
    on_segmentation: OnSegmentation = lambda *_: None,
    device: str = "auto",
) -> None:
    """Segment each case by its judge, and note the errors of those that can't be.

    on_slab, on_segmentation: see `evaluate_cases`. Raises ModelFileError, ConfigError.
    """
    by_judge: dict[Path, list[Suspect]] = {}
    for suspect in suspects:
        by_judge.setdefault(suspect.judge.model, []).append(suspect)
    for model, group in by_judge.items():
        judge = group[0].judge
        result = evaluate_cases(
            Predictor.load(model, device),
            track([s.case for s in group], f"judging masks with {judge.name}"),
            *(judge.info.ignore, judge.info.merged),
            on_segmentation=on_segmentation,
            on_slab=on_slab,
        )
        for suspect, measured in zip(group, result.cases, strict=True):
            suspect.error = measured.error


def review(
    dataset: Dataset, judges: Sequence[Judge], out: Path, device: str = "auto"
) -> dict[str, Any]:
    """Rank a data set's masks; write out/suspects.csv and, of those that differ from the model's
    results, out/suspects.png, which is removed where none does.

    Returns what --json holds: counts, and a row for each mask, as in the table. A case that can't
    be judged comes last, with its reason. sheet: None where there is no picture. Raises DataError
    where the masks are of other classes than the model's, ModelFileError, ConfigError, OutputError.
    """
    require_writable(out)
    suspects = assign(dataset.cases, judges, hashes_of(dataset.cases))
    of_case = {s.case.name: s for s in suspects}
    worst: list[Suspect] = []

    def add(case: Case, slab: np.ndarray, truth: np.ndarray) -> None:
        suspect, part = of_case[case.name], tally(slab, truth)
        suspect.tally = suspect.tally + part if suspect.tally else part

    def look(case: Case, segmentation: Segmentation, truth: np.ndarray) -> None:
        suspect = of_case[case.name]
        if _differs(suspect):
            worst.append(suspect)
        worst.sort(key=_badness)
        for dropped in worst[MOST:]:
            dropped.pair = None
        del worst[MOST:]
        _describe(suspect, segmentation, truth, suspect in worst)

    judge_cases(suspects, add, look, device)
    _require_fitting(dataset.root, suspects)
    done = [s for s in suspects if not s.error]
    ranked = sorted(done, key=lambda s: (not _differs(s), _badness(s)))
    failed = [s for s in suspects if s.error]
    rows = [_row(n, s) for n, s in enumerate(ranked, 1)] + [_row(None, s) for s in failed]
    write_table(out / "suspects.csv", _COLUMNS, rows)
    sheet = out / "suspects.png"
    sheet.unlink(missing_ok=True)  # an older one would belie the table
    if shown := _shown(ranked):
        heading = f"{dataset.root.name}: the most suspect of {counted(len(ranked), 'mask')}"
        write_pairs(heading, shown, judges[0].info.classes, sheet)
    n_seen = sum(s.seen for s in ranked)
    if n_seen:
        log.warning(_SEEN, n_seen, counted(len(ranked), "mask"))
    counts = {"n": len(ranked), "n_seen": n_seen, "n_failed": len(failed)}
    files = {"csv": str(out / "suspects.csv"), "sheet": str(sheet) if shown else None}
    return {**counts, **files, "masks": rows}


def _differs(suspect: Suspect) -> bool:
    return bool(suspect.tally and suspect.tally.differs)


def _badness(suspect: Suspect) -> tuple[float, str]:
    assert suspect.tally is not None
    return -suspect.tally.score, suspect.case.name


def _describe(
    suspect: Suspect, segmentation: Segmentation, truth: np.ndarray, is_shown: bool
) -> None:
    """Say what is different; for what is shown also look for a shift, and keep the slice."""
    scan, classes = segmentation.scan, segmentation.classes
    axis = suspect.judge.info.preprocessing.slice_axis
    images, labels = display_slices(segmentation, axis)
    true = truth_slices(truth, scan, axis)
    assert suspect.tally is not None
    k, *peak = suspect.tally.peak
    reach = round(2 * radius(true.shape))
    rows, columns = (
        slice(max(0, n - reach), min(n + reach + 1, size))
        for n, size in zip(peak, true.shape[1:], strict=True)
    )
    around = (slice(k, k + 1), rows, columns)
    suspect.reason = reason(true, labels, classes, around, look_for_shift=is_shown)
    if is_shown:
        known = np.where(true[k] < len(classes), true[k], labels[k])  # no opinion is no difference
        place = (rows, columns)
        looks = (display_window(scan), pixel_aspect(scan, axis))
        suspect.pair = Pair(images[k].copy(), known, labels[k].copy(), place, *looks)


def _shown(ranked: Sequence[Suspect]) -> list[Shown]:
    """The worst, numbered as in the table."""
    return [
        Shown(f"{n}  {s.case.name}" + " (trained on)" * s.seen, s.reason, s.pair)
        for n, s in enumerate(ranked[:MOST], 1)
        if s.pair
    ]


def _row(rank: int | None, suspect: Suspect) -> dict[str, Any]:
    row: dict[str, Any] = {"rank": rank, "case": suspect.case.name, "mask": str(suspect.case.mask)}
    done = None if suspect.error else suspect.tally
    row |= {
        "score": number(done.score) if done else None,
        "dice": number(done.dice) if done else None,
        "expected_dice": number(done.expected_dice) if done else None,
        "seen": "yes" if suspect.seen else "no",
        "reason": suspect.error or suspect.reason,
    }
    return row | {"model": suspect.judge.name}


def _require_fitting(root: Path, suspects: Sequence[Suspect]) -> None:
    """Refuse masks of other classes: where none that holds foreground could be read as the model's,
    and some could not."""
    failed = [s.error for s in suspects if s.error]
    fitting = any(s.tally and s.tally.matrix[1:].any() for s in suspects if not s.error)
    strange = [error for error in failed if "is outside the classes" in error]
    if strange and not fitting:
        info = suspects[0].judge.info
        known = ", ".join(f"{c.name} = {c.value}" for c in info.classes)
        raise DataError(
            f"{strange[0]} of the model ({known}), nor does any other mask of {root} fit; "
            "--model needs one trained on these classes"
        )


def check_with_model(
    root: Path,
    model: Path,
    out: Path,
    as_json: bool,
    say: Callable[[str], None],
    device: str = "auto",
) -> int:
    """`report_on`, then `review`, for the command line; returns the exit code, which is that of the
    first. say: gets lines for stdout, as they are known; as JSON one object."""
    judges = find_judges(model)
    lines, code = report_on(root, out, as_json)
    report = json.loads(lines[0]) if as_json else {}
    if not as_json:
        say("\n".join(lines))
    elif report["sheet"] is None:  # no data set at all
        say(json.dumps({**report, "suspects": None}))
        return code
    found = review(list_cases(root), judges, out, device)
    say(json.dumps({**report, "suspects": found}) if as_json else "\n".join(suspects_text(found)))
    return code


def suspects_text(found: dict[str, Any]) -> Iterator[str]:
    """The worst ten as a table, and where the rest is."""
    ranked = [row for row in found["masks"] if row["rank"]]
    differing = [row for row in ranked if row["reason"] != NO_DIFFERENCE]
    yield ""
    if ranked:
        new = len(ranked) - found["n_seen"]
        said = f"{counted(len(ranked), 'mask')}, {new} judged by a model that was not trained on it"
        if not differing:
            yield f"{said}: nothing suspicious, not a pixel differs from the model's results"
        else:
            differ = f"{len(differing)} differ{'s' if len(differing) == 1 else ''}"
            yield f"{said}; {differ} from the model's results, most suspect first:"
            yield from _table(differing[:_ON_SCREEN])
    for row in found["masks"]:
        if not row["rank"]:
            yield f"not judged: {row['reason']}"
    if found["sheet"]:
        yield _SCORE
    pictures = f"pictures: {found['sheet']}   " if found["sheet"] else ""
    yield f"{pictures}all masks: {found['csv']}"


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    width = max(len(row["case"]) for row in rows)
    yield f"{'rank':>4}  {'score':>6}  {'Dice':>4}  {'expected':>8}  {'case':<{width}}  reason"
    for row in rows:
        dice, expected = (
            "-" if row[key] is None else f"{row[key]:.2f}" for key in ("dice", "expected_dice")
        )
        said = f"{row['rank']:>4}  {row['score']:>6.3f}  {dice:>4}  {expected:>8}"
        seen = " (trained on)" if row["seen"] == "yes" else ""
        yield f"{said}  {row['case']:<{width}}  {row['reason']}{seen}"
