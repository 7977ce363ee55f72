"""What the commands print, and the batch behind its bar."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segapp.batch import list_inputs, predict_batch
from segapp.checkpoint import ModelInfo, read_info
from segapp.earlier import file_key
from segapp.engines import Engine, EngineChoice
from segapp.errors import ConfigError
from segapp.formats import Entry
from segapp.formats.listing import is_small, names_log
from segapp.formats.source import BYTES_PER_PIXEL, limit_memory
from segapp.predict import Predictor
from segapp.progress import batch_bar, log
from segapp.ranks import this_process
from segapp.shares import take_seat

_LEAST_FREE = 60e6
_DOUBTED = 5  # scans to review that are named on the screen


def predict_all(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    device: str,
    engine: EngineChoice,
    max_memory_mb: float | None = None,
    **options: Any,
) -> dict[str, int] | None:
    """`predict_batch` of what is below `inputs`, with a bar and a line for each failed scan; the
    number of scans by status, and as review_kept that of the skipped whose results are in doubt.
    Where a launcher started several processes, they share the work, and the first one alone has the
    result, the others None. max_memory_mb: see bound_memory. options: those of `predict_batch`.
    Raises what it raises."""
    info, ranks = read_info(model), this_process()
    names_log.setLevel(logging.INFO)
    repeated: Counter[str] = Counter()  # 10,000 scans may have the same warning
    failed = doubted = 0
    with take_seat(out, ranks, inputs) as seat:
        entries: list[Entry] = []
        if ranks.first:
            entries = list_inputs(inputs, info.preprocessing.channel_files, exclude=out)
        single = ranks.count == 1 and len(entries) == 1 and is_small(entries[0].paths)
        predictor = Predictor.load(model, device, engine, single)
        if max_memory_mb:
            bound_memory(max_memory_mb, predictor.engine)
        with batch_bar(sum(ranks.takes(str(entry.source)) for entry in entries)) as step:

            def report(outcome: Any) -> None:
                nonlocal failed, doubted
                for warning in outcome.warnings:
                    repeated[warning] += 1
                    if repeated[warning] == 1:
                        log.warning("%s: %s", outcome.file, warning)
                if outcome.status == "failed":
                    failed += 1
                    log.error("%s: %s", outcome.file, outcome.reason)
                elif outcome.status == "review":
                    doubted += 1
                    if doubted <= _DOUBTED:
                        log.warning("%s: review: %s", outcome.file, outcome.reason)
                step(failed)

            counts = predict_batch(predictor, entries, out, on_outcome=report, seat=seat, **options)
    for warning, count in repeated.items():
        if count > 1:
            log.warning("%d more scans: %s", count - 1, warning)
    if doubted > _DOUBTED:
        log.warning("%d more scans to review, see predictions.csv", doubted - _DOUBTED)
    if not ranks.first:
        return None
    counts["skipped"] += counts["review_kept"]
    return {s: counts[s] for s in ("ok", "review", "failed", "skipped", "review_kept")}


def batch_text(counts: dict[str, int]) -> str:
    """What `predict_all` returned, in words."""
    said = ", ".join(f"{n} {s}" for s, n in counts.items() if n and s != "review_kept")
    kept = counts["review_kept"]
    return f"{said}, {kept} of them to review" if kept else said


def bound_memory(most_mb: float, engine: Engine) -> None:
    """Refuse scans that would take this process beyond `most_mb` (10⁶ bytes); several scans at once
    share what there is. Raises ConfigError where the network alone takes that much."""
    import psutil

    used = psutil.Process().memory_info().rss
    free = 1e6 * most_mb - used
    if free < _LEAST_FREE:
        raise ConfigError(
            f"--max-memory-mb {most_mb:g}: the program and its network take {used / 1e6:.0f} MB "
            f"before the first scan; allow at least {(used + _LEAST_FREE) / 1e6:.0f}"
        )
    at_once = engine.calls_at_once * engine.batch_size
    limit_memory(free, at_once * BYTES_PER_PIXEL)


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
    guessed = "" if quality.patients_declared else " (guessed)"
    said = f"by {quality.cases} validation cases of {quality.patients} patients{guessed}"
    if record.architecture.members == 1:
        said += f"; temperature {record.temperature:.2f}"
    if quality.least_dice is not None:
        said += f"; review below an estimated Dice of {quality.least_dice:.2f}"
    return said


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
        counts = [str(values.get(key, 0)) for key in ("n_missed", "n_false_positive")]
        rows.append((name, *scores, *surfaces, *counts))
    rows.append(("mean", *(_with_interval(result, key) for key in ("miou", "dice")), *[""] * 4))
    lines = aligned(rows)
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(len(lines) - 1, "-" * len(lines[0]))
    failed = f", {result['n_failed']} failed" if result["n_failed"] else ""
    guess = " (a guess, from their names)" if result["patients"] == "guessed" else ""
    count = f"{result['n']} cases of {result['n_patients']} patients{guess}"
    lines.insert(0, f"split {result['split']}: {count}{failed}")
    said = "in brackets 95 % intervals over patients"
    if "why_no_intervals" in result:
        said = f"no intervals: {result['why_no_intervals']}"
    lines += [f"IoU and Dice are those of all cases' pixels together; {said}."]
    lines += ["HD95 and NSD are means over cases, in which a class that is missed (not found where"]
    lines += ["it is) or invented (found where it is not) counts as the image's diagonal and as 0."]
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
            f"{c['ece_unscaled']:.4f} before scaling by the temperature {c['temperature']:.2f}."
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
    rows = [("", "difference", "95 % interval", "p", "would be found")]
    for key, name in (("miou", "mIoU"), ("dice", "Dice"), ("mean_case_dice", "Dice of a case")):
        found = other[key]
        ends = found["interval"]
        interval = f"{ends[0]:+.4f} to {ends[1]:+.4f}" if ends else "–"
        value = "–" if found["difference"] is None else f"{found['difference']:+.4f}"
        least = _cell(found["smallest_detectable"])
        rows.append((name, value, interval, _cell(found["p"]), least))
    failed = f", {other['n_failed']} failed" if other["n_failed"] else ""
    explained = [
        "p: of no difference, by swapping the models at random; would be found: the difference",
        "that a t test shows in 4 of 5 such sets.",
    ]
    if other["miou"]["p"] is None:
        explained = ["Too few patients for a test."]
    return [
        f"Better than {other['model']} by, on {other['n']} cases of {other['n_patients']} "
        f"patients{failed}:",
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
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(values: dict[str, Any], key: str) -> str:
    ends = values[f"{key}_interval"]
    return _cell(values[key]) + (f" ({ends[0]:.4f}–{ends[1]:.4f})" if ends else "")
