"""The page of an evaluation: report.html, beside its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segapp import metrics
from segapp.card import model_card, structures
from segapp.checkpoint import ModelInfo, current_versions
from segapp.figures import PER_CASE, CaseResult, Evaluation, could_be_invented
from segapp.quality import scaling_text
from segapp.report import plots
from segapp.report.findings import ORIGINS
from segapp.report.page import number, p_value, signed, write_page
from segapp.report.pictures import (
    INVENTED,
    MISSED,
    OF_BOTH,
    OF_MASK,
    OF_RESULT,
    SWAPPED,
    CasePicture,
    chosen_cases,
    legend,
    ranked,
    score,
)
from segapp.report.scans import ScanFacts, fingerprint_rows
from segapp.scan import css
from segapp.seen import seen_text

_MOST_ROWS = 100  # of a table of cases; all are in cases.csv
_MOST_CELLS = 8  # classes of a confusion that is shown as a table
_MOST_CONFUSED = 8
_RANKS = {"worst": "Worst cases", "median": "Median cases", "best": "Best cases"}
_AGGREGATES = (
    ("miou", "Mean IoU", "all classes, all pixels together"),
    ("dice", "Dice", "foreground, all pixels together"),
    ("mean_case_miou", "Mean IoU of a case", "mean over the cases"),
    ("mean_case_dice", "Dice of a case", "foreground, mean over the cases"),
)


@dataclass
class Material:
    """What a page shows beyond the figures. model, data: as they were given; command: "" where
    there was none; facts: of each scan that was read, by its case's name; pictures: of the cases
    in `chosen_cases`, in any order."""

    model: Path
    data: Path
    command: str = ""
    facts: dict[str, ScanFacts] = field(default_factory=dict)
    pictures: list[CasePicture] = field(default_factory=list)


def write_report(
    evaluation: Evaluation,
    result: Mapping[str, Any],
    info: ModelInfo,
    material: Material,
    out: Path,
) -> None:
    """Write out/report.html. result: what `write_evaluation` returned. Raises OutputError."""
    several = len(evaluation.classes) <= _MOST_CELLS
    calibration, gate = result.get("calibration"), result.get("gate")
    write_page(
        out / "report.html",
        "evaluation.html.j2",
        result=result,
        material=material,
        model=_short(material.model),
        data=_short(material.data),
        info=info,
        structures=structures(info),
        notices=_notices(result),
        tiles=_tiles(result),
        sentence=_sentence(result),
        origin=ORIGINS[result["patients"]],
        classes=_class_rows(evaluation, result),
        spread=plots.spread_of_cases(evaluation),
        groups=_groups(evaluation, material.pictures),
        legend=legend(evaluation.classes),
        differences=_DIFFERENCES,
        worst=_case_rows(evaluation),
        scored=len(ranked(evaluation)),
        names=[c.name for c in evaluation.classes],
        confusion=_confusion_rows(evaluation) if several else [],
        confusion_map=None if several else plots.confusion_map(evaluation),
        confused=_most_confused(evaluation),
        calibration=calibration,
        scaling=scaling_text(calibration) if calibration and calibration["ece"] is not None else "",
        reliability=plots.reliability(calibration) if calibration else None,
        gate=gate,
        estimates=plots.estimates(evaluation.done()),
        review=_review_rows(evaluation),
        sizes=_size_rows(result),
        against=_against_rows(result.get("against")),
        failed=[(r.case.name, r.error) for r in evaluation.failed()],
        warnings=Counter(w for r in evaluation.cases for w in r.warnings).most_common(12),
        fingerprint=fingerprint_rows(
            [material.facts[n] for r in evaluation.done() if (n := r.case.name) in material.facts],
            info.training,
        ),
        card=model_card(info),
        versions=current_versions(),
    )


_DIFFERENCES = (
    ("missed: only the mask has a class", css(MISSED), "area"),
    ("invented: only the result has a class", css(INVENTED), "area"),
    ("mistaken: two different classes", css(SWAPPED), "area"),
    ("contour of the mask", css(OF_MASK), "line"),
    ("of the result", css(OF_RESULT), "line"),
    ("of both", css(OF_BOTH), "line"),
)


def _short(path: Path) -> str:
    """The end of a long path says most."""
    whole = len(path.parts) <= 3 and not path.is_absolute()
    return str(path if whole else Path(*path.parts[-2:]))


def count(n: int, what: str) -> str:
    """1 → "1 case", 1234 → "1 234 cases"."""
    return f"{n:,}".replace(",", " ") + f" {what}{'' if n == 1 else 's'}"


def _notices(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any figure."""
    found = []
    if not result["n"]:
        found.append("No case could be measured: there are no figures.")
    if seen := result.get("n_seen_in_training"):
        said = seen_text(seen, result["n"] + result["n_failed"])
        found.append(f"{said[0].upper()}{said[1:]}.")
    if result["n_failed"]:
        found.append(f"{count(result['n_failed'], 'case')} failed: left out of every figure.")
    if result.get("patients") == "guessed" and result["n"]:
        found.append("Which cases belong to one patient was guessed from their names.")
    if result.get("patients") == "one_a_case" and result["n"]:
        said = result.get("names_alike", "each case was counted as a patient of its own")
        found.append(
            f"{said[0].upper()}{said[1:]}: if some are of one patient, intervals are too narrow, "
            "and figures too good where others of that patient were trained on (a cases.csv with a "
            "patient column says so)."
        )
    if why := result.get("why_no_intervals"):
        found.append(f"No intervals: {why}. How far the figures can be trusted is not known.")
    return found


def _tiles(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "note": note, "value": result[key], "interval": result[f"{key}_interval"]}
        for key, name, note in _AGGREGATES
    ]


def _sentence(result: Mapping[str, Any]) -> str:
    """The weakest and the strongest class, and how often a class was missed or invented."""
    known = {n: c["dice"] for n, c in list(result["classes"].items())[1:] if c["dice"] is not None}
    if not known:
        return ""
    weakest, strongest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    said = f"Dice of {weakest}: {number(known[weakest])}."
    if weakest != strongest:
        said = f"Outlined best: {strongest}, with a Dice of {number(known[strongest])}; "
        said += f"worst: {weakest}, with {number(known[weakest])}."
    rows = list(result["classes"].values())[1:]
    missed, invented = (sum(c.get(k, 0) for c in rows) for k in ("n_missed", "n_false_positive"))
    if not missed and not invented:
        if any(map(could_be_invented, rows)):
            return f"{said} No structure was missed or invented altogether in any case."
        said += " No structure was missed altogether in any case."
        return f"{said} Every mask holds every class: whether one would be invented is not tested."
    happened = [f"missed altogether {count(missed, 'time')}"] if missed else []
    happened += [f"found in a case without one {count(invented, 'time')}"] if invented else []
    return f"{said} A structure was {' and '.join(happened)}."


def _class_rows(evaluation: Evaluation, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = [key for key in PER_CASE if key not in ("iou", "dice")]
    rows = []
    for c in evaluation.classes:
        values = result["classes"][c.name]
        row: dict[str, Any] = {"name": c.name, "colour": css(c.colour)}
        row |= {key: (values[key], values[f"{key}_interval"]) for key in ("iou", "dice")}
        for key in keys:
            found = values["cases"][key]
            row[key] = (found["mean"], found["interval"])
        row |= {key: values.get(f"n_{key}", 0) for key in ("missed", "false_positive", "absent")}
        row["invented"] = row["false_positive"] if could_be_invented(values) else "–"
        rows.append(row)
    return rows


def _groups(evaluation: Evaluation, pictures: Sequence[CasePicture]) -> list[dict[str, Any]]:
    """The chosen cases with their pictures, the worst first."""
    drawn = {p.case.name: p for p in pictures}
    groups = []
    for rank, results in chosen_cases(evaluation).items():
        shown = [
            {"picture": drawn[r.case.name], "result": r, "score": score(r), "dice": _dice(r)}
            for r in results
            if r.case.name in drawn
        ]
        if shown:
            groups.append({"title": _RANKS[rank], "cases": shown})
    return groups


def _dice(result: CaseResult) -> list[float | None]:
    values = metrics.dice(result.matrix)[1:]
    return [None if np.isnan(v) else float(v) for v in values]


def _case_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The worst cases, up to 100, the worst first."""
    return [
        {"name": r.case.name, "patient": r.case.patient, "score": score(r), "dice": _dice(r)}
        for r in ranked(evaluation)[:_MOST_ROWS]
    ]


def _confusion_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    matrix = evaluation.matrix
    if not matrix.any():
        return []
    shares = plots.shares_of_truth(matrix)
    return [
        {"name": c.name, "pixels": int(row.sum()), "shares": [None if np.isnan(v) else float(v)
                                                               for v in share]}
        for c, row, share in zip(evaluation.classes, matrix, shares, strict=True)
    ]  # fmt: skip


def _most_confused(evaluation: Evaluation) -> list[tuple[str, str, float, int]]:
    """(true class, what it was taken for, share of the true class, pixels), the most pixels
    first."""
    matrix, shares = evaluation.matrix.copy(), plots.shares_of_truth(evaluation.matrix)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [divmod(int(n), len(matrix)) for n in order]
    names = [c.name for c in evaluation.classes]
    return [
        (names[i], names[j], float(shares[i, j]), int(matrix[i, j]))
        for i, j in pairs
        if matrix[i, j]
    ]


def _review_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The cases marked for review, the lowest estimate first."""
    marked = [r for r in evaluation.done() if r.review]
    rows = [
        {
            "name": r.case.name,
            "estimate": r.estimated_dice,
            "unlikeness": r.unlikeness,
            "score": None if np.isnan(score(r)) else score(r),
            "reasons": "; ".join(r.review),
        }
        for r in marked
    ]
    return sorted(rows, key=lambda row: (row["estimate"] is None, row["estimate"], row["name"]))


def _size_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Promised and found coverage of the size intervals, for the classes that have them."""
    rows = []
    for name, values in result["classes"].items():
        if found := values.get("size_interval"):
            rows.append({"name": name, "why_not": "", "n": 0, **found})
    return rows


def _against_rows(other: Mapping[str, Any] | None) -> list[tuple[str, str, str, str, str]]:
    if other is None:
        return []
    rows = []
    for key, name, _ in _AGGREGATES:
        found = other[key]
        ends = found["interval"]
        interval = f"{signed(ends[0])} to {signed(ends[1])}" if ends else "–"
        least = number(found["smallest_detectable"])
        rows.append((name, signed(found["difference"]), interval, p_value(found["p"]), least))
    return rows
