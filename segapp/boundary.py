"""How far the surfaces of two masks lie from each other.

The surface of a mask is those of its voxels that share a face with the outside; the outside of the
image counts as such. Distances go from voxel centre to voxel centre, in mm where the spacing is
known, else in pixels. Axes along which an image has one voxel are left out: a slice is plane.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree


class Boundary(NamedTuple):
    """hd95, msd: in mm or pixels, 0 at best; nsd: 0…1, 1 at best."""

    hd95: float
    msd: float
    nsd: float


def boundary(
    truth: np.ndarray, prediction: np.ndarray, spacing: np.ndarray, tolerance: float
) -> Boundary:
    """Compare the surfaces of two boolean masks of one shape.

    hd95: the larger of the two 95th percentiles of the distances from one surface to the other.
    msd: the mean over both surfaces of the distance to the other one. nsd: the share of both
    surfaces within `tolerance` of the other one (Nikolov et al. 2021, of voxels). spacing: (n,) of
    each axis, or (n, 3) the step along each axis (an affine's columns, which may be sheared), in
    the unit of `tolerance`.

    Both empty: NaN, as there is nothing to compare. One empty: the image's diagonal twice, and 0,
    as Metrics Reloaded asks (Maier-Hein et al. 2024): a miss must cost more than any other result.
    """
    if not truth.any() and not prediction.any():
        return Boundary(np.nan, np.nan, np.nan)
    kept = [axis for axis, size in enumerate(truth.shape) if size > 1]
    steps = np.asarray(spacing, float)
    steps = (np.diag(steps) if steps.ndim == 1 else steps)[kept]
    if not (truth.any() and prediction.any()):
        diagonal = _diagonal(np.array(truth.shape)[kept], steps)
        return Boundary(diagonal, diagonal, 0.0)
    if not kept:  # one voxel, in both
        return Boundary(0.0, 0.0, 1.0)
    truth, prediction = (m.reshape([m.shape[axis] for axis in kept]) for m in (truth, prediction))
    (near,) = ndimage.find_objects((truth | prediction).astype(np.uint8))  # saves most of a volume
    a, b = (np.argwhere(surface(mask[near])) @ steps for mask in (truth, prediction))
    forth, back = KDTree(b).query(a)[0], KDTree(a).query(b)[0]
    both = np.concatenate([forth, back])
    return Boundary(
        max(float(np.percentile(forth, 95)), float(np.percentile(back, 95))),
        float(both.mean()),
        float((both <= tolerance * (1 + 1e-9)).mean()),
    )


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a boolean mask that share a face with the outside, same shape."""
    return mask & ~ndimage.binary_erosion(mask)


def _diagonal(shape: np.ndarray, steps: np.ndarray) -> float:
    """The longest distance between two corners of an image."""
    signs = product((-1, 1), repeat=len(shape))
    return max(float(np.linalg.norm((shape * sign) @ steps)) for sign in signs)
