"""What the commands print, and the batch behind its bar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segapp.batch import list_inputs, predict_batch
from segapp.checkpoint import ModelInfo, read_info
from segapp.engines import EngineChoice
from segapp.formats.listing import is_small
from segapp.predict import Predictor
from segapp.progress import batch_bar, log


def predict_all(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    device: str,
    engine: EngineChoice,
    **options: Any,
) -> dict[str, int]:
    """`predict_batch` of what is below `inputs`, with a bar and a line for each failed scan; the
    number of scans by status. options: those of `predict_batch`. Raises what it raises."""
    info = read_info(model)
    entries = list_inputs(inputs, info.preprocessing.channel_files, exclude=out)
    single = len(entries) == 1 and is_small(entries[0].paths)
    predictor = Predictor.load(model, device, engine, single)
    repeated: Counter[str] = Counter()  # 10,000 scans may have the same warning
    failed = 0
    with batch_bar(len(entries)) as step:

        def report(outcome: Any) -> None:
            nonlocal failed
            for warning in outcome.warnings:
                repeated[warning] += 1
                if repeated[warning] == 1:
                    log.warning("%s: %s", outcome.file, warning)
            if outcome.status == "failed":
                failed += 1
                log.error("%s: %s", outcome.file, outcome.reason)
            step(failed)

        outcomes = predict_batch(predictor, entries, out, on_outcome=report, **options)
    for warning, count in repeated.items():
        if count > 1:
            log.warning("%d more scans: %s", count - 1, warning)
    return {s: sum(o.status == s for o in outcomes) for s in ("ok", "failed", "skipped")}


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
    lines = {
        "model": path,
        "network": " ".join(f"{k}={v}" for k, v in record.architecture.model_dump().items()),
        "classes": classes,
        "preprocessing": record.preprocessing.model_dump_json(exclude_defaults=True),
        "validation": f"mIoU {val.get('miou')}, Dice {val.get('dice')}, {chosen}",
        "starting weights": record.starting_weights,
        "data": f"{record.data.root} ({split_sizes} cases)",
        "training scans": record.training or "not recorded",
        "created": record.created,
        "versions": ", ".join(f"{k} {v}" for k, v in record.versions.items()),
        "licences": record.licence_notes,
    }
    return "\n".join(f"{name + ':':18}{value}" for name, value in lines.items())


def evaluation_table(result: dict[str, Any]) -> str:
    """A summary of evaluate as a table: IoU and Dice of each class, and their means."""

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    rows = [("class", "IoU", "Dice")]
    rows += [(n, cell(v["iou"]), cell(v["dice"])) for n, v in result["classes"].items()]
    rows += [("mean", cell(result["miou"]), cell(result["dice"]))]
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {a:>7}  {b:>7}" for name, a, b in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(len(lines) - 1, "-" * len(lines[0]))
    lines.append("mean IoU over all classes, mean Dice over the foreground")
    failed = f", {result['n_failed']} failed" if result["n_failed"] else ""
    lines.insert(0, f"split {result['split']}: {result['n']} cases{failed}")
    return "\n".join(lines)
