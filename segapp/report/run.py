"""The page of a training run: report.html in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segapp.card import model_card, structures
from segapp.cases import Case
from segapp.checkpoint import ModelInfo, current_versions
from segapp.finding import counted
from segapp.layout import SPLITS
from segapp.plan import Plan
from segapp.quality import distrust
from segapp.report.page import file_uri, number, write_page
from segapp.report.pictures import legend
from segapp.report.scans import training_rows
from segapp.report.timeline import Timeline
from segapp.report.training import curves_for_page
from segapp.scan import css

_WIDE, _SMALL = 1100, 240  # pixels of a picture's longer side


def write_run_page(
    plan: Plan,
    info: ModelInfo,
    history: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
    shown: Mapping[Case, str],
    timeline: Timeline,
) -> None:
    """Write report.html into the run folder, from what is there.

    history: its rows, as in history.csv; figures: what metrics.json will hold; shown: the cases
    with a picture in overlays/, and its name. Raises OutputError.
    """
    out, samples = plan.out, plan.out / "augmentations.png"
    write_page(
        out / "report.html",
        "run.html.j2",
        **_common(plan, info),
        notices=[*plan.warnings, *_notices(figures, info)],
        tiles=_tiles(figures),
        classes=_class_rows(info, figures),
        folds=[],
        curves=curves_for_page(list(map(dict, history)), plan.classes),
        stories=[
            (story.case.name, [(what, *file_uri(path, _SMALL)) for what, path in story.frames])
            for story in timeline.stories()
        ],
        overlays=[
            (case.name, *file_uri(path, _WIDE))
            for case, name in shown.items()
            if (path := out / "overlays" / name).is_file()
        ],
        augmentations=file_uri(samples, _WIDE) if samples.is_file() else None,
    )


def write_folds_page(
    plan: Plan, info: ModelInfo, figures: Mapping[str, Any], runs: Sequence[Path]
) -> None:
    """The page of a cross-validation, which leads to those of its folds' `runs`.

    figures: what metrics.json will hold. Raises OutputError.
    """
    val = figures["val"]
    spread = [f"± {number(val[f'{key}_sd'])} over the folds" for key in ("miou", "dice")]
    minutes = figures["seconds"] / 60
    write_page(
        plan.out / "report.html",
        "run.html.j2",
        **_common(plan, info),
        notices=[*plan.warnings, *_doubt(info)],
        tiles=[
            ("Mean IoU", number(val["miou"]), spread[0]),
            ("Dice", number(val["dice"]), f"foreground, {spread[1]}"),
            ("Folds", str(len(runs)), "the model is their ensemble"),
            ("Time", f"{minutes:.1f} min", "all folds"),
        ],
        classes=[],
        folds=[
            (run.name, m["val"]["n"], m["val"]["miou"], m["val"]["dice"])
            for run, m in zip(runs, figures["folds"], strict=True)
        ],
        curves=None,
        stories=[],
        overlays=[],
        augmentations=None,
    )


def _common(plan: Plan, info: ModelInfo) -> dict[str, Any]:
    return {
        "run": str(Path(*plan.out.parts[-2:])),
        "data": plan.settings.data.root,
        "info": info,
        "structures": structures(info),
        "legend": legend(plan.classes),
        "splits": _splits(plan),
        "scans": training_rows(plan.training),
        "reasons": plan.reasons,
        "settings": _settings(plan),
        "card": model_card(info),
        "command": plan.command,
        "versions": current_versions(),
    }


def _notices(figures: Mapping[str, Any], info: ModelInfo) -> list[str]:
    n = figures["val"].get("n", 0)
    few = f"Validation has {counted(n, 'case')}: its figures may be luck."
    return [*([few] if n < 5 else []), *_doubt(info)]


def _doubt(info: ModelInfo) -> list[str]:
    doubt = distrust(info.quality) if info.quality else ""
    return [f"Every result of this model will be marked for review: {doubt}."] if doubt else []


def _tiles(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, note)"""
    val, minutes = figures["val"], figures["seconds"] / 60
    every = val.get("every", 1)
    on = f"validation, {counted(val.get('n', 0), 'case')}" + (
        f", 1 in {every}" if every > 1 else ""
    )
    taken = f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return [
        ("Mean IoU", number(val.get("miou")), on),
        ("Dice", number(val.get("dice")), "foreground, validation"),
        ("Epoch chosen", str(figures["best_epoch"]), f"of {figures['epochs']}"),
        ("Time", taken, f"{figures['steps']:,} steps".replace(",", " ")),
    ]


def _class_rows(info: ModelInfo, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    scores = figures["val"].get("classes", {})
    rows = []
    for c in info.classes:
        found = scores.get(c.name, {})
        row = {"name": c.name, "value": c.value, "colour": css(c.colour)}
        rows.append(row | {key: found.get(key) for key in ("iou", "dice", "true_voxels")})
    return rows


def _splits(plan: Plan) -> list[tuple[str, int, int]]:
    """(split, cases, patients) of those that hold a case."""
    found = []
    for split in SPLITS:
        cases = plan.dataset.split(split)
        if cases:
            found.append((split, len(cases), len({c.patient for c in cases})))
    return found


def _settings(plan: Plan) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every setting as it was decided, by section."""
    return [
        (section, [(key, _said(value)) for key, value in values.items()])
        for section, values in plan.settings.model_dump(mode="json").items()
        if isinstance(values, dict)
    ]


def _said(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
