"""What runs a network: NumPy in, NumPy out, whatever is behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from segapp.checkpoint import ModelInfo


class Engine(Protocol):
    """Runs batches of `batch_size` slices, of fewer where these are large.

    For slices of one size the number is constant, and the last batch of a scan is padded, so that
    a slice's result never depends on what shares its batch: kernels are chosen by shape, and sums
    by kernel.
    """

    batch_size: int

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, C, H, W) float32 → logits (n, classes, H, W) float32."""
        ...


def load_engine(model: Path, info: ModelInfo, device: str = "auto") -> Engine:
    """The engine of a model file; imports torch only now. Raises ModelFileError, ConfigError."""
    from segapp.engines.torch import load_torch_engine

    return load_torch_engine(model, info, device)
