"""Small data sets and models that several test files need."""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: a thread each
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

import hypothesis
import numpy as np
import pytest
from PIL import Image

# A busy machine fails no deadline; a release sees the same examples each time.
hypothesis.settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("suite")


# Files whose tests take longest, in the order in which workers begin them
LONGEST = (
    *("test_benchmarks", "test_together", "test_docs", "test_web_flow", "test_toolbox"),
    *("test_release", "test_export", "test_reader_page", "test_shares", "test_model"),
    *("test_faults", "test_fuzz", "test_batch_faults", "test_kills", "test_weights"),
    *("test_train", "test_boundary", "test_cli", "test_prune", "test_intervals"),
    *("test_guard", "test_reader_correction", "test_safeguards", "test_compare", "test_closing"),
    "test_report",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        rank = {name: n for n, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


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


@contextmanager
def without_pictures() -> Iterator[None]:
    """matplotlib lays nothing out and saves an empty picture: two thirds of what a training of
    seconds takes, to a test that looks at something else."""
    from matplotlib.figure import Figure

    def save(figure: Any, target: Any, *, format: str, **_: Any) -> None:
        if format == "svg":
            target.write("<svg></svg>")
        else:
            Image.new("RGB", (1, 1)).save(target, format)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture
def no_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """For a whole file, but its tests that are marked `pictures`."""
    wanted = request.node.get_closest_marker("pictures")
    with nullcontext() if wanted else without_pictures():
        yield


@pytest.fixture(scope="module")
def chromium() -> Iterator[None]:
    """The pages of a file's tests share a Chromium."""
    from browser import one_chromium

    with one_chromium():
        yield


class SteppedTime:
    """Stands for the module `time`, in the code or in another test's; passes by `sleep` alone."""

    now = 1e9

    def time(self) -> float:
        return self.now

    monotonic = perf_counter = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def stepped_time(monkeypatch: pytest.MonkeyPatch) -> SteppedTime:
    """The time of trainings and their validations."""
    stepped = SteppedTime()
    for module in ("pace", "train", "validation"):
        monkeypatch.setattr(f"segapp.{module}.time", stepped)
    return stepped


@pytest.fixture(scope="session", autouse=True)
def _disk_is_not_waited_for() -> Iterator[None]:
    """What tests write need not outlast a power cut; test_files.py sees that files are flushed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _log_as_at_the_start() -> None:
    """A command that a test, or a fixture of a whole module, runs in this process sends the log
    to the screen: the next test's `caplog` would stay empty."""
    logger = logging.getLogger("segapp")
    logger.handlers, logger.level, logger.propagate = [], logging.NOTSET, True
