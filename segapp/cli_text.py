"""What the commands print, and the batch behind its bar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segapp.batch import list_inputs, predict_batch
from segapp.checkpoint import ModelInfo, read_info
from segapp.engines import Engine, EngineChoice
from segapp.errors import ConfigError
from segapp.formats.listing import is_small
from segapp.formats.source import limit_memory
from segapp.predict import Predictor
from segapp.progress import batch_bar, log

_PER_PIXEL = 500  # bytes that the default network takes for each pixel of a slice
_LEAST_FREE = 60e6


def predict_all(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    device: str,
    engine: EngineChoice,
    max_memory_mb: float | None = None,
    **options: Any,
) -> dict[str, int]:
    """`predict_batch` of what is below `inputs`, with a bar and a line for each failed scan; the
    number of scans by status. max_memory_mb: see bound_memory. options: those of `predict_batch`.
    Raises what it raises."""
    info = read_info(model)
    entries = list_inputs(inputs, info.preprocessing.channel_files, exclude=out)
    single = len(entries) == 1 and is_small(entries[0].paths)
    predictor = Predictor.load(model, device, engine, single)
    if max_memory_mb:
        bound_memory(max_memory_mb, predictor.engine, info.preprocessing.channel_files)
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

        counts = predict_batch(predictor, entries, out, on_outcome=report, **options)
    for warning, count in repeated.items():
        if count > 1:
            log.warning("%d more scans: %s", count - 1, warning)
    return {status: counts[status] for status in ("ok", "failed", "skipped")}


def bound_memory(most_mb: float, engine: Engine, channel_files: int) -> None:
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
    limit_memory(free / channel_files, at_once * _PER_PIXEL / channel_files)


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
        "network": network,
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
