"""Small data sets and models that several test files need."""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def draw_case(seed: int, size: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A noisy dark picture (rows, columns) with a bright disc and a grey square, and its mask:
    1 the disc, 2 the square."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    row, column = rng.integers(12, size[0] - 12), rng.integers(12, size[1] // 2)
    disc = (rows - row) ** 2 + (columns - column) ** 2 < 64
    square = (abs(rows - row) < 6) & (abs(columns - (column + size[1] // 3)) < 6) & ~disc
    image = rng.normal(40, 8, size) + 150 * disc + 70 * square
    return np.clip(image, 1, 255).astype(np.uint8), (disc + 2 * square).astype(np.uint8)


def write_png_dataset(root: Path, count: int = 6, values: tuple[int, ...] = (0, 1, 2)) -> Path:
    """images/ + masks/ with `count` cases; mask values 0, 1, 2 are replaced by `values`."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for n in range(count):
        image, mask = draw_case(n)
        Image.fromarray(image).save(root / "images" / f"case{n}.png")
        Image.fromarray(np.array(values, np.uint8)[mask]).save(root / "masks" / f"case{n}.png")
    return root


@pytest.fixture
def png_dataset(tmp_path: Path) -> Path:
    return write_png_dataset(tmp_path / "data")


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """forbid(path, …): from now on these files are there and may not be read, whoever asks."""
    forbidden: set[Path] = set()

    class Guarded(io.FileIO):
        def __init__(self, file: Path, *args: str):
            if Path(file) in forbidden:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            super().__init__(file, *args)

    monkeypatch.setattr("segapp.formats.source.io.FileIO", Guarded)
    return lambda *paths: forbidden.update(paths)


@pytest.fixture(autouse=True)
def _log_as_at_the_start() -> None:
    """A command that a test, or a fixture of a whole module, runs in this process sends the log
    to the screen: the next test's `caplog` would stay empty."""
    logger = logging.getLogger("segapp")
    logger.handlers, logger.level, logger.propagate = [], logging.NOTSET, True
