"""What a run leaves to look at: its history, curves, augmented samples and validation overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from segapp.cases import Case
from segapp.files import atomic_path
from segapp.finding import counted
from segapp.preprocess import SliceAxis
from segapp.report.overlay import (
    busiest_slice,
    clear_ignored,
    display_slices,
    display_window,
    draw_slice,
    save_png,
    truth_slices,
)
from segapp.report.page import drawing, svg
from segapp.scan import SegClass, Segmentation, css
from segapp.selection import spread_over

if TYPE_CHECKING:
    from segapp.data import Samples

_GAP = 4  # pixels between pictures
_LARGEST = 1024  # pixels of a picture's side
_LONGEST = 60  # characters of a file name, each of up to four bytes
_MOST_NAMED = 8  # classes with a line each in a legend


def write_curves(rows: Sequence[dict[str, Any]], classes: Sequence[SegClass], path: Path) -> None:
    """Loss, IoU of each class and learning rate over the epochs, as one PNG."""
    from matplotlib.figure import Figure  # half a second that only the end of a run pays

    with drawing(), atomic_path(path) as temporary:
        figure = Figure(figsize=(13, 4), layout="constrained")
        _draw_curves(figure, rows, classes)
        figure.savefig(temporary, format="png", dpi=110)


def curves_for_page(rows: Sequence[dict[str, Any]], classes: Sequence[SegClass]) -> Markup:
    """The same as a drawing for a page."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(9.2, 3.1), layout="constrained")
        _draw_curves(figure, rows, classes)
        last = rows[-1]["epoch"] if rows else 0
        over = f"over {counted(last, 'epoch')}"
        return svg(figure, "curves", f"Loss, validation IoU and learning rate {over}")


def _draw_curves(figure: Any, rows: Sequence[dict[str, Any]], classes: Sequence[SegClass]) -> None:
    loss, score, rate = figure.subplots(1, 3)
    measured = [row for row in rows if row["val_miou"] is not None]
    epochs, val_epochs = [r["epoch"] for r in rows], [r["epoch"] for r in measured]
    loss.plot(epochs, [r["train_loss"] for r in rows], label="training loss", color="#444444")
    losses = [r["val_loss"] for r in measured]
    loss.plot(val_epochs, losses, label="validation log-likelihood loss", color="#D55E00")
    for n, c in enumerate(classes):
        colour = css(c.colour) if any(c.colour) else "#999999"
        values = [r[f"iou_{c.name}"] for r in measured]
        few = len(classes) <= _MOST_NAMED
        label = c.name if few else f"{len(classes)} classes" if n == 1 else None
        score.plot(val_epochs, values, label=label, color=colour, linewidth=1)
    miou = [r["val_miou"] for r in measured]
    score.plot(val_epochs, miou, label="mean IoU", color="black", linewidth=2)
    rate.plot(epochs, [r["lr"] for r in rows], color="#0072B2")
    loss.set(title="Loss", ylim=(0, None))
    score.set(title="Validation IoU", ylim=(0, 1))
    rate.set(title="Learning rate", ylim=(0, None))
    for axes in (loss, score, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#e3e7ea")
        for line in axes.lines:
            line.set_marker("o" if len(line.get_xdata()) == 1 else "")
    loss.legend()
    score.legend(loc="lower right")


def write_augmentations(samples: Samples, classes: tuple[SegClass, ...], path: Path) -> None:
    """What training sees: six slices, each as it is and in five augmented versions, masks drawn."""
    chosen = [i for i, empty in enumerate(samples.cache.empty) if not empty]
    chosen = chosen or list(range(len(samples.cache)))
    rows = []
    for index in spread_over(chosen, 6):
        image, mask = samples.cache[index]
        image = _middle(image, samples.cache.channels)
        window = (float(image.min()), max(float(image.max()), float(image.min()) + 1e-6))
        side = samples.augment.patch
        row = [_fit(draw_slice(image, clear_ignored(mask, classes), classes, window, 0.35), side)]
        for number in range(5):
            patch, labels, _ = samples[(number, index)]
            middle = _middle(patch, samples.cache.channels)
            row.append(draw_slice(middle, clear_ignored(labels, classes), classes, window, 0.35))
        rows.append(_beside(row, axis=1))
    save_png(_beside(rows, axis=0), path)


def _middle(stack: np.ndarray, channels: int) -> np.ndarray:
    """(n · channels, H, W) of a slice and its neighbours → (channels, H, W), the slice itself."""
    start = (len(stack) // channels // 2) * channels
    return stack[start : start + channels]


def write_comparison(
    segmentation: Segmentation, truth: np.ndarray, axis: SliceAxis, path: Path
) -> None:
    """One PNG: the slice that shows most true foreground, its mask, the result; each at most 1,024
    pixels wide and high.

    truth: true indices (I, J, K).
    """
    images, labels = display_slices(segmentation, axis)
    masks = truth_slices(truth, segmentation.scan, axis)
    masks = clear_ignored(masks, segmentation.classes)
    k, window = busiest_slice(masks), display_window(segmentation.scan)
    step = -(-max(masks[k].shape) // _LARGEST)
    pictures = [
        draw_slice(
            images[k][:, ::step, ::step], drawn[::step, ::step], segmentation.classes, window
        )
        for drawn in (np.zeros_like(masks[k]), masks[k], labels[k])
    ]
    save_png(_beside(pictures, axis=1), path)


def picture_names(cases: Sequence[Case]) -> dict[Case, str]:
    """A file name for the picture of each case: its name, or the end of a long one, numbered where
    another one has it."""
    names: dict[Case, str] = {}
    for case in cases:
        stem = name = case.name.replace("/", "_")[-_LONGEST:]
        number = 1
        while f"{name}.png" in names.values():
            number += 1
            name = f"{stem}_{number}"
        names[case] = f"{name}.png"
    return names


def _fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centre-crop and pad (H, W, 3) to `size`."""
    out = np.zeros((*size, 3), np.uint8)
    height, width = (min(a, b) for a, b in zip(size, picture.shape[:2], strict=True))
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    to_top, to_left = (size[0] - height) // 2, (size[1] - width) // 2
    source = picture[top : top + height, left : left + width]
    out[to_top : to_top + height, to_left : to_left + width] = source
    return out


def _beside(pictures: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Pictures of one size in a row (axis 1) or a column (axis 0), with white gaps."""
    shape = list(pictures[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=axis)
