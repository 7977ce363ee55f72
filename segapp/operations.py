"""The random operations of RandAugment and AutoAugment: drawn, and done to image and mask."""

from __future__ import annotations

import math

import cv2
import numpy as np

from segapp.policies import STRONGEST, SUB_POLICIES
from segapp.settings import AugmentSettings


def draw_operations(s: AugmentSettings, rng: np.random.Generator) -> list[tuple[str, float]]:
    """The random operations of a sample, with their signed strengths (see policies.STRONGEST).

    randaugment: `operations` of all, with replacement, at `magnitude` (Cubuk et al. 2020).
    autoaugment: one of SUB_POLICIES (Cubuk et al. 2019). Other policies: none, and nothing drawn.
    """
    if s.policy == "randaugment":
        drawn = [(str(name), s.magnitude) for name in rng.choice([*STRONGEST], s.operations)]
    elif s.policy == "autoaugment":
        pairs = SUB_POLICIES[rng.integers(len(SUB_POLICIES))]
        drawn = [(name, magnitude) for name, p, magnitude in pairs if rng.random() < p]
    else:
        return []
    signs = rng.choice([-1.0, 1.0], len(drawn)).tolist()
    return [
        (name, sign * magnitude / 10 * STRONGEST[name])
        for sign, (name, magnitude) in zip(signs, drawn, strict=True)
    ]


def move(
    image: np.ndarray, mask: np.ndarray, operations: list[tuple[str, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, C) and (H, W), moved about the centre by the geometric operations together: one
    resampling, which blurs less than one for each."""
    height, width = mask.shape
    matrix = np.eye(3)
    for name, strength in operations:
        matrix = motion(name, strength, (height, width)) @ matrix
    if np.array_equal(matrix, np.eye(3)):
        return image, mask
    centre = np.eye(3)
    centre[:2, 2] = (width - 1) / 2, (height - 1) / 2
    matrix = (centre @ matrix @ np.linalg.inv(centre))[:2]
    moved = [
        cv2.warpAffine(array, matrix, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101)
        for array, how in ((image, cv2.INTER_LINEAR), (mask, cv2.INTER_NEAREST))
    ]
    return moved[0].reshape(image.shape), moved[1]


def motion(name: str, strength: float, size: tuple[int, int]) -> np.ndarray:
    """3×3 matrix by which an operation moves points (x, y, 1) from the centre of (H, W) pixels; the
    identity for an operation that moves nothing."""
    matrix = np.eye(3)
    if name == "rotate":
        cos, sin = math.cos(math.radians(strength)), math.sin(math.radians(strength))
        matrix[:2, :2] = (cos, -sin), (sin, cos)
    elif name == "scale":
        matrix[:2, :2] *= math.exp(strength)
    elif name == "shear_x":
        matrix[0, 1] = strength
    elif name == "shear_y":
        matrix[1, 0] = strength
    elif name == "translate_x":
        matrix[0, 2] = strength * size[1]
    elif name == "translate_y":
        matrix[1, 2] = strength * size[0]
    return matrix


def change_intensities(
    unit: np.ndarray, name: str, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """(C, h, w) float32 in 0…1 after an operation; itself for one of the geometry."""
    if strength == 0:
        return unit
    if name == "brightness":
        unit = unit + strength
    elif name == "contrast":
        mean = unit.mean(axis=(1, 2), keepdims=True)
        unit = (unit - mean) * (1 + strength) + mean
    elif name == "gamma":
        unit = unit ** math.exp(strength)
    elif name == "sharpness":
        smooth = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.0) for plane in unit])
        unit = unit + strength * (unit - smooth)
    elif name == "noise":
        unit = unit + abs(strength) * rng.standard_normal(unit.shape, np.float32)
    elif name == "posterise":
        unit = np.round(unit / abs(strength)) * abs(strength)
    return np.clip(unit, 0, 1)
