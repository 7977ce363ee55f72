"""One scan of a session: its result, and the files that the reader shows it from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segapp.batch import Outcome, predict_entry
from segapp.errors import ScanError, SegappError
from segapp.files import atomic_path
from segapp.formats import Entry, output_suffix, read_scan
from segapp.outcomes import class_sizes
from segapp.predict import Predictor
from segapp.preprocess import SliceAxis, from_slices, ordering, scan_axis, to_slices
from segapp.progress import log_bug
from segapp.report.overlay import display_window, middle_of_most
from segapp.report.page import two_digits
from segapp.scan import Assessment, Scan, SegClass, Segmentation
from segapp.takeaway import Download, downloads
from segapp.web.inputs import like_a_mask, shown_name

log = logging.getLogger("segapp")

_GRID: SliceAxis = "axial"  # how the reader gets every scan: head, back, left (see Grid)
_AIR = -900  # HU; what reaches so low is CT
# What the browser's typed arrays hold, for what files hold; all others as float64, to be exact.
_TYPES = {"bool": "uint8", "uint8": "uint8", "int8": "int16", "int16": "int16", "uint16": "uint16"}
_TYPES |= {"float16": "float32", "float32": "float32"}


@dataclass(frozen=True)
class Grid:
    """How a scan lies before its reader: display index (k, h, w), with geometry towards the
    patient's head, back and left.

    shape: (K, H, W). spacing_mm: of k, h, w; None where unknown. to_voxel: (4, 4) display index →
    the file's voxel (i, j, k).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    to_voxel: np.ndarray

    @classmethod
    def of(cls, scan: Scan) -> Grid:
        order, flips = ordering(scan.affine, _GRID)
        to_voxel = np.zeros((4, 4))
        to_voxel[3, 3] = 1
        for n, v in enumerate(order):
            to_voxel[v, n] = -1 if n in flips else 1
            to_voxel[v, 3] = scan.shape[v] - 1 if n in flips else 0
        shape = (scan.shape[order[0]], scan.shape[order[1]], scan.shape[order[2]])
        mm = scan.spacing_mm
        return cls(shape, mm and (mm[order[0]], mm[order[1]], mm[order[2]]), to_voxel)


@dataclass(frozen=True)
class Result:
    """One scan: how it went and, unless it failed, where its pictures lie.

    name: its label, see Upload. folder: holds image.bin, and with a model labels.bin and
    confidence.bin, on `grid`; a correction by hand lies beside them. What the reader needs of the
    scan is in `facts`. ignore, merged: how training took mask values that are no class's. Voxels
    are not kept in memory.
    """

    name: str
    model: str
    entry: Entry
    outcome: Outcome
    folder: Path
    grid: Grid | None = None
    affine: np.ndarray | None = None
    shape: tuple[int, int, int] = (0, 0, 0)
    classes: tuple[SegClass, ...] = ()
    ignore: int | None = None
    merged: tuple[int, ...] = ()
    assessment: Assessment | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    downloads: Sequence[Download] = ()

    @property
    def ok(self) -> bool:
        """Whether there is something to look at."""
        return self.grid is not None

    @property
    def voxels(self) -> int:
        return int(np.prod(self.shape))

    @property
    def corrected(self) -> bool:
        return (self.folder / "corrected.bin").exists()

    def labels_file(self) -> Path:
        """The labels as they stand: corrected by hand, else the model's."""
        return self.folder / ("corrected.bin" if self.corrected else "labels.bin")

    def correct(self, labels: bytes) -> None:
        """Keep labels that somebody corrected: uint8 class indices on the grid. Raises ScanError
        where they are not that."""
        assert self.grid is not None
        if len(labels) != self.voxels:
            problem = f"got {len(labels)} labels, the scan has {self.voxels} voxels"
            raise ScanError(self.name, problem)
        highest = int(np.frombuffer(labels, np.uint8).max())
        if highest >= len(self.classes):
            raise ScanError(self.name, f"got class {highest}, the last is {len(self.classes) - 1}")
        if labels == (self.folder / "labels.bin").read_bytes():
            self.restore()  # painted, and taken back
            return
        with atomic_path(self.folder / "corrected.bin") as temporary:
            temporary.write_bytes(labels)

    def restore(self) -> None:
        """Back to what the model found."""
        (self.folder / "corrected.bin").unlink(missing_ok=True)

    def labels(self, file: Path | None = None) -> np.ndarray:
        """(I, J, K) uint8 class indices on the scan's own grid."""
        assert self.grid is not None
        shown = np.fromfile(file or self.labels_file(), np.uint8).reshape(self.grid.shape)
        return from_slices(shown[:, None], self.affine, _GRID)[0]

    def on_grid(self, labels: np.ndarray) -> bytes:
        """The bytes of (I, J, K) uint8 labels as the reader gets them."""
        return np.ascontiguousarray(to_slices(labels[None], self.affine, _GRID)[:, 0]).tobytes()

    def segmentation(self) -> Segmentation:
        """The result as it stands, with the scan read again. Raises ScanError."""
        scan = read_scan(self.entry.paths)
        judged = None if self.corrected else self.assessment
        said = self.outcome.warnings
        return Segmentation(self.labels(), scan, self.classes, warnings=said, assessment=judged)

    def outcome_of(self, segmentation: Segmentation) -> Outcome:
        """What the model thought of its own result, with the sizes of the result as it stands; of
        a corrected one no ranges are promised."""
        if not self.corrected:
            return self.outcome
        return replace(self.outcome, sizes=class_sizes(segmentation), range_coverage=None)

    def summary(self, index: int) -> dict[str, Any]:
        """What /segment tells about this scan. `index` is what /slice takes."""
        outcome = self.outcome
        return {
            "index": index,
            "file": self.name,
            "output": outcome.output.name if outcome.output else None,
            "status": outcome.status,
            "reason": outcome.reason,
            "seconds": round(outcome.seconds, 3),
            "mean_confidence": outcome.mean_confidence,
            "estimated_dice": outcome.estimated_dice,
            "unlikeness": outcome.unlikeness,
            "range_coverage": outcome.range_coverage,
            "warnings": list(outcome.warnings),
            "slices": self.facts.get("slices", 0),
            "busiest_slice": self.facts["start"][self.facts["across"]] + 1 if self.ok else 1,
            "shape": self.shape,
            "spacing_mm": self.facts.get("file_spacing_mm"),
            "sizes": outcome.sizes,
        }


def make_result(
    predictor: Predictor | None,
    model: str,
    entry: Entry,
    folder: Path,
    out: Path,
    on_slab: Callable[[int, int, np.ndarray], None],
) -> Result:
    """Segment a scan, or without a predictor only read it, and lay out what the reader needs.

    entry: with a name that no other in `out` has. A scan that fails is a result with the reason;
    only Stopped and OSError (of `folder` itself) come through.
    """
    name = shown_name(entry)
    try:
        if predictor is None:
            began = time.perf_counter()
            scan = read_scan(entry.paths)
            outcome = Outcome(entry.source, warnings=(*entry.doubts, *scan.warnings))
            outcome.seconds = time.perf_counter() - began
            found: Segmentation | None = None
        else:
            output = out / f"{entry.name}{output_suffix(entry.paths[0])}"
            found, outcome = predict_entry(predictor, entry, output, on_slab)
            scan = found.scan
        return _lay_out(predictor, model, entry, scan, found, outcome, folder)
    except SegappError as error:
        reason = _said_here(error) if isinstance(error, ScanError) else str(error)
        reason = _without_places(reason, entry, folder)
    except MemoryError:
        reason = "not enough memory for this scan"
    except OSError:
        raise
    except Exception as error:  # a bug of ours: the others go on, and no name gets into the log
        log_bug("segmenting a scan", error)
        reason = f"could not be segmented (unexpected {type(error).__name__})"
    failed = Outcome(entry.source, status="failed", reason=reason)
    return Result(name, model, entry, failed, folder)


def _lay_out(
    predictor: Predictor | None,
    model: str,
    entry: Entry,
    scan: Scan,
    found: Segmentation | None,
    outcome: Outcome,
    folder: Path,
) -> Result:
    if doubt := like_a_mask(scan):
        outcome = replace(outcome, warnings=(*outcome.warnings, doubt))
    grid, info = Grid.of(scan), predictor.info if predictor else None
    rgb = scan.channels == 3 and scan.voxels.dtype == np.uint8
    shown = to_slices(scan.voxels if rgb else scan.voxels[:1], scan.affine, _GRID)
    shown = np.moveaxis(shown, 1, -1) if rgb else shown[:, 0]
    dtype = np.dtype(_TYPES.get(shown.dtype.name, "float64")).newbyteorder("<")
    np.ascontiguousarray(shown, dtype).tofile(folder / "image.bin")
    axis: SliceAxis = predictor.preprocessing.slice_axis if predictor else "axial"
    main = scan_axis(scan.shape, scan.affine, axis)
    across = ("axial", "coronal", "sagittal").index(main) if scan.affine is not None else 0
    start = [n // 2 for n in grid.shape]
    if found is not None:
        labels = np.ascontiguousarray(to_slices(found.labels[None], scan.affine, _GRID)[:, 0])
        labels.tofile(folder / "labels.bin")
        assert found.confidence is not None
        sure = to_slices(found.confidence[None], scan.affine, _GRID)[:, 0]
        with (folder / "confidence.bin").open("wb") as file:
            for plane in sure:
                np.rint(plane.astype(np.float32) * 255).astype(np.uint8).tofile(file)
        start = _busiest(labels, across)
    lowest = float(scan.voxels[0].min()) if not rgb else 0.0
    info = predictor.info if predictor else None
    return Result(
        name=shown_name(entry),
        model=model,
        entry=entry,
        outcome=outcome,
        folder=folder,
        grid=grid,
        affine=scan.affine,
        shape=scan.shape,
        classes=predictor.classes if predictor else (),
        ignore=info.ignore if info else None,
        merged=info.merged if info else (),
        assessment=found.assessment if found else None,
        downloads=downloads(entry, found) if found else (),
        facts={
            "rgb": rgb,
            "dtype": dtype.name,
            "main": main if scan.affine is not None else "axial",
            "start": start,
            "window": display_window(scan if rgb else scan.with_voxels(scan.voxels[:1])),
            "ct": scan.affine is not None and scan.channels == 1 and _is_ct(predictor, lowest),
            "across": across,
            "slices": grid.shape[across],
            "file_spacing_mm": scan.spacing_mm,
            "volume": scan.shape[2] > 1 or scan.affine is not None,
        },
    )


def _is_ct(predictor: Predictor | None, lowest: float) -> bool:
    return lowest < _AIR or (
        predictor is not None and predictor.preprocessing.normalisation == "ct"
    )


def _busiest(labels: np.ndarray, across: int) -> list[int]:
    """(k, h, w) of the slice across `across` that shows most foreground (`middle_of_most`), and of
    the middle of the foreground on it; the middle of the scan where there is none."""
    counts = np.array([np.count_nonzero(plane) for plane in np.moveaxis(labels, across, 0)])
    start = [n // 2 for n in labels.shape]
    if counts.any():
        start[across] = middle_of_most(counts)
        places = np.nonzero(np.take(labels, start[across], across))
        others = [n for n in range(3) if n != across]
        for axis, place in zip(others, places, strict=True):
            start[axis] = int(np.median(place))
    return start


def _said_here(error: ScanError) -> str:
    """The reason, without an option that only the command line has."""
    if error.kind != "slices-missing":
        return error.reason
    return f"{error.problem}; drop the whole series, with the images that are missing here"


def _without_places(reason: str, entry: Entry, folder: Path) -> str:
    """A reason without the folders that the server keeps things in."""
    for path in (*entry.paths, *(path.parent for path in entry.paths)):
        reason = reason.replace(str(path), path.name if path in entry.paths else "")
    return reason.replace(str(folder.parent), "")


def describe(result: Result) -> Sequence[tuple[str, str]]:
    """What is known of a scan and its result, in words: (name, value)."""
    i, j, k = result.shape
    found = [("Size", f"{i} × {j} × {k}" if result.facts["volume"] else f"{i} × {j} pixels")]
    if spacing := result.facts["file_spacing_mm"]:
        found.append(("Spacing", " × ".join(f"{s:.3g}" for s in spacing) + " mm"))
    outcome = result.outcome
    whose = "Model's own {}" if result.corrected else "{}"
    if outcome.mean_confidence is not None:
        found.append((whose.format("mean confidence"), f"{100 * outcome.mean_confidence:.1f} %"))
    if outcome.estimated_dice is not None:
        found.append((whose.format("estimated Dice"), f"{outcome.estimated_dice:.2f}"))
    if outcome.unlikeness is not None:
        found.append(("Unlikeness (limit 1)", two_digits(outcome.unlikeness)))
    found = [(name[0].upper() + name[1:], value) for name, value in found]
    return [*found, ("Time", f"{outcome.seconds:.1f} s")]
