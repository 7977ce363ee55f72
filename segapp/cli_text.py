"""What the commands print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segapp.checkpoint import ModelInfo
from segapp.earlier import file_key
from segapp.errors import ConfigError
from segapp.figures import could_be_invented
from segapp.finding import counted
from segapp.quality import distrust, review_limit, scaling_text


def info_text(record: ModelInfo, path: Path) -> str:
    """What a model file says about itself, a line each."""
    val = record.metrics
    chosen = f"epoch {val.get('epoch')}"
    if val.get("every", 1) > 1:
        chosen += f", measured on 1 in {val['every']} of its slices or images"
    if record.architecture.members > 1:
        chosen = f"mean of {record.architecture.members} folds, mIoU ± {val.get('miou_sd')}"
    classes = ", ".join(f"{c.name} (mask value {c.value})" for c in record.classes)
    split_sizes = ", ".join(f"{len(names)} {split}" for split, names in record.data.images.items())
    network = " ".join(f"{k}={v}" for k, v in record.architecture.model_dump().items())
    if record.pruned:
        network += f"; pruned by {record.pruned.amount:g} of its {record.pruned.what}"
    lines = {
        "model": path,
        "in predictions.csv": f"{file_key(record)}-… in the column model, … for what runs it",
        "network": network,
        "classes": classes,
        "preprocessing": record.preprocessing.model_dump_json(exclude_defaults=True),
        "validation": f"mIoU {val.get('miou')}, Dice {val.get('dice')}, {chosen}",
        "starting weights": record.starting_weights,
        "data": f"{record.data.root} ({split_sizes} cases)",
        "training scans": record.training or "not recorded",
        "judges results": _judging_text(record),
        "created": record.created or "not recorded",
        "trained on": ", ".join(f"{k} {v}" for k, v in record.machine.items()) or "not recorded",
        "repeatable": _repeatable_text(record),
        "versions": ", ".join(f"{k} {v}" for k, v in record.versions.items()),
        "licences": record.licence_notes,
    }
    return "\n".join(f"{name + ':':20}{value}" for name, value in lines.items())


def _repeatable_text(record: ModelInfo) -> str:
    """What it takes to train the same weights again."""
    if record.settings.get("train", {}).get("deterministic"):
        return "bit for bit, with these settings (--json), data, machine and versions"
    return "no; with train.deterministic=true it would be"


def _judging_text(record: ModelInfo) -> str:
    """By what the model judges its results."""
    quality = record.quality
    if quality is None:
        return "no; it was trained before models did, or not to its end"
    guess = " (each counted as one)" if quality.patients == quality.cases else " (guessed)"
    guess = "" if quality.patients_declared else guess
    said = f"by {counted(quality.cases, 'validation case')} of "
    said += f"{counted(quality.patients, 'patient')}{guess}"
    if record.architecture.members == 1:
        said += f"; temperature {record.temperature:.2f}"
    if doubt := distrust(quality):
        return f"{said}; marks every result for review: {doubt}"
    return f"{said}; review below an estimated Dice of {review_limit(quality):.2f}"


def verification_text(found: dict[str, Any]) -> str:
    """What info --verify found, a line each."""
    said = "verified" if found["verified"] else "NOT VERIFIED"
    now = f"now {_cell(found['now'])} on {found['n']} cases"
    whole = "as they were written" if found["checksum"] else "the file holds no checksum of them"
    lines = [
        f"weights: {whole}",
        f"val mIoU: {found['recorded']:.4f} recorded, {now}",
        f"{said}: differs by {_cell(found['difference'])}, {found['tolerance']:g} are allowed",
    ]
    for key, what in (("n_missing", "no longer there"), ("n_failed", "can't be read")):
        if found[key]:
            lines.append(f"{found[key]} of the validated cases: {what}")
    return "\n".join(lines)


def shares(text: str) -> list[float]:
    """ "0.1,0.3" → [0.1, 0.3]. Raises ConfigError for what is no share of a network."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < share < 1 for share in found):
        raise ConfigError(f"--amounts {text}: expected shares between 0 and 1, e.g. 0.1,0.3")
    return found


def pruning_table(result: dict[str, Any]) -> str:
    """The trade-off curve of prune as a table; the chosen network has an arrow."""
    titles = ("cut", "amount", "sparsity", "weights", "MB", "ms/slice", "val mIoU")
    rows = [
        (
            p["method"],
            f"{p['amount']:g}",
            f"{p['sparsity']:.1%}",
            f"{p['parameters']:,}",
            f"{p['megabytes']:.1f}",
            f"{p['ms']:.2f}",
            f"{p['miou']:.4f}",
            "← chosen" if p == result["chosen"] else "",
        )
        for p in result["points"]
    ]
    widths = [max(map(len, column)) for column in zip(titles, *(r[:-1] for r in rows), strict=True)]
    lines = [
        "  ".join(f"{word:>{width}}" for word, width in zip(row, widths, strict=False))
        + (f"  {row[-1]}" if len(row) > len(titles) else "")
        for row in (titles, *rows)
    ]
    first = result["points"][0]["ms"]
    zeros = [p["ms"] for p in result["points"] if p["method"] == "weights"]
    lines.append(
        f"the chosen one is {first / result['chosen']['ms']:.2f} times as fast as the original; "
        f"zeros alone make it {first / min(zeros):.2f} times as fast at best"
    )
    return "\n".join(lines)


def evaluation_table(result: dict[str, Any]) -> str:
    """A summary of evaluate as a table: what each class scores, with 95 % intervals, and where a
    second model was measured, the differences."""
    unit = result["distance_unit"]
    near = f"NSD at {result['nsd_tolerance'] or 0:g} {unit}"
    rows: list[tuple[str, ...]] = [
        ("class", "IoU", "Dice", f"HD95 {unit}", near, "missed", "invented")
    ]
    for name, values in result["classes"].items():
        scores = [_with_interval(values, key) for key in ("iou", "dice")]
        surfaces = [_cell(values["cases"][key]["mean"], d) for key, d in (("hd95", 2), ("nsd", 4))]
        invented = values.get("n_false_positive", 0) if could_be_invented(values) else "–"
        counts = (str(values.get("n_missed", 0)), str(invented))
        rows.append((name, *scores, *surfaces, *counts))
    rows.append(("mean", *(_with_interval(result, key) for key in ("miou", "dice")), *[""] * 4))
    lines = aligned(rows)
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(len(lines) - 1, "-" * len(lines[0]))
    failed = f", {result['n_failed']} failed" if result["n_failed"] else ""
    fewer = "; their names look like fewer, so figures may be too good"
    alone = f" (each counted as one{fewer if 'names_alike' in result else ''})"
    said = {"guessed": " (a guess, from their names)", "one_a_case": alone}
    guess = said.get(result["patients"], "")
    count = f"{counted(result['n'], 'case')} of {counted(result['n_patients'], 'patient')}{guess}"
    lines.insert(0, f"split {result['split']}: {count}{failed}")
    said = "in brackets 95 % intervals over patients"
    if "why_no_intervals" in result:
        said = f"no intervals: {result['why_no_intervals']}"
    lines += [f"IoU and Dice are those of all cases' pixels together; {said}."]
    lines += ["HD95 and NSD are means over cases, in which a class that only the mask or only the"]
    lines += [
        "result has counts as the image's diagonal and as 0. missed: cases in which the result"
    ]
    lines += [
        "overlaps nothing of the mask's class; invented: those in which only the result has it"
    ]
    lines += ["(–: every mask has it, so these cases can't show that)."]
    lines += ["mean: IoU over all classes, background included; Dice over the foreground."]
    if "calibration" in result:
        lines += ["", *_judgement_lines(result)]
    if "against" in result:
        lines += ["", *_against_lines(result["against"])]
    return "\n".join(lines)


def _judgement_lines(result: dict[str, Any]) -> list[str]:
    """How well the model judged its results."""
    c, lines = result["calibration"], []
    if c["ece"] is not None:
        lines.append(
            f"Calibration error over foreground and boundary: {c['ece']:.4f}; "
            f"{c['ece_unscaled']:.4f} before scaling by the temperature {c['temperature']:.2f}"
            f"{scaling_text(c)}."
        )
    if gate := result.get("gate"):
        lines.append(f"Marked for review: {gate['n_review']} of {gate['n']} cases.")
        if gate["spearman"] is not None:
            said = f"rank correlation {gate['spearman']:.2f} over {gate['n_estimated']} cases"
            lines.append(f"Estimated with true Dice: {said}.")
    foreground = list(result["classes"].items())[1:]
    ranges = {n: v["size_interval"] for n, v in foreground if "size_interval" in v}
    sizes = [f"{name} {r['covered']} of {r['n']}" for name, r in ranges.items() if "n" in r]
    if sizes:
        first = next(r for r in ranges.values() if "n" in r)
        few = ", too few for 90 %" if first["promised"] < 0.9 else ""
        lines.append(f"True sizes within their ranges: {', '.join(sizes)}.")
        lines.append(
            f"Promised is {first['promised']:.0%} for each class, by {first['cases']} validation "
            f"cases of {first['patients']} patients{few}."
        )
    elif ranges:
        lines.append(f"No ranges of sizes: {next(iter(ranges.values()))['why_not']}.")
    return lines


def _against_lines(other: dict[str, Any]) -> list[str]:
    """What the second model's comparison says, a line each."""
    rows = [("", "difference", "95 % interval", "p", "smallest detectable")]
    for key, name in (("miou", "mIoU"), ("dice", "Dice"), ("mean_case_dice", "Dice of a case")):
        found = other[key]
        ends = found["interval"]
        interval = f"{ends[0]:+.4f} to {ends[1]:+.4f}" if ends else "–"
        value = "–" if found["difference"] is None else f"{found['difference']:+.4f}"
        least = _cell(found["smallest_detectable"])
        rows.append((name, value, interval, _cell(found["p"]), least))
    failed = f", {other['n_failed']} failed" if other["n_failed"] else ""
    explained = [
        "p: of no difference, by swapping the models at random. smallest detectable: these cases",
        "show a difference of this size in 4 of 5 such sets, and mostly miss a smaller one.",
    ]
    if other["miou"]["p"] is None:
        explained = ["Too few patients for a test."]
    return [
        f"Difference, this model minus {other['model']}, on {counted(other['n'], 'case')} "
        f"of {counted(other['n_patients'], 'patient')}{failed}:",
        *aligned(rows),
        *explained,
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of equal width, the first one to the left."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([f"{row[0]:<{widths[0]}}", *cells[1:]]).rstrip())
    return lines


def _cell(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # no -0.0000


def _with_interval(values: dict[str, Any], key: str) -> str:
    ends = values[f"{key}_interval"]
    return _cell(values[key]) + (f" ({ends[0]:.4f}–{ends[1]:.4f})" if ends else "")
