"""A slice as a picture for scripts, and the HTML that stands on the page."""

from __future__ import annotations

from html import escape

import numpy as np

from segapp.report.overlay import display_size, draw_slice
from segapp.resample import resize
from segapp.web.result import Result
from segapp.web.session import Session

# A picture's longest side in pixels: small slices are enlarged, huge ones reduced.
_SMALLEST, _LARGEST = 768, 1536
MARKS = {"ok": "✓", "review": "⚠", "failed": "✗"}

EMPTY = '<div class="sa-empty"><p>{}</p></div>'
DROP = "Drop scans on the left to read them here."
DROP_OR_CHOOSE = "Drop scans on the left<br>or choose an example to read it here."


def draw(result: Result, number: int, opacity: float) -> np.ndarray:
    """Slice `number` (from 1) across the model's axis with its segmentation: (H, W, 3) uint8.

    Pixels are square. The image is interpolated, the labels are not: their borders are those of
    the voxels.
    """
    assert result.grid is not None
    shape, facts = result.grid.shape, result.facts
    channels = (3,) if facts["rgb"] else (1,)
    image = np.memmap(result.folder / "image.bin", facts["dtype"], "r", shape=shape + channels)
    plane = _plane(image, facts["across"], number)
    high, wide = plane.shape[0], plane.shape[1]
    labels = np.zeros((high, wide), np.uint8)
    if result.classes:
        indices = np.memmap(result.labels_file(), np.uint8, "r", shape=shape)
        labels = _plane(indices, facts["across"], number)
    spacing = result.grid.spacing_mm
    rows, columns = ((1, 2), (0, 2), (0, 1))[facts["across"]]
    aspect = spacing[rows] / spacing[columns] if spacing else 1.0
    size = picture_size(high, wide, aspect)
    smooth = resize(plane.transpose(2, 0, 1)[None].astype(np.float32), size)[0]
    labels = resize(labels[None, None], size, nearest=True)[0, 0]
    return draw_slice(
        smooth, labels, result.classes, facts["window"], float(np.clip(opacity, 0, 1))
    )


def _plane(volume: np.ndarray, across: int, number: int) -> np.ndarray:
    """A slice counted from 1 as the reader shows it: but for axial ones the head is above."""
    plane = np.take(volume, number - 1, across)
    return plane if across == 0 else plane[::-1]


def picture_size(rows: int, columns: int, aspect: float) -> tuple[int, int]:
    """(height, width) of the picture of a slice whose pixels are `aspect` times as high as wide."""
    longest = max(rows * max(aspect, 1.0), columns * max(1 / aspect, 1.0))
    side = min(max(longest, _SMALLEST), _LARGEST)
    width, height = display_size(rows, columns, aspect, side)
    return height, width


def choices(session: Session | None) -> list[tuple[str, int]]:
    """The worklist: each scan with a mark, and its number."""
    found = []
    for index, result in enumerate(session.results if session else []):
        status = result.outcome.status
        said = "" if status == "ok" else f" – {status}"
        warned = " (warnings)" if status == "ok" and result.outcome.warnings else ""
        by_hand = ", corrected" if result.corrected else ""
        found.append((f"{MARKS[status]} {result.name}{said}{warned}{by_hand}", index))
    return found


def reader_html(session: Session | None, index: int | None, examples: bool = False) -> str:
    """What stands where a scan is read: the reader's page in a frame, or why there is none.
    examples: whether there are some to choose."""
    if session is None or index is None or not 0 <= index < len(session.results):
        return EMPTY.format(DROP_OR_CHOOSE if examples else DROP)
    result = session.results[index]
    if not result.ok:
        why = f"<strong>{escape(result.name)}</strong>: {escape(result.outcome.reason)}"
        return f'<div class="sa-empty"><p class="sa-error" role="alert">{why}</p></div>'
    return (
        f'<iframe class="sa-reader" src="/reader/{session.token}/{index}/" '
        f'title="Reader: {escape(result.name, quote=True)}"></iframe>'
    )


def progress_html(share: float, said: str, seconds: float) -> str:
    """A bar, what is being done, and how long it will take when that can be told."""
    left = ""
    if seconds > 1 and 0.02 < share < 1:
        left = f", about {duration(seconds * (1 - share) / share)} left"
    percent = round(100 * min(max(share, 0.0), 1.0))
    return (
        f'<div class="sa-progress" role="progressbar" aria-label="Segmenting" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
        f"<p class='sa-note'>{escape(said)}{left}</p>"
    )


def duration(seconds: float) -> str:
    """Seconds for people: 8 s, 3 min, 1 h 20 min."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def note_html(text: str, kind: str = "note") -> str:
    """A line below the upload: kind note, warning or error."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<p class="sa-{kind}"{role}>{escape(text)}</p>' if text else ""
