"""Predictor: the one path from a scan to a segmentation. Everybody walks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import combinations
from pathlib import Path

import numpy as np

from segapp.checkpoint import ModelInfo, read_info
from segapp.engines import Engine, load_engine
from segapp.errors import ScanError
from segapp.likeness import unlike
from segapp.preprocess import Flip, Prepared, Preprocessing, from_slices, slabs
from segapp.scan import Scan, SegClass, Segmentation

_PIXELS = 1 << 20  # at once: the default network holds some 0.4 kB for each, in bf16


class Predictor:
    """finish ∘ engine ∘ prepare. Build it from parts, or `Predictor.load` a model file."""

    def __init__(
        self,
        engine: Engine,
        preprocessing: Preprocessing,
        classes: tuple[SegClass, ...],
        temperature: float = 1.0,
        info: ModelInfo | None = None,
        flips: tuple[Flip, ...] = (),
    ):
        """flips: probabilities are averaged over the slices as they are and flipped so (and, for
        two flips, both ways at once): test-time augmentation."""
        self.engine = engine
        self.preprocessing = preprocessing
        self.classes = classes
        self.temperature = temperature
        self.info = info
        axes = [{"vertical": 2, "horizontal": 3}[flip] for flip in flips]
        self._views = [c for n in range(len(axes) + 1) for c in combinations(axes, n)]

    @classmethod
    def load(cls, model: Path, device: str = "auto") -> Predictor:
        """The predictor of a run folder or a model file. Raises ModelFileError, ConfigError."""
        info = read_info(model)
        engine = load_engine(model, info, device)
        return cls(
            engine, info.preprocessing, info.classes, info.temperature, info, flips=info.flips
        )

    def probabilities(self, prepared: Prepared) -> Iterator[tuple[int, np.ndarray]]:
        """Slab by slab: (first slice, probabilities (n, classes, H, W) float32 on the scan's grid).

        Slices are counted in the order of `to_slices`; no more than one slab is held at a time.
        """
        size = self._batch_size(prepared)
        for start, stop in slabs(len(prepared), size):
            batch = prepared.network_input(start, stop)
            missing = size - len(batch)
            if missing:  # a constant batch shape, see Engine
                batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            views = (self._logits(batch, view)[: stop - start] for view in self._views)
            slab = reduce(np.add, (prepared.probabilities(x, self.temperature) for x in views))
            yield start, slab / np.float32(len(self._views)) if len(self._views) > 1 else slab

    def _batch_size(self, prepared: Prepared) -> int:
        """Slices that go through the network at once: the engine's number, less where they are
        large. It depends on their size alone, so that no result depends on the others."""
        rows, columns = prepared.target
        return max(1, min(self.engine.batch_size, _PIXELS // (rows * columns)))

    def _logits(self, batch: np.ndarray, view: tuple[int, ...]) -> np.ndarray:
        """Logits (batch_size, classes, H', W') of the batch flipped along `view`, flipped back."""
        if not view:
            return self.engine(batch)
        return np.flip(self.engine(np.ascontiguousarray(np.flip(batch, view))), view)

    def __call__(
        self,
        scan: Scan,
        on_slab: Callable[[int, int, np.ndarray], None] = lambda *_: None,
    ) -> Segmentation:
        """Segment a scan on its own grid, with the confidence of every voxel.

        Its warnings also say where the scan is unlike the training scans, if the model file knows.

        on_slab(done, total, probabilities) is called after each slab, for progress and for whoever
        needs the probabilities. Raises ScanError where the scan's channels don't fit the model, or
        where no numbers come out.
        """
        prepared = self.preprocessing.prepare(scan)
        known = self.info.training if self.info else None
        unusual = unlike(prepared, known) if known else ()
        total, _, height, width = prepared.slices.shape
        labels = np.empty((total, 1, height, width), np.uint8)
        confidence = np.empty((total, 1, height, width), np.float16)
        for start, slab in self.probabilities(prepared):
            stop = start + len(slab)
            best = slab.max(axis=1)
            if not np.isfinite(best).all():
                raise ScanError(scan.source, "the network's result is not finite (an overflow?)")
            labels[start:stop, 0] = slab.argmax(axis=1)
            confidence[start:stop, 0] = best
            on_slab(stop, total, slab)
        back = (scan.affine, prepared.axis)
        return Segmentation(
            labels=np.ascontiguousarray(from_slices(labels, *back)[0]),
            scan=scan,
            classes=self.classes,
            confidence=np.ascontiguousarray(from_slices(confidence, *back)[0]),
            warnings=(*scan.warnings, *prepared.warnings, *unusual),
        )
