"""How two validation cases came out as the training went on: small pictures, kept in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from segapp.cases import Case
from segapp.preprocess import SliceAxis
from segapp.progress import inessential
from segapp.report.overlay import (
    busiest_slice,
    clear_ignored,
    display_size,
    display_slices,
    display_window,
    draw_slice,
    pixel_aspect,
    save_png,
    truth_slices,
)
from segapp.scan import Segmentation
from segapp.selection import spread_over

OVERLAYS = 8  # validation cases whose results are drawn in the end
_SHARES = (0.0, 0.08, 0.2, 0.45, 0.7)  # of a run, from which on a picture is due; and the end
_CASES, _SIDE = 2, 240

Draw = Callable[[Case, Segmentation, np.ndarray], None]


def shown_cases(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Up to eight of the cases, spread over all of them."""
    return tuple(spread_over(cases, OVERLAYS))


@dataclass(frozen=True)
class Story:
    """A case's pictures: files of (what, path), the mask's first."""

    case: Case
    frames: tuple[tuple[str, Path], ...]


class Timeline:
    """Pictures of two of the `shown_cases` at up to six moments of a run, as PNG files, so that a
    resumed run knows what it has."""

    def __init__(self, folder: Path, cases: Sequence[Case], axis: SliceAxis, every: int = 1):
        """every: of each case's slices one in so many is seen; a resumed run may see others."""
        shown = shown_cases(cases)
        places = sorted({len(shown) // 3, 2 * len(shown) // 3}) if shown else []
        self._cases = {
            shown[n]: sha256(
                f"{every} {shown[n].name}".encode("utf-8", "surrogateescape")
            ).hexdigest()[:8]
            for n in places[:_CASES]
        }
        self._folder = folder
        self._axis: SliceAxis = axis

    def at(self, done: float, epoch: int) -> Draw:
        """What draws the validation at this share of the run; nothing where no picture is due."""
        moment = sum(share <= done for share in _SHARES) - 1
        there = [any(self._folder.glob(f"{moment}_*_{key}.png")) for key in self._cases.values()]
        if there and all(there):
            return lambda *_: None
        return partial(self._draw, f"{moment}_epoch{epoch}")

    def at_end(self, epoch: int) -> Draw:
        """What draws the model that was chosen."""
        return partial(self._draw, f"{len(_SHARES)}_epoch{epoch}")

    def stories(self) -> list[Story]:
        """What the files show, for each case that has any."""
        found = []
        for case, key in self._cases.items():
            names = sorted(path.name for path in self._folder.glob(f"?_epoch*_{key}.png"))
            frames = [(_title(name), self._folder / name) for name in names]
            mask = self._folder / f"mask_{key}.png"
            if frames and mask.is_file():
                found.append(Story(case, (("mask", mask), *frames)))
        return found

    def _draw(self, name: str, case: Case, segmentation: Segmentation, truth: np.ndarray) -> None:
        if case in self._cases:
            with inessential("a picture of the training"):
                self._draw_frame(name, self._cases[case], segmentation, truth)

    def _draw_frame(
        self, name: str, key: str, segmentation: Segmentation, truth: np.ndarray
    ) -> None:
        classes, scan = segmentation.classes, segmentation.scan
        images, labels = display_slices(segmentation, self._axis)
        masks = clear_ignored(truth_slices(truth, scan, self._axis), classes)
        k = busiest_slice(masks)
        rows, columns = masks[k].shape
        size = display_size(rows, columns, pixel_aspect(scan, self._axis), _SIDE, 4)
        for part, drawn in ((f"{name}_{key}", labels[k]), (f"mask_{key}", masks[k])):
            path = self._folder / f"{part}.png"
            if not path.is_file():
                picture = draw_slice(images[k], drawn, classes, display_window(scan))
                smooth = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
                save_png(np.asarray(smooth), path)


def _title(name: str) -> str:
    """5_epoch17_1f00ab12.png → "the model, epoch 17"."""
    moment, epoch, _ = name.split("_")
    number = epoch.removeprefix("epoch")
    return f"the model, epoch {number}" if moment == str(len(_SHARES)) else f"epoch {number}"
