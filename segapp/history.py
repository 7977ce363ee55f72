"""An epoch's line in the history, and the figures beside the progress bar."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from segapp import metrics
from segapp.figures import Evaluation
from segapp.pace import Clock, Pace
from segapp.progress import clock_text
from segapp.resume import State
from segapp.scan import SegClass

log = logging.getLogger("segapp")


def record_epoch(
    state: State,
    result: Evaluation | None,
    classes: Sequence[SegClass],
    lr: float,
    images_per_second: float | None,
    clock: Clock,
    peak_memory_mb: float,
) -> None:
    """Add the epoch's line to the history and log it; all lines' `seconds` make up the run's.

    images_per_second: None where the epoch's steps were taken before the run was resumed.
    """
    before = sum(row["seconds"] for row in state.history)
    row: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "lr": lr}
    row["train_loss"] = state.loss_sum / max(1, state.loss_steps)
    row["val_loss"] = result.loss if result else None
    row["val_miou"] = result.miou if result else None
    row["val_dice"] = result.dice if result else None
    scores = metrics.iou(result.matrix).tolist() if result else [None] * len(classes)
    row |= {f"iou_{c.name}": score for c, score in zip(classes, scores, strict=True)}
    row["seconds"] = clock.elapsed() - before
    row |= {"images_per_second": images_per_second, "peak_memory_mb": peak_memory_mb}
    state.history.append(row)
    state.loss_sum, state.loss_steps = 0.0, 0
    shown = f"val mIoU {result.miou:.4f}, Dice {result.dice:.4f}" if result else "not validated"
    speed = f"{images_per_second:.1f} images/s, " if images_per_second else ""
    log.info(
        "epoch %d: step %d, loss %.4f, %s, %s%s",
        *(state.epoch, state.step, row["train_loss"], shown, speed),
        clock_text(clock.elapsed()),
    )


def figures_text(
    state: State,
    batch_size: int,
    pace: Pace,
    validation_seconds: float,
    peak_memory_mb: float,
) -> str:
    """The figures of the moment: loss, val mIoU, images/s, memory, time left."""
    speed = f"{batch_size / pace.step_seconds:.1f} images/s" if pace.step_seconds else ""
    left = clock_text(pace.seconds_left(state.step, validation_seconds))
    miou = f"val mIoU {state.best_metrics['miou']:.3f}" if state.best_metrics else ""
    loss = f"loss {state.loss_sum / max(1, state.loss_steps):.3f}"
    parts = (loss, miou, speed, f"{peak_memory_mb:.0f} MB", f"{left} left")
    return " · ".join(part for part in parts if part)
