"""Slices too large for a network's memory, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

TILE, OVERLAP = 1024, 128  # pixels a side, at most and at least
_MULTIPLE = 32  # of every network's stride


def in_tiles(engine: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> np.ndarray:
    """engine(batch), or where its slices are large the same from overlapping tiles: (n, C, H, W)
    float32 → logits (n, classes, H, W) float32.

    Where tiles overlap, logits are averaged with weights that fall off from a tile's centre like a
    Gaussian of an eighth of its side (nnU-Net, Isensee et al. 2021).
    """
    rows, columns = batch.shape[2:]
    if rows * columns <= TILE * TILE:
        return engine(batch)
    total = weights = None
    for down in places(rows):
        for across in places(columns):
            logits = engine(np.ascontiguousarray(batch[..., down, across]))
            weight = np.multiply.outer(_bell(logits.shape[2]), _bell(logits.shape[3]))
            if total is None or weights is None:
                total = np.zeros((*logits.shape[:2], rows, columns), np.float32)
                weights = np.zeros((rows, columns), np.float32)
            total[..., down, across] += logits * weight
            weights[down, across] += weight
    assert total is not None
    assert weights is not None
    total /= weights
    return total


def places(length: int) -> list[slice]:
    """The tiles along a side: as few as can be, and no larger than they need to be."""
    count = max(1, math.ceil((length - OVERLAP) / (TILE - OVERLAP)))
    side = (length + (count - 1) * OVERLAP) / count
    side = min(length, math.ceil(side / _MULTIPLE) * _MULTIPLE)
    return [slice(round(n), round(n) + side) for n in np.linspace(0, length - side, count)]


def _bell(length: int) -> np.ndarray:
    x = (np.arange(length) - (length - 1) / 2) / (length / 8)
    return np.exp(-0.5 * x**2).astype(np.float32)
