"""Patches: how large they are, how deep a network suits them, where they are placed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segapp.contradictions import depth_is_open
from segapp.fingerprint import CaseFacts
from segapp.preprocess import Preprocessing
from segapp.settings import Settings

_PATCH_SHARE = 0.75  # of the slice's median side: most of it in view, edges seen off-centre
_PATCH_LIMITS, _SMALL = (96, 256), 64
_DEEPEST_SIDE = 12  # pixels of a patch's side in the encoder's last maps
_FOREGROUND_P = 0.33  # nnU-Net's share (Isensee et al. 2021)
_LITTLE = 1 / 3  # of a slice: a patch that shows less misses small structures most of the time


def network_size(f: CaseFacts, preprocessing: Preprocessing) -> tuple[int, int]:
    """Rows and columns of the slices that a network gets. Raises ScanError."""
    axis = preprocessing.slice_axis
    return preprocessing.target_size(f.slice_sizes[axis], f.slice_spacings[axis], f.case.images[0])


def choose_patch(facts: Sequence[CaseFacts], preprocessing: Preprocessing) -> int:
    """Side in pixels: three quarters of a slice's, a multiple of 32, 96…256; 64 where slices are no
    larger, which a patch of 96 would surround with padding."""
    sizes = np.array([network_size(f, preprocessing) for f in facts])
    if np.median(sizes.max(axis=1)) <= _SMALL:
        return _SMALL
    side = round(float(np.median(sizes.mean(axis=1))) * _PATCH_SHARE / 32) * 32
    return int(np.clip(side, *_PATCH_LIMITS))


def choose_depth(settings: Settings) -> int:
    """As many of the encoder's stages as leave a patch at least 12 pixels a side, 3…5."""
    model, patch = settings.model, settings.optim.patch
    if not depth_is_open(model.architecture, model.encoder) or not isinstance(patch, int):
        return 5
    return int(np.clip(np.log2(patch / _DEEPEST_SIDE), 3, 5))


def choose_foreground(
    facts: Sequence[CaseFacts], preprocessing: Preprocessing, patch: int | str
) -> float:
    """Share of the patches that are placed on a class: a third where a patch shows less than a
    third of a slice; 0 for larger ones and whole slices."""
    if not isinstance(patch, int):
        return 0.0
    pixels = [np.prod(network_size(f, preprocessing)) for f in facts]
    return _FOREGROUND_P if patch**2 < _LITTLE * np.median(pixels) else 0.0
