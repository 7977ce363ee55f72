"""From a scan to the slices a network sees, and from probabilities back to the scan's own grid.

The axes move in exactly one pair of inverse functions, `to_slices` and `from_slices`. Everything
that prediction needs to repeat is in `Preprocessing`, which is fitted once and stored in the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from segapp.errors import ScanError
from segapp.resample import pad, resize
from segapp.scan import Scan
from segapp.spread import spread, telling_spread

SliceAxis = Literal["axial", "coronal", "sagittal"]
Normalisation = Literal["imagenet", "zscore", "percentile", "ct"]
Flip = Literal["horizontal", "vertical"]

# World axes (0 = right, 1 = anterior, 2 = superior) of slices, rows and columns. Slices go towards
# +world; rows and columns towards -world (posterior, inferior, left), as DICOM viewers show them.
_WORLD = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST = 1e30  # larger values make statistics in float32 overflow
_LARGEST_SIDE = 8192  # pixels: no slice is enlarged beyond it


def orientation(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """For each voxel axis the world axis (0 R, 1 A, 2 S) nearest to it, and its sign (+1 or -1).

    affine: (4, 4) voxel → RAS+ mm, invertible. Oblique and sheared axes go to the nearest one by
    the polar decomposition of the direction matrix, strongest first (as nibabel's io_orientation).
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(directions)
    rotation = np.abs(u @ vt)  # rows: world, columns: voxel axes
    signed = u @ vt
    world, sign = [0, 0, 0], [1, 1, 1]
    for _ in range(3):
        w, v = np.unravel_index(np.argmax(rotation), (3, 3))
        world[v], sign[v] = int(w), 1 if signed[w, v] >= 0 else -1
        rotation[w, :] = rotation[:, v] = -1
    return (world[0], world[1], world[2]), (sign[0], sign[1], sign[2])


def scan_axis(shape: tuple[int, int, int], affine: np.ndarray | None, axis: SliceAxis) -> SliceAxis:
    """The direction along which a scan is cut: the model's, but a single slice is that slice."""
    if affine is None or shape.count(1) != 1:
        return axis
    return _axis_named(orientation(affine)[0][shape.index(1)])


def _axis_named(world: int) -> SliceAxis:
    return ("sagittal", "coronal", "axial")[world]


def thickest_axis(scan: Scan) -> SliceAxis:
    """The anatomical direction with the largest spacing; a tie, or no geometry, means axial."""
    if scan.affine is None or scan.spacing_mm is None:
        return "axial"
    world, _ = orientation(scan.affine)
    if scan.shape.count(1) == 1:
        return _axis_named(world[scan.shape.index(1)])
    spacing = np.array(scan.spacing_mm)
    thickest = np.flatnonzero(spacing > 0.999 * spacing.max())  # a microscope's mm are small
    return _axis_named(world[thickest[0]]) if len(thickest) == 1 else "axial"


def ordering(affine: np.ndarray | None, axis: SliceAxis) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which voxel axes become (K, H, W), and which of these three are flipped."""
    if affine is None:  # a raster: I = column, J = row
        return (2, 1, 0), ()
    world, sign = orientation(affine)
    order = tuple(world.index(w) for w in _WORLD[axis])
    wanted = (1, -1, -1)
    return order, tuple(n for n, v in enumerate(order) if sign[v] != wanted[n])


def slice_spacing(scan: Scan, axis: SliceAxis) -> tuple[float, ...]:
    """Distance in mm between slices, rows and columns of a scan with geometry."""
    assert scan.spacing_mm is not None
    order, _ = ordering(scan.affine, scan_axis(scan.shape, scan.affine, axis))
    return tuple(scan.spacing_mm[v] for v in order)


def to_slices(array: np.ndarray, affine: np.ndarray | None, axis: SliceAxis) -> np.ndarray:
    """(C, I, J, K) → (slices, C, rows, columns), a lossless permutation with flips (a view)."""
    order, flips = ordering(affine, axis)
    moved = np.transpose(array, (1 + order[0], 0, 1 + order[1], 1 + order[2]))
    return np.flip(moved, tuple((0, 2, 3)[n] for n in flips))


def from_slices(array: np.ndarray, affine: np.ndarray | None, axis: SliceAxis) -> np.ndarray:
    """(slices, C, rows, columns) → (C, I, J, K): the inverse of `to_slices` (a view)."""
    order, flips = ordering(affine, axis)
    moved = np.flip(array, tuple((0, 2, 3)[n] for n in flips))
    back = np.argsort([1 + order[0], 0, 1 + order[1], 1 + order[2]])
    return np.transpose(moved, back)


@dataclass(frozen=True)
class Prepared:
    """A scan on its way through a network: slices in stored units and how to normalise them.

    slices: (K, C, H, W), contiguous, so that no result depends on the file's axis order.
    target: (rows, columns) that slices are resized to for the network, before padding.
    shift, scale: (K or 1, C, 1, 1) float32; clip: (low, high) of the same shape or None.
    doubts: why somebody should look at the result, whatever the network makes of it.
    """

    scan: Scan
    slices: np.ndarray
    target: tuple[int, int]
    axis: SliceAxis
    preprocessing: Preprocessing
    shift: np.ndarray
    scale: np.ndarray
    clip: tuple[np.ndarray, np.ndarray] | None
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.slices)

    def network_input(self, start: int, stop: int) -> np.ndarray:
        """Slices start…stop, normalised, resized, padded to the stride: (n, inputs, H', W').

        With `context` each slice has its neighbours as further channels, lowest first, at the ends
        the last slice again. At least two strides each way: where a stride-2 convolution's output
        is 1 wide, oneDNN's bfloat16 kernel for AMX was seen to give a wrong result every time.
        """
        around = self.preprocessing.context
        first, end = max(0, start - around), min(len(self), stop + around)
        x = resize(self.normalised(first, end), self.target)
        if around:
            near = np.arange(start, stop)[:, None] + np.arange(-around, around + 1)
            near = np.clip(near, 0, len(self) - 1) - first  # (n, 2 · context + 1)
            x = x[near].reshape(stop - start, -1, *x.shape[2:])
        return pad(x, self.preprocessing.stride, least=2 * self.preprocessing.stride)

    def normalised(self, start: int, stop: int) -> np.ndarray:
        """Slices start…stop at their own size, normalised: (n, C, H, W) float32."""
        own = slice(start, stop) if len(self.shift) > 1 else slice(None)
        x = self.slices[start:stop].astype(np.float32)
        if self.clip:
            x = np.clip(x, self.clip[0][own], self.clip[1][own])
        return (x - self.shift[own]) / self.scale[own]

    def probabilities(self, logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Logits (n, classes, H', W') → class probabilities (n, classes, H, W) on the scan's grid.

        Padding is cut off, softmax taken at `temperature`, and probabilities (never labels) are
        resized to the slice's own size, bilinearly.
        """
        height, width = self.target
        x = np.divide(logits[:, :, :height, :width], np.float32(temperature), dtype=np.float32)
        x -= x.max(axis=1, keepdims=True)
        np.exp(x, out=x)
        x /= x.sum(axis=1, keepdims=True)
        return resize(x, self.slices.shape[2:])


class Preprocessing(BaseModel):
    """How scans become network input. Fitted on training cases, stored with the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int
    channel_files: int = 1  # files a scan is made of, one a channel
    slice_axis: SliceAxis = "axial"
    size: int | None = None  # longest side of a slice in pixels; None: as it is
    spacing_mm: float | None = Field(default=None, gt=0)  # side of a pixel, instead of `size`
    context: int = Field(default=0, ge=0)  # slices on each side that the network sees as channels
    stride: int = 32
    normalisation: Normalisation = "zscore"
    over: Literal["slice", "scan"] = "scan"  # what zscore and percentile are taken over
    nonzero: bool = False  # zeros are background outside the field of view: leave them out
    typical: tuple[tuple[float, float], ...] = ()  # per channel a training image's mean, deviation
    white: float = 0  # what stands for white in the training images, for imagenet
    shift: tuple[float, ...] = ()  # per channel, for imagenet and ct
    scale: tuple[float, ...] = ()
    clip: tuple[tuple[float, float], ...] = ()  # per channel, for ct

    @property
    def inputs(self) -> int:
        """Channels of the network's input."""
        return self.channels * (2 * self.context + 1)

    def prepare(self, scan: Scan) -> Prepared:
        """Turn a scan into slices, find their size for the network and their normalisation.

        Raises ScanError where the number of channels doesn't fit, values overflow float32, or
        slices would become too large.
        """
        stored = scan.voxels.dtype  # luminance is a float, its white still the file's
        doubts = colour_doubt(scan.voxels) if self.channels == 1 else ()
        scan, warnings = adapt_channels(scan, self.channels, self.channel_files)
        axis = scan_axis(scan.shape, scan.affine, self.slice_axis)
        slices = np.ascontiguousarray(to_slices(scan.voxels, scan.affine, axis))
        if slices.dtype.kind == "f" and max(slices.max(), -slices.min()) > _LARGEST:
            raise ScanError(scan.source, f"holds values beyond ±{_LARGEST:g}; is it an image?")
        if axis != self.slice_axis:
            warnings += (f"a single {axis} slice; the model was trained on {self.slice_axis} ones",)
        if self.context and len(slices) == 1:
            warnings += ("a single slice; the model was trained to look at its neighbours as well",)
        mm = slice_spacing(scan, axis) if scan.affine is not None else None
        if mm is None and self.spacing_mm:
            taken = f"(taken as the model's {self.spacing_mm:.3g} mm)"
            warnings += (f"spacing unknown {taken}: no areas or volumes",)
        target = self.target_size(slices.shape[2:], mm, scan.source)
        shift, scale, clip = self._statistics(slices, stored, scan.source)
        return Prepared(scan, slices, target, axis, self, shift, scale, clip, warnings, doubts)

    def target_size(
        self, size: tuple[int, ...], mm: tuple[float, ...] | None, source: Path
    ) -> tuple[int, int]:
        """(rows, columns) of a slice of `size` after the resize, before padding.

        mm: distance between slices, rows and columns; None (unknown) is taken for the model's.
        Raises ScanError, with `source`, where the slice would become larger than 8192 pixels.
        """
        factors = (self.size / max(size),) * 2 if self.size else (1.0, 1.0)
        if self.spacing_mm and mm:
            factors = (mm[1] / self.spacing_mm, mm[2] / self.spacing_mm)
        height, width = (max(1, round(n * f)) for n, f in zip(size, factors, strict=True))
        if self.spacing_mm and mm and max(height, width) > max(_LARGEST_SIDE, *size):
            raise ScanError(
                source,
                f"has pixels of {mm[1]:.3g} × {mm[2]:.3g} mm; brought to {self.spacing_mm:.3g} mm "
                f"its slices would be {height} × {width} pixels, and {_LARGEST_SIDE} is the limit",
            )
        return height, width

    def own_white(self, dtype: np.dtype, source: Path) -> float:
        """A type's white by `white`, of which shift and scale are shares. Raises ScanError."""
        if dtype.kind == "u":
            return np.iinfo(dtype).max / self.white if self.white else 1.0
        if self.white in (255, 65535):
            raise ScanError(
                source,
                f"holds values of type {dtype}, whose white is unknown; the model was trained on "
                f"images of 0…{self.white:g}",
            )
        return 1.0

    def _statistics(self, slices: np.ndarray, stored: np.dtype, source: Path):
        if self.normalisation in ("imagenet", "ct"):
            own = self.own_white(stored, source) if self.normalisation == "imagenet" else 1.0
            shift, scale = _per_channel(self.shift) * own, _per_channel(self.scale) * own
            low_high = np.array(self.clip, np.float32).T
            if not self.clip:
                return shift, scale, None
            return shift, scale, (_per_channel(low_high[0]), _per_channel(low_high[1]))
        groups = slices[:, None] if self.over == "slice" else slices[None]  # (G, k, C, H, W)
        values = np.full((len(groups), self.channels, 4), np.nan, np.float32)
        for g, c in np.ndindex(values.shape[:2]):
            of_group = telling_spread if self.typical else spread
            found = of_group(groups[g][:, c], self.normalisation, self.nonzero)
            values[g, c] = np.nan if found is None else found
        for c, typical in enumerate(self.typical):
            mute = np.isnan(values[:, c, 0])  # black slices must not look like average tissue
            others = values[~mute, c]
            values[mute, c] = np.median(others, axis=0) if len(others) else self._usual(*typical)
        shift, scale, low, high = (values[:, :, n, None, None] for n in range(4))
        return shift, scale, (low, high) if self.normalisation == "percentile" else None

    def _usual(self, mean: float, deviation: float) -> tuple[float, float, float, float]:
        """What `spread` gives for normally distributed values."""
        if self.normalisation == "zscore":
            return mean, deviation or 1.0, 0.0, 0.0
        half = 2.576 * deviation
        return mean, half or 1.0, mean - half, mean + half


def _per_channel(values) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(1, -1, 1, 1)


def colour_doubt(voxels: np.ndarray) -> tuple[str, ...]:
    """A reason to look at what a grey model makes of (3, I, J, K) red, green and blue: where they
    differ by more than a tenth of their range in more than 1 % of the pixels, these are colours,
    and not how a grey image was saved. () for other numbers of channels."""
    if len(voxels) != 3:
        return ()
    highest, lowest = voxels.max(axis=0).astype(np.float32), voxels.min(axis=0).astype(np.float32)
    span = float(np.iinfo(voxels.dtype).max) if voxels.dtype.kind == "u" else float(np.ptp(voxels))
    coloured = float(np.mean(highest - lowest > 0.1 * span))
    if coloured <= 0.01:
        return ()
    return (f"{coloured:.0%} of its pixels are coloured, and the model was trained on grey images",)


def adapt_channels(
    scan: Scan, channels: int, channel_files: int = 1
) -> tuple[Scan, tuple[str, ...]]:
    """Make grey from RGB by luminance (Rec. 601), RGB from grey by repeating; a warning each.

    Raises ScanError for any other mismatch, and where channels are files of their own: these are
    different measurements, not colours.
    """
    if scan.channels == channels:
        return scan, ()
    if channel_files > 1:
        raise ScanError(
            scan.source,
            f"has {scan.channels} channel(s); the model takes {channels}, each a file of its own "
            "(NAME_0000, NAME_0001, … in one folder; name the folder)",
        )
    if (scan.channels, channels) == (3, 1):
        grey = np.tensordot(
            np.array(LUMINANCE, np.float32), scan.voxels.astype(np.float32), axes=1
        )[None]
        return replace(scan, voxels=grey), ("colour image turned grey by luminance",)
    if (scan.channels, channels) == (1, 3):
        colour = replace(scan, voxels=np.repeat(scan.voxels, 3, axis=0))
        return colour, ("grey image; the model was trained on colour ones",)
    raise ScanError(
        scan.source, f"has {scan.channels} channel(s); the model was trained on {channels}"
    )
