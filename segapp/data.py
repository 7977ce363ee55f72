"""Training slices: read once into a memory-mapped cache, then sampled, augmented and batched."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from segapp.augment import Augmentation
from segapp.cases import Case, labels_to_indices
from segapp.check import read_case
from segapp.preprocess import Preprocessing, to_slices
from segapp.ranks import Ranks
from segapp.resample import resize
from segapp.scan import SegClass

log = logging.getLogger("segapp")

ALL = Ranks()  # one process, which has all the work
_MOST_DEATHS = 3  # of workers, in a row
_EMPTY_SHARE = 0.25  # slices without foreground, per slice with some, that an epoch takes


class SliceCache:
    """Normalised slices of the training cases, decoded once, in two flat files.

    Images are float16 (10 bits are more than any scanner's noise leaves), masks uint8. The files
    are memory-mapped, so that any number of workers share them and only what is used is in memory.
    channels: of one slice; context: slices on each side that are read with one.
    """

    def __init__(self, folder: Path, channels: int, context: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.channels, self.context = channels, context
        self.names: list[str] = []  # "case" or "case slice k", to name a slice in an error
        self.sizes: list[tuple[int, int]] = []
        self.offsets: list[int] = []  # in pixels
        self.empty: list[bool] = []  # no foreground
        self.cases: list[range] = []  # the slices of each one's case
        self._files = (folder / "images.f16", folder / "masks.u8")
        self._index = folder / "index.json"
        self._maps: tuple[np.ndarray, np.ndarray] | None = None

    def fill(
        self,
        cases: Iterable[Case],
        preprocessing: Preprocessing,
        classes: tuple[SegClass, ...],
        ignore: int | None,
        merged: tuple[int, ...] = (),
    ) -> None:
        """Prepare every slice of `cases`; mask values in `merged` count as background.

        Raises ScanError, and OSError where the disk is full.
        """
        total = 0
        with self._files[0].open("wb") as images, self._files[1].open("wb") as masks:
            for case in cases:
                scan, mask = read_case(case)
                prepared = preprocessing.prepare(scan)
                indices = labels_to_indices(mask.voxels, classes, ignore, merged)
                target = to_slices(indices, scan.affine, prepared.axis)  # (K, 1, H, W)
                size = prepared.target
                span = range(len(self.names), len(self.names) + len(prepared))
                for k in range(len(prepared)):
                    image = resize(prepared.normalised(k, k + 1), size)
                    labels = resize(target[k : k + 1], size, nearest=True)
                    images.write(image.astype(np.float16).tobytes())
                    masks.write(np.ascontiguousarray(labels).tobytes())
                    self.names.append(case.name if len(prepared) == 1 else f"{case.name} slice {k}")
                    self.sizes.append((size[0], size[1]))
                    self.offsets.append(total)
                    self.empty.append(not np.any((labels > 0) & (labels < len(classes))))
                    self.cases.append(span)
                    total += size[0] * size[1]
        kept = (self.names, self.sizes, self.offsets, self.empty)
        spans = [(span.start, span.stop) for span in self.cases]
        self._index.write_text(json.dumps([*kept, spans]), encoding="utf-8")

    def open(self) -> None:
        """Know the slices that another process has prepared in the folder."""
        names, sizes, offsets, empty, spans = json.loads(self._index.read_text(encoding="utf-8"))
        self.names, self.sizes, self.offsets = names, [(h, w) for h, w in sizes], offsets
        self.empty, self.cases = empty, [range(*span) for span in spans]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Slice `index`: image (C · (2 · context + 1), H, W) float32 and mask (H, W) uint8.

        The channels are those of the slices from index - context to index + context; beyond the
        case's first and last slice that one repeats.
        """
        if self._maps is None:  # opened by each process for itself
            self._maps = (
                np.memmap(self._files[0], np.float16, "r"),
                np.memmap(self._files[1], np.uint8, "r"),
            )
        height, width = self.sizes[index]
        start, pixels, case = self.offsets[index], height * width, self.cases[index]
        planes = []
        for near in range(index - self.context, index + self.context + 1):
            at = self.offsets[min(max(near, case[0]), case[-1])] * self.channels
            planes.append(self._maps[0][at : at + pixels * self.channels])
        image = np.concatenate(planes).reshape(-1, height, width).astype(np.float32)
        return image, self._maps[1][start : start + pixels].reshape(height, width)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": None}  # workers open the files themselves


class Samples(Dataset):
    """Augmented samples, addressed by (pass over the data, slice index).

    scale: share of its sides that each slice is shrunk to first (progressive resizing); the patch
    of `augment` is the caller's to scale, see `scaled_patch`.
    """

    def __init__(self, cache: SliceCache, augment: Augmentation, seed: int, scale: float = 1.0):
        self.cache, self.augment, self.seed, self.scale = cache, augment, seed, scale

    def __getitem__(self, at: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
        number, index = at
        image, mask = self.cache[index]
        if self.scale != 1:
            size = tuple(max(1, round(self.scale * n)) for n in mask.shape)
            image = resize(image[None], size)[0]
            mask = resize(mask[None, None], size, nearest=True)[0, 0]
        image, mask = self.augment(image, mask, seed=(self.seed, number, index))
        return image, mask, index


def stage_scale(scales: Sequence[float] | None, done: float) -> float:
    """The scale of the slices where a share `done` (0…1) of the run is over: each has an equal
    part of it, in their order. 1 without scales."""
    if not scales:
        return 1.0
    return scales[min(len(scales) - 1, int(done * len(scales)))]


def scaled_patch(side: int, scale: float) -> int:
    """Side in pixels of the patches of a stage: the nearest multiple of 32, at least 64."""
    return max(64, round(side * scale / 32) * 32)


def sample_order(empty: Sequence[bool], seed: int) -> Iterator[tuple[int, int]]:
    """(pass, slice index) without end: each pass is all slices with foreground and a quarter as
    many of those without, in an order that depends on (seed, pass) alone."""
    flags = np.asarray(empty)
    full, bare = np.flatnonzero(~flags), np.flatnonzero(flags)
    if not len(full):
        full, bare = bare, full
    n_bare = min(len(bare), int(np.ceil(_EMPTY_SHARE * len(full))))
    number = 0
    while True:
        rng = np.random.default_rng((seed, number))
        chosen = np.concatenate([full, rng.choice(bare, n_bare, replace=False)])
        for index in rng.permutation(chosen).tolist():
            yield number, index
        number += 1


def pass_length(empty: Sequence[bool]) -> int:
    """Samples in one pass of `sample_order`."""
    bare = int(np.sum(empty))
    full = len(empty) - bare
    return full + min(bare, int(np.ceil(_EMPTY_SHARE * full))) if full else bare


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C reaches every process of a terminal, and a scheduler's signals every one of a job; the
    main one saves, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def make_batches(
    samples: Samples, batch_size: int, workers: int, first_step: int = 0, ranks: Ranks = ALL
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches without end: images (N, C, h, w) float32, masks (N, h, w) uint8, indices (N,).

    The batch of a step depends on the seed, the step and `batch_size` alone, never on `workers`; a
    resumed run asks for `first_step` and gets what it would have got. Of several processes each
    gets its share of every batch, equal ones where their number divides `batch_size`. Workers that
    died (the system kills the largest process when memory runs out) are replaced, and after the
    third time in a row this process does their work.
    """
    step, deaths = first_step, 0
    while True:
        batches = iter(_loader(samples, batch_size, workers, step, ranks))
        if workers and threading.current_thread() is threading.main_thread():
            # torch would raise in the middle of whatever runs when a worker dies; without its
            # handler the next batch that is asked for says so within seconds
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while True:
            try:
                batch = next(batches)
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not workers or not _tells_of_death(error):
                    raise
                deaths += 1
                workers = workers if deaths < _MOST_DEATHS else 0
                what = "are replaced" if workers else "are not replaced: data.workers=0 from now on"
                log.warning("step %d: workers that prepare batches died and %s", step, what)
                break
            yield batch
            step, deaths = step + 1, 0


def _tells_of_death(error: Exception) -> bool:
    """Whether a loader means that a worker is gone, not what went wrong in one that still lives."""
    said = str(error)
    if "shared memory" in said or "Pin memory thread" in said:  # too small, or its sender is gone
        return True
    if "Caught " in said:  # how it begins to tell the latter
        return False
    return "DataLoader worker" in said or isinstance(error, ConnectionError | EOFError)


def _loader(
    samples: Samples, batch_size: int, workers: int, first_step: int, ranks: Ranks
) -> DataLoader:
    order = sample_order(samples.cache.empty, samples.seed)
    order = islice(order, first_step * batch_size, None)
    return DataLoader(
        samples,
        batch_sampler=(list(islice(order, batch_size))[ranks.rank :: ranks.count] for _ in count()),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # else it takes a number of the network's dropout
    )
