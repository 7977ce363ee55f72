"""Joint augmentation of image and mask. The only module that knows albumentations."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for news otherwise

import albumentations as A
from albumentations.augmentations.geometric.distortion import BaseDistortion

from segapp.cases import IGNORE_INDEX
from segapp.operations import change_intensities, draw_operations, move
from segapp.resample import resize
from segapp.settings import AugmentSettings

cv2.setNumThreads(0)  # batches are prepared beside the training, which needs the cores

_GAMMA_PERCENT = (70, 150)  # the exponent
_BIAS = (0.1, 0.5)  # largest logarithm of the field
_COARSER = (0.5, 0.9)  # share of the sides
_ELASTIC_SMOOTHNESS = 0.08  # standard deviation of the smoothing, of the shorter side
_ELASTIC_SHIFT = (0.08, 0.22)  # root mean square of the shifts along an axis, of that deviation

# The border repeats the image in a mirror, in the mask too, so that no label is invented or lost.
_WARP: dict[str, Any] = {
    "interpolation": cv2.INTER_LINEAR,
    "mask_interpolation": cv2.INTER_NEAREST,
    "border_mode": cv2.BORDER_REFLECT_101,
}


class Augmentation:
    """Cuts a patch from a slice and changes it: geometry of both, colours of the image alone.

    Every random number comes from `seed` alone, so workers, order and resumes change nothing.
    All channels get the same change, but noise of their own.
    """

    def __init__(
        self,
        settings: AugmentSettings,
        channels: int,
        patch: tuple[int, int],
        rgb: bool | None = None,
    ):
        """settings: without any `auto` (see policies.resolved). channels: of a slice, with its
        neighbours'. patch: (h, w). rgb: whether every three channels are a colour; None: where
        there are three."""
        rgb = channels == 3 if rgb is None else rgb
        assert not rgb or channels % 3 == 0, f"{channels} channels are no colours"
        self.settings, self.patch = settings, patch
        self._foreground_p = float(settings.foreground_p)
        knobs = {name: float(value) for name, value in settings if name != "policy"}
        self.geometry = A.Compose(_geometry(knobs))
        self.colours = A.Compose(_colours(knobs, rgb))

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """One training sample.

        image: (C, H, W) float32, normalised. mask: (H, W) uint8 class indices. Returns the patch,
        (C, h, w) float32 and (h, w) uint8. A slice smaller than the patch is padded, with the
        ignore index in the mask.
        """
        rng = np.random.default_rng(seed)
        python_rng = random.Random(int(rng.integers(2**63)))
        # One stream for all transforms: albumentations' own set_random_seed gives each transform
        # the same numbers, so that rare changes would always come together.
        self.geometry.set_random_state(rng, python_rng)
        self.colours.set_random_state(rng, python_rng)
        operations = draw_operations(self.settings, rng)
        image, mask = _pad_to(image, mask, self.patch)
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
        pixels, mask = move(pixels, mask, operations)
        changed = self.geometry(image=pixels, mask=mask)
        corner = _corner(changed["mask"], self.patch, self._foreground_p, rng)
        window = tuple(slice(a, a + n) for a, n in zip(corner, self.patch, strict=True))
        pixels, mask = changed["image"][window], changed["mask"][window]
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        # Colour transforms work on 0…1, so the patch's own range is mapped there and back.
        low = planes.min(axis=(1, 2), keepdims=True)
        span = planes.max(axis=(1, 2), keepdims=True) - low
        span[span == 0] = 1
        unit = np.clip((planes - low) / span, 0, 1)
        for name, strength in operations:
            unit = change_intensities(unit, name, strength, rng)
        pixels = self.colours(image=np.ascontiguousarray(unit.transpose(1, 2, 0)))["image"]
        unit = pixels.reshape(*self.patch, -1).transpose(2, 0, 1)
        return np.ascontiguousarray(unit * span + low, np.float32), mask.copy()


def _geometry(s: dict[str, float]) -> list[A.BasicTransform | A.BaseCompose]:
    steps: list[A.BasicTransform | A.BaseCompose] = [A.HorizontalFlip(p=s["flip_p"])]
    if s["vertical_flip_p"]:
        steps.append(A.VerticalFlip(p=s["vertical_flip_p"]))
    shear = (-s["shear_deg"], s["shear_deg"])
    steps.append(
        A.Affine(
            scale=(1 - s["scale"], 1 + s["scale"]),
            rotate=(-s["rotate_deg"], s["rotate_deg"]),
            shear={"x": shear, "y": shear},
            keep_ratio=True,
            p=s["affine_p"],
            **_WARP,
        )
    )
    if s["elastic_p"]:
        steps.append(_Elastic(keypoint_remapping_method="mask", p=s["elastic_p"], **_WARP))
    if s["grid_p"]:
        steps.append(A.GridDistortion(num_steps=5, distort_limit=0.3, p=s["grid_p"], **_WARP))
    return steps


def _colours(s: dict[str, float], rgb: bool) -> list[A.BasicTransform | A.BaseCompose]:
    if rgb:
        colour = _ColourJitter(
            brightness=(1 - s["brightness"], 1 + s["brightness"]),
            contrast=(1 - s["contrast"], 1 + s["contrast"]),
            saturation=(1 - s["saturation"], 1 + s["saturation"]),
            hue=(-s["hue"], s["hue"]),
            p=s["colour_p"],
        )
    else:  # saturation and hue mean nothing without colour
        colour = A.RandomBrightnessContrast(s["brightness"], s["contrast"], p=s["colour_p"])
    steps: list[A.BasicTransform | A.BaseCompose] = [colour]
    if s["gamma_p"]:
        steps.append(A.RandomGamma(_GAMMA_PERCENT, p=s["gamma_p"]))
    if s["bias_field_p"]:
        steps.append(_BiasField(p=s["bias_field_p"]))
    if s["low_resolution_p"]:
        steps.append(_LowResolution(p=s["low_resolution_p"]))
    return [
        *steps,
        A.GaussianBlur(blur_limit=0, sigma_limit=(0.5, 1.0), p=s["blur_p"]),
        A.GaussNoise(std_range=(0.01, 0.05), p=s["noise_p"]),
        A.SaltAndPepper(amount=(0.002, 0.01), p=s["salt_pepper_p"]),
        A.CoarseDropout(
            num_holes_range=(1, 3),
            hole_height_range=(0.05, 0.15),
            hole_width_range=(0.05, 0.15),
            fill=0,
            p=s["erase_p"],
        ),
    ]


class _ColourJitter(A.ColorJitter):
    """For slices with neighbours: the colours of all of them, changed as one picture."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return super().apply(img.reshape(len(img), -1, 3), **params).reshape(img.shape)


class _Elastic(BaseDistortion):
    """Every pixel is shifted by smoothed noise (Simard et al. 2003), too little to fold the image.

    albumentations smooths both axes' noise as one image, at many times the cost: here it is drawn
    and smoothed on a coarse grid, which loses nothing, as the field has no detail.
    """

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        sigma = _ELASTIC_SMOOTHNESS * min(height, width)
        coarse = [math.ceil(2 * n / sigma) for n in (height, width)]  # two pixels a deviation
        shift = sigma * self.py_random.uniform(*_ELASTIC_SHIFT)
        maps = []
        for at in np.meshgrid(np.arange(width), np.arange(height)):
            noise = cv2.GaussianBlur(self.random_generator.standard_normal(coarse), (0, 0), 2.0)
            noise *= shift / noise.std()
            shifts = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
            maps.append((at + shifts).astype(np.float32))
        return {"map_x": maps[0], "map_y": maps[1]}


class _BiasField(A.ImageOnlyTransform):
    """Multiplied by a smooth field about 1, as the uneven sensitivity of an MR coil; the brightest
    pixel stays as bright as it was."""

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        height, width = params["shape"][:2]
        coarse = self.random_generator.uniform(-1, 1, (4, 4)) * self.py_random.uniform(*_BIAS)
        field = np.exp(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        return {"field": field.astype(np.float32)[..., None]}

    def apply(self, img: np.ndarray, field: np.ndarray, **params: Any) -> np.ndarray:
        lit = img.reshape(*img.shape[:2], -1) * field
        peak = lit.max()
        return lit if peak == 0 else lit * (img.max() / peak)


class _LowResolution(A.ImageOnlyTransform):
    """Shrunk by averaging and enlarged again; unlike A.Downscale without moving the far edge, and
    for any number of channels."""

    def get_params(self) -> dict[str, Any]:
        return {"share": self.py_random.uniform(*_COARSER)}

    def apply(self, img: np.ndarray, share: float, **params: Any) -> np.ndarray:
        planes = img.reshape(*img.shape[:2], -1).transpose(2, 0, 1)[None]
        small = resize(planes, tuple(max(1, round(share * n)) for n in img.shape[:2]))
        return np.ascontiguousarray(resize(small, img.shape[:2])[0].transpose(1, 2, 0))


def _pad_to(
    image: np.ndarray, mask: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    grow = [max(0, want - have) for want, have in zip(size, mask.shape, strict=True)]
    if not any(grow):
        return image, mask
    around = [(g // 2, g - g // 2) for g in grow]
    return (
        np.pad(image, [(0, 0), *around], mode="edge"),
        np.pad(mask, around, constant_values=IGNORE_INDEX),
    )


def _corner(
    mask: np.ndarray, size: tuple[int, int], foreground_p: float, rng: np.random.Generator
) -> list[int]:
    """Top and left of a random window of `size` in a mask (H, W); with probability foreground_p
    about a pixel of a random class, up to a quarter of the window from the middle."""
    room = [have - want for have, want in zip(mask.shape, size, strict=True)]
    if foreground_p and rng.random() < foreground_p:
        counts = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
        present = np.flatnonzero(counts[1:IGNORE_INDEX]) + 1
        if len(present):
            pixels = np.flatnonzero(mask == rng.choice(present))
            at = np.unravel_index(rng.choice(pixels), mask.shape)
            corner = [
                int(a) - n // 2 + int(rng.integers(-(n // 4), n // 4 + 1))
                for a, n in zip(at, size, strict=True)
            ]
            return [min(max(0, c), r) for c, r in zip(corner, room, strict=True)]
    return [int(rng.integers(n + 1)) for n in room]
