"""The batch of segapp predict behind its bar, and what it prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segapp.batch import list_inputs, predict_batch
from segapp.checkpoint import read_info
from segapp.engines import Engine, EngineChoice
from segapp.errors import ConfigError
from segapp.finding import counted
from segapp.formats import Entry
from segapp.formats.listing import is_small
from segapp.formats.source import BYTES_PER_PIXEL, limit_memory
from segapp.intake import LEFT_OUT
from segapp.predict import Predictor
from segapp.progress import batch_bar, log
from segapp.ranks import this_process
from segapp.rows import TABLE
from segapp.shares import take_seat

_LEAST_FREE = 60e6
_NAMED = 5  # scans to review, and files left out, that are named on the screen


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
    number of scans by status, as review_kept that of the skipped whose results are in doubt, and as
    left_out that of files which are no scans.
    Where a launcher started several processes, they share the work, and the first one alone has the
    result, the others None. max_memory_mb: see bound_memory. options: those of `predict_batch`.
    Raises what it raises."""
    info, ranks = read_info(model), this_process()
    repeated: Counter[str] = Counter()  # 10,000 scans may have the same warning
    failed = doubted = 0
    with take_seat(out, ranks, inputs) as seat:
        entries: list[Entry] = []
        left_out: list[tuple[Path, str]] = []
        if ranks.first:
            channel_files = info.preprocessing.channel_files
            entries = list_inputs(inputs, channel_files, out, lambda *file: left_out.append(file))
            for file, why in left_out[:_NAMED]:
                log.info("%s: no scan (%s), left out", file, why)
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
                    if doubted <= _NAMED:
                        log.warning("%s: review: %s", outcome.file, outcome.reason)
                step(failed)

            how = {"left_out": left_out, "seat": seat}
            counts = predict_batch(predictor, entries, out, on_outcome=report, **how, **options)
    for warning, count in repeated.items():
        if count > 1:
            log.warning("%s: %s", counted(count - 1, "more scan"), warning)
    if doubted > _NAMED:
        more = counted(doubted - _NAMED, "more scan")
        log.warning("%s to review, see predictions.csv", more)
    if not ranks.first:
        return None
    counts["skipped"] += counts["review_kept"]
    said = {s: counts[s] for s in ("ok", "review", "failed", "skipped", "review_kept")}
    return said | {"left_out": len(left_out)}


def batch_text(counts: dict[str, int], out: Path) -> str:
    """What `predict_all` returned, in words."""
    scans = {s: counts[s] for s in ("ok", "review", "failed", "skipped")}
    found = [f"{n} {s}" for s, n in scans.items() if n]
    if scans["skipped"]:
        kept = counts["review_kept"]
        found[-1] += f" (results were there{f', {kept} of them to review' if kept else ''})"
    total = sum(scans.values())
    said = f"{counted(total, 'scan')}: {', '.join(found)}; see {out / TABLE}"
    if left_out := counts["left_out"]:
        said += f"\nleft out: {counted(left_out, 'file')}, no scans; see {out / LEFT_OUT}"
    return said


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
