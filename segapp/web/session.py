"""What one visitor's browser tab has on the server: results in a private folder, gone with it."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from segapp.batch import Outcome, predict_entry
from segapp.errors import ScanError, SegappError
from segapp.formats import Entry, output_suffix
from segapp.predict import Predictor
from segapp.preprocess import SliceAxis, scan_axis
from segapp.report.overlay import busiest_slice, display_slices, display_window, pixel_aspect
from segapp.web.inputs import group_uploads, shown_name

log = logging.getLogger("segapp")

Progress = Callable[[float, str], object]


class SessionClosed(Exception):
    """The tab was closed while its scans were being segmented."""


@dataclass(frozen=True)
class Result:
    """One scan: how it went and, unless it failed, what it takes to draw any slice of it.

    name: the uploaded file's. shape: the file's voxels. size: (slices, rows, columns) as displayed.
    first: the busiest slice, counted from 1. aspect: height of a displayed pixel over its width.
    The slices themselves lie in `folder` and are mapped into memory one at a time, so a session
    holds next to nothing.
    """

    name: str
    outcome: Outcome
    folder: Path
    size: tuple[int, int, int] = (0, 0, 0)
    shape: tuple[int, int, int] = (0, 0, 0)
    first: int = 1
    axis: SliceAxis | None = None  # None where the file does not say how the patient lies
    spacing_mm: tuple[float, float, float] | None = None
    aspect: float = 1.0
    window: tuple[float, float] = (0.0, 255.0)

    @property
    def ok(self) -> bool:
        return self.outcome.output is not None

    def slice(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, H, W) and labels (H, W) of a slice counted from 1, kept within the scan."""
        k = min(max(number, 1), self.size[0]) - 1
        image, labels = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r")[k] for name in ("image", "labels")
        )
        return np.asarray(image), np.asarray(labels)

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
            "slices": self.size[0],
            "busiest_slice": self.first,
            "shape": self.shape,
            "spacing_mm": self.spacing_mm,
            "sizes": outcome.sizes,
        }


class Session:
    """A folder that only this user account can read, and the results in it."""

    def __init__(self, root: Path):
        self.folder = root / secrets.token_hex(16)  # its name is the key to downloads: unguessable
        self.folder.mkdir(mode=0o700)
        self.results: list[Result] = []
        self.zip: Path | None = None
        self.closed = False
        self._uploads: list[Path] = []
        self._began = time.time()

    @property
    def outputs(self) -> list[Path]:
        return [r.outcome.output for r in self.results if r.outcome.output]

    def close(self) -> None:
        """Delete the results and the uploads, unless one was uploaded again since."""
        self.closed = True
        for upload in self._uploads:
            if upload.exists() and upload.stat().st_ctime <= self._began:
                upload.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def gather(self, uploads: Sequence[Path], channel_files: int) -> list[Entry]:
        """The scans that uploaded files hold; these go when the session is closed."""
        self._uploads = [path for path in uploads if path.is_relative_to(private_root())]
        return group_uploads(uploads, self.folder / "uploads", channel_files)

    def segment(self, predictor: Predictor, entries: Sequence[Entry], progress: Progress) -> None:
        """Segment every entry; one that fails is a result that says why.

        Raises SessionClosed, with everything removed, when `close` was called meanwhile.
        """
        (self.folder / "out").mkdir()
        taken: set[str] = set()
        try:
            for index, entry in enumerate(entries):
                name = shown_name(entry)

                def on_slab(done: int, total: int, _: np.ndarray, name=name, index=index) -> None:
                    if self.closed:
                        raise SessionClosed
                    part = f", slice {done} of {total}" if total > 1 else ""
                    progress((index + done / total) / len(entries), f"{name}{part}")

                progress(index / len(entries), name)
                folder = self.folder / str(index)
                folder.mkdir()
                self.results.append(_segment(predictor, entry, folder, taken, on_slab))
            if len(self.outputs) > 1:
                self.zip = _zip(self.outputs, self.folder / "segmentations.zip")
        except OSError:
            if not self.closed:  # closing takes the folder away under our feet
                raise
        finally:
            if self.closed:
                self.close()
        if self.closed:
            raise SessionClosed


def _segment(
    predictor: Predictor,
    entry: Entry,
    folder: Path,
    taken: set[str],
    on_slab: Callable[[int, int, np.ndarray], None],
) -> Result:
    name = shown_name(entry)
    try:
        file_name = _free_name(entry.name, output_suffix(entry.paths[0]), taken)
        output = folder.parent / "out" / file_name
        segmentation, outcome = predict_entry(predictor, entry, output, on_slab)
        scan = segmentation.scan
        axis = predictor.preprocessing.slice_axis
        images, labels = display_slices(segmentation, axis)  # (K, C, H, W), (K, H, W)
        np.save(folder / "image.npy", images if images.shape[1] == 3 else images[:, :1])
        np.save(folder / "labels.npy", labels)
        return Result(
            name=name,
            outcome=outcome,
            folder=folder,
            size=(labels.shape[0], labels.shape[1], labels.shape[2]),
            shape=scan.shape,
            first=busiest_slice(labels) + 1,
            axis=None if scan.affine is None else scan_axis(scan.shape, scan.affine, axis),
            spacing_mm=scan.spacing_mm,
            aspect=pixel_aspect(scan, axis),
            window=display_window(scan),
        )
    except SessionClosed:
        raise
    except SegappError as error:
        reason = error.reason if isinstance(error, ScanError) else str(error)
        for path in (*entry.paths, *(path.parent for path in entry.paths)):
            reason = reason.replace(str(path), path.name if path in entry.paths else "")
        reason = reason.replace(str(folder.parent), "")
    except MemoryError:
        reason = "not enough memory for this scan"
    except Exception as error:  # a bug of ours: the others go on, and no name gets into the log
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("unexpected %s while segmenting a scan\n%s", type(error).__name__, frames)
        reason = f"could not be segmented (unexpected {type(error).__name__})"
    return Result(name, Outcome(entry.source, status="failed", reason=reason), folder)


def _free_name(base: str, suffix: str, taken: set[str]) -> str:
    name, number = f"{base}{suffix}", 1
    while name.lower() in taken:
        number += 1
        name = f"{base}_{number}{suffix}"
    taken.add(name.lower())
    return name


def _zip(outputs: Sequence[Path], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # they are compressed already
        for output in outputs:
            archive.write(output, output.name)
    return path


@cache
def private_root() -> Path:
    """The one folder of this process for uploads and sessions; removed at exit.

    Gradio keeps its own temporary files there too: it reads the environment variable set here, so
    call this before any component is made.
    """
    root = Path(tempfile.mkdtemp(prefix="segapp-")).resolve()  # mode 0700
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    return root
