"""Predictor: the one path from a scan to a segmentation. Everybody walks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import combinations
from pathlib import Path

import numpy as np

from segapp.ahead import in_order
from segapp.checkpoint import ModelInfo, read_info
from segapp.engines import Engine, EngineChoice, load_engine, slices_at_once
from segapp.errors import ScanError
from segapp.likeness import unlike
from segapp.modality import mismatch
from segapp.novelty import features, looked_at, own_slice
from segapp.preprocess import Flip, Prepared, Preprocessing, from_slices
from segapp.quality import assess, doubted
from segapp.resample import padded_size
from segapp.scan import Scan, SegClass, Segmentation
from segapp.tiles import in_tiles


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
        two flips, both ways at once): test-time augmentation. Hashes of the scans that it was
        trained on are `learned`."""
        self.engine = engine
        self.preprocessing = preprocessing
        self.classes = classes
        self.temperature = temperature
        self.info = info
        data = info.data if info else None
        self.learned = frozenset((*data.images.get("train", ()), *data.earlier) if data else ())
        axes = [{"vertical": 2, "horizontal": 3}[flip] for flip in flips]
        self._views = [c for n in range(len(axes) + 1) for c in combinations(axes, n)]

    @classmethod
    def load(
        cls,
        model: Path,
        device: str = "auto",
        engine: EngineChoice = "auto",
        single: bool = False,
    ) -> Predictor:
        """The predictor of a run folder, a model file or an exported folder; for the rest see
        `load_engine`. Raises ModelFileError, ConfigError."""
        info = read_info(model)
        return cls.of(load_engine(model, info, device, engine, single), info)

    @classmethod
    def of(cls, engine: Engine, info: ModelInfo) -> Predictor:
        """The predictor that a model file describes, on an engine of its network."""
        return cls(
            engine, info.preprocessing, info.classes, info.temperature, info, flips=info.flips
        )

    def probabilities(
        self, prepared: Prepared, on_input: Callable[[int, np.ndarray], None] = lambda *_: None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Slab by slab: (first slice, probabilities (n, classes, H, W) float32 on the scan's grid).

        Slices are counted in the order of `to_slices`. No more slabs are held at a time than the
        engine computes at once, and two. on_input(first slice, batch for the network) is called
        before each is computed, from several threads.
        """

        def compute(bounds: tuple[int, int]) -> tuple[int, np.ndarray]:
            batch = prepared.network_input(*bounds)
            on_input(bounds[0], batch)
            views = (self._logits(batch, view) for view in self._views)
            slab = reduce(np.add, (prepared.probabilities(x, self.temperature) for x in views))
            if len(self._views) > 1:
                slab /= np.float32(len(self._views))
            return bounds[0], slab

        stride = self.preprocessing.stride
        size = slices_at_once(self.engine, *padded_size(prepared.target, stride, 2 * stride))
        bounds = [(n, min(n + size, len(prepared))) for n in range(0, len(prepared), size)]
        return in_order(compute, bounds, min(self.engine.calls_at_once, len(bounds)))

    def _logits(self, batch: np.ndarray, view: tuple[int, ...]) -> np.ndarray:
        """Logits (n, classes, H', W') of the batch flipped along `view`, flipped back."""
        if not view:
            return in_tiles(self.engine, batch)
        return np.flip(in_tiles(self.engine, np.ascontiguousarray(np.flip(batch, view))), view)

    def __call__(
        self,
        scan: Scan,
        on_slab: Callable[[int, int, np.ndarray], None] = lambda *_: None,
    ) -> Segmentation:
        """Segment a scan on its own grid, with the confidence of every voxel.

        Its warnings also say where the scan is unlike the training scans, if the model file knows,
        and its assessment asks for a look where it is of another modality, or coloured.

        on_slab(done, total, probabilities) is called after each slab, for progress and for whoever
        needs the probabilities. Raises ScanError where the scan's channels don't fit the model, or
        where no numbers come out.
        """
        prepared = self.preprocessing.prepare(scan)
        known = self.info.training if self.info else None
        unusual = unlike(prepared, known) if known else ()
        strange = mismatch(scan.modality, known.modality) if known else ""
        doubts = (*([strange] if strange else ()), *prepared.doubts)
        total, _, height, width = prepared.slices.shape
        labels = np.empty((total, 1, height, width), np.uint8)
        confidence = np.empty((total, 1, height, width), np.float16)
        soft = np.zeros((3, len(self.classes)))
        quality = self.info.quality if self.info else None
        chosen = looked_at(prepared) if quality and quality.novelty else []
        looks: dict[int, np.ndarray] = {}

        def look(start: int, batch: np.ndarray) -> None:
            for k in chosen:
                if start <= k < start + len(batch):
                    looks[k] = features(own_slice(prepared, batch[k - start]))

        for start, slab in self.probabilities(prepared, look):
            stop = start + len(slab)
            labels[start:stop, 0], best = most_probable(slab)
            if not np.isfinite(best).all():
                raise ScanError(scan.source, "the network's result is not finite (an overflow?)")
            confidence[start:stop, 0] = best
            soft += soft_counts(slab, labels[start:stop, 0], best)
            on_slab(stop, total, slab)
        back = (scan.affine, prepared.axis)
        judged = assess(quality, soft, [looks[k] for k in chosen]) if quality else None
        return Segmentation(
            labels=from_slices(labels, *back)[0],
            scan=scan,
            classes=self.classes,
            confidence=from_slices(confidence, *back)[0],
            warnings=(*scan.warnings, *prepared.warnings, *unusual),
            soft=soft,
            assessment=doubted(judged, doubts, len(self.classes)),
        )


def soft_counts(slab: np.ndarray, labels: np.ndarray, best: np.ndarray) -> np.ndarray:
    """(3, classes) sums over the pixels of a slab: of chosen ones, of probabilities, and of
    probabilities where the class was chosen. slab: (n, classes, H, W); labels, best: (n, H, W),
    labels of no class for pixels that don't count, where the slab is 0."""
    counts = np.zeros((3, slab.shape[1]))
    for k in range(slab.shape[1]):
        chosen = labels == k
        counts[0, k] = np.count_nonzero(chosen)
        counts[1, k] = _sum(slab[:, k])
        counts[2, k] = _sum(best * chosen) if counts[0, k] else 0.0
    return counts


def _sum(values: np.ndarray) -> float:
    """Of (n, H, W): rows in float32, which is exact enough and four times as fast, then float64."""
    return float(values.sum(axis=-1).sum(dtype=np.float64))


def most_probable(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, classes, H, W) → the class of each pixel as uint8, of equals the first, and its
    probability: (n, H, W) each. NumPy's argmax along an axis that is not the last takes ten times
    as long."""
    best = probabilities[:, 0].copy()
    labels = np.zeros(best.shape, np.uint8)
    for index in range(1, probabilities.shape[1]):
        higher = probabilities[:, index] > best
        np.maximum(labels, higher.view(np.uint8) * np.uint8(index), out=labels)
        np.maximum(best, probabilities[:, index], out=best)
    return labels, best
