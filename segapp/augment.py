"""Joint augmentation of image and mask. The only module that knows albumentations."""

from __future__ import annotations

import os
import random

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for news otherwise

import albumentations as A

from segapp.cases import IGNORE_INDEX
from segapp.config import AugmentSettings

cv2.setNumThreads(0)  # batches are prepared beside the training, which needs the cores


class Augmentation:
    """Cuts a patch from a slice and changes it: geometry of both, colours of the image alone.

    Every random number comes from `seed` alone, so workers, order and resumes change nothing.
    """

    def __init__(self, settings: AugmentSettings, channels: int, patch: tuple[int, int]):
        self.patch = patch
        self.geometry = A.Compose(_geometry(settings))
        self.colours = A.Compose(_colours(settings, channels))

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
        image, mask = _pad_to(image, mask, self.patch)
        changed = self.geometry(image=np.ascontiguousarray(image.transpose(1, 2, 0)), mask=mask)
        pixels, mask = _crop(changed["image"], changed["mask"], self.patch, rng)
        # Colour transforms work on 0…1, so the patch's own range is mapped there and back.
        low = pixels.min(axis=(0, 1), keepdims=True)
        span = pixels.max(axis=(0, 1), keepdims=True) - low
        span[span == 0] = 1
        unit = self.colours(image=np.clip((pixels - low) / span, 0, 1))["image"]
        pixels = unit.reshape(pixels.shape) * span + low
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32), mask.copy()


def _geometry(s: AugmentSettings) -> list[A.BasicTransform | A.BaseCompose]:
    # OpenCV's warp takes any number of channels; the border repeats the image in a mirror, in the
    # mask too, so that no label is invented or lost.
    assert s.flip_p != "auto", "make_plan decides it"
    return [
        A.HorizontalFlip(p=s.flip_p),
        A.Affine(
            scale=(1 - s.scale, 1 + s.scale),
            rotate=(-s.rotate_deg, s.rotate_deg),
            shear={"x": (-s.shear_deg, s.shear_deg), "y": (-s.shear_deg, s.shear_deg)},
            keep_ratio=True,
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST,
            border_mode=cv2.BORDER_REFLECT_101,
            p=s.affine_p,
        ),
    ]


def _colours(s: AugmentSettings, channels: int) -> list[A.BasicTransform | A.BaseCompose]:
    if channels == 3:
        colour = A.ColorJitter(
            brightness=(1 - s.brightness, 1 + s.brightness),
            contrast=(1 - s.contrast, 1 + s.contrast),
            saturation=(1 - s.saturation, 1 + s.saturation),
            hue=(-s.hue, s.hue),
            p=s.colour_p,
        )
    else:  # saturation and hue mean nothing without colour
        colour = A.RandomBrightnessContrast(s.brightness, s.contrast, p=s.colour_p)
    return [
        colour,
        A.GaussianBlur(blur_limit=0, sigma_limit=(0.5, 1.0), p=s.blur_p),
        A.GaussNoise(std_range=(0.01, 0.05), p=s.noise_p),
        A.SaltAndPepper(amount=(0.002, 0.01), p=s.salt_pepper_p),
        A.CoarseDropout(
            num_holes_range=(1, 3),
            hole_height_range=(0.05, 0.15),
            hole_width_range=(0.05, 0.15),
            fill=0,
            p=s.erase_p,
        ),
    ]


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


def _crop(
    image: np.ndarray, mask: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random window of `size` from (H, W, C) and (H, W)."""
    room = [have - want for have, want in zip(mask.shape, size, strict=True)]
    top, left = (int(rng.integers(n + 1)) for n in room)
    window = (slice(top, top + size[0]), slice(left, left + size[1]))
    return image[window], mask[window]
