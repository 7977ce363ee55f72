"""The types that travel: a scan, its classes, and the segmentation on the scan's own grid."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from segapp.errors import DataError

# Okabe & Ito's palette, which colour-blind readers can tell apart, without its black.
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


@dataclass(frozen=True)
class SegClass:
    """One class: its name, the value that stands for it in mask files, and its display colour."""

    name: str
    value: int
    colour: tuple[int, int, int]

    def may_be(self, other: SegClass) -> bool:
        """Whether both stand for the same: for a class that nobody named, its value tells."""
        unnamed = called_by(self.value) == self.name or called_by(other.value) == other.name
        return self.name == other.name or (unnamed and self.value == other.value)


@dataclass(frozen=True)
class Scan:
    """An image or a volume as its file gave it.

    voxels: (C, I, J, K) in stored units (HU for CT). A raster has I = column, J = row, K = 1.
    affine: (4, 4) voxel (i, j, k) → RAS+ mm; None where the file has no geometry.
    source: the file or folder it came from.
    files: the files of a DICOM series in the order of k; () for every other scan.
    modality: what DICOM says took it (CT, MR, …); "" for every other scan.
    warnings: what the reader had to assume or repair, for the log, the CSV and the screen.
    """

    voxels: np.ndarray
    affine: np.ndarray | None
    source: Path
    warnings: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    modality: str = ""

    @property
    def channels(self) -> int:
        return self.voxels.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)"""
        _, i, j, k = self.voxels.shape
        return (i, j, k)

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance between neighbouring voxels along i, j, k in mm; None where it is unknown."""
        if self.affine is None:
            return None
        x, y, z = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return (x, y, z)

    def voxel_size(self) -> tuple[float, str]:
        """How much a voxel counts: its ml in a volume, its mm2 on a single slice (K is 1), 1 voxel
        where the spacing is unknown."""
        if self.affine is None:
            return 1.0, "voxels"
        if self.shape[2] > 1:
            return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000, "ml"
        along_i, along_j = self.affine[:3, 0], self.affine[:3, 1]
        return float(np.linalg.norm(np.cross(along_i, along_j))), "mm2"

    def with_voxels(self, voxels: np.ndarray) -> Scan:
        """The same place with other voxels (C', I, J, K); another grid raises ValueError."""
        if voxels.shape[1:] != self.shape:
            raise ValueError(f"expected a (C, I, J, K) array on {self.shape}, got {voxels.shape}")
        return replace(self, voxels=voxels)


@dataclass(frozen=True)
class Assessment:
    """What a model thinks of its own result.

    estimated_dice: of the foreground; None where nothing was found. unlikeness: to the training
    scans; above 1 is unusual, None where the model knows nothing of them. review: why somebody
    should look at the result; () where nothing speaks against it. ranges: for each class where its
    true number of voxels lies (lowest, highest), None where nothing can be promised; promised: the
    share of new patients' scans for which that holds, 0 for none.
    """

    estimated_dice: float | None
    unlikeness: float | None
    review: tuple[str, ...]
    ranges: tuple[tuple[float, float] | None, ...]
    promised: float = 0.0


@dataclass(frozen=True)
class Segmentation:
    """Labels on exactly the grid of `scan`.

    labels: (I, J, K) unsigned integers, indices into `classes`; of a Predictor's a view, which
    np.ascontiguousarray lays out anew for who needs that.
    confidence: (I, J, K) float16, the probability of the chosen class; None where not kept.
    warnings: the scan's own and those of the prediction.
    soft: (3, classes) voxels chosen, those that the probabilities make expect, and those of them
    where the class was chosen; assessment: what the model thinks of it. None where not kept.
    by_hand: somebody corrected the labels.
    """

    labels: np.ndarray
    scan: Scan
    classes: tuple[SegClass, ...]
    confidence: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    soft: np.ndarray | None = None
    assessment: Assessment | None = None
    by_hand: bool = False

    def __post_init__(self) -> None:
        if self.labels.shape != self.scan.shape:
            raise ValueError(f"labels {self.labels.shape} are not on the scan's {self.scan.shape}")

    def voxel_counts(self) -> dict[str, int]:
        """Number of voxels of each class; 0 for a class that is not there."""
        return dict(self._voxel_counts)

    @cached_property
    def _voxel_counts(self) -> dict[str, int]:
        counts = np.zeros(len(self.classes), np.int64)
        for (plane,) in planes(self.labels):  # bincount makes int64 of what it counts
            counts += np.bincount(plane.ravel("K"), minlength=len(self.classes))
        return {c.name: int(n) for c, n in zip(self.classes, counts, strict=True)}

    def ranges(self) -> tuple[tuple[float, float] | None, ...]:
        """For each class where its true number of voxels lies; None where nothing is known."""
        return self.assessment.ranges if self.assessment else (None,) * len(self.classes)

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each class in ml. Raises DataError where the spacing is unknown or K is 1."""
        if self.scan.affine is None or self.scan.shape[2] == 1:
            raise DataError(f"{self.scan.source}: no volumes, it is not a volume of known spacing")
        voxel_ml, _ = self.scan.voxel_size()
        return {name: n * voxel_ml for name, n in self.voxel_counts().items()}

    def areas_mm2(self) -> dict[str, float]:
        """Area of each class in mm² on a single slice. Raises DataError for anything else."""
        if self.scan.affine is None or self.scan.shape[2] != 1:
            raise DataError(f"{self.scan.source}: no areas, it is not a slice of known spacing")
        pixel_mm2, _ = self.scan.voxel_size()
        return {name: n * pixel_mm2 for name, n in self.voxel_counts().items()}

    def mask_values(self) -> np.ndarray:
        """(I, J, K) uint8 or uint16: labels as the values that the training masks used."""
        values = np.array([c.value for c in self.classes])
        dtype = np.uint8 if values.max() <= 255 else np.uint16
        return values.astype(dtype)[self.labels]


def planes(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The planes of arrays of one shape, cut as the first one lies in memory: fast to go through,
    with the memory of one plane."""
    axis = int(np.argmax(np.abs(arrays[0].strides)))
    return zip(*(np.moveaxis(array, axis, 0) for array in arrays), strict=True)


def called_by(value: int) -> str:
    """What a class of this mask value is called that nobody named."""
    return f"class_{value}" if value else "background"


def as_called_now(old: Sequence[SegClass], new: Sequence[SegClass]) -> list[str]:
    """The names of `old` classes, but where nobody had named one, and `new` has one of its value
    under a name that is no old one's, that name."""
    taken, there = {c.name for c in old}, {c.name for c in new}
    names = []
    for c in old:
        now = (n.name for n in new if c.may_be(n) and n.name not in taken)
        names.append(c.name if c.name in there else next(now, c.name))
    return names


def make_classes(names: list[str], values: list[int]) -> tuple[SegClass, ...]:
    """Classes with display colours; the first one (background) is black and drawn transparent."""
    return tuple(
        SegClass(name, value, (0, 0, 0) if index == 0 else _colour(index - 1))
        for index, (name, value) in enumerate(zip(names, values, strict=True))
    )


def css(colour: tuple[int, int, int]) -> str:
    """(230, 159, 0) → "#e69f00"."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _colour(index: int) -> tuple[int, int, int]:
    if index < len(_PALETTE):
        red, green, blue = (int(_PALETTE[index][k : k + 2], 16) for k in (1, 3, 5))
        return (red, green, blue)
    hue = (index * 0.618034) % 1  # the golden ratio keeps neighbouring hues apart
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.65, 0.9))
    return (red, green, blue)
