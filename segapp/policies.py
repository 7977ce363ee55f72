"""The augmentation policies as numbers: what `auto` stands for in the augment section, and the
random operations of RandAugment and AutoAugment."""

from __future__ import annotations

from segapp.settings import AugmentSettings

_NONE = {
    **{"flip_p": 0.0, "affine_p": 0.0, "rotate_deg": 15.0, "shear_deg": 10.0, "scale": 0.2},
    **{"elastic_p": 0.0, "grid_p": 0.0, "colour_p": 0.0, "brightness": 0.15, "contrast": 0.15},
    **{"saturation": 0.15, "hue": 0.03, "gamma_p": 0.0, "bias_field_p": 0.0},
    **{"low_resolution_p": 0.0, "blur_p": 0.0, "noise_p": 0.0, "salt_pepper_p": 0.0},
    **{"erase_p": 0.0, "foreground_p": 0.0},  # the latter for large slices, see patches.py
}
_LIGHT = _NONE | {"flip_p": 0.5, "affine_p": 0.5, "rotate_deg": 10.0, "shear_deg": 5.0}
_LIGHT |= {"scale": 0.1}
_MOVES = _LIGHT | {"rotate_deg": 15.0, "scale": 0.2, "elastic_p": 0.3}
_STANDARD = _NONE | {"flip_p": 0.5, "affine_p": 0.7, "colour_p": 0.3, "blur_p": 0.05}
_STANDARD |= {"noise_p": 0.1, "salt_pepper_p": 0.02, "erase_p": 0.05}
_STRONG = _STANDARD | {"affine_p": 0.8, "rotate_deg": 30.0, "scale": 0.3, "elastic_p": 0.2}
_STRONG |= {"grid_p": 0.1, "colour_p": 0.5, "brightness": 0.3, "contrast": 0.3}
_STRONG |= {"saturation": 0.3, "hue": 0.05, "gamma_p": 0.3, "bias_field_p": 0.2}
_STRONG |= {"low_resolution_p": 0.2, "blur_p": 0.1, "noise_p": 0.2}
# Random operations stand for everything but the flip.
_OPERATIONS = _NONE | {"flip_p": 0.5}

POLICIES = {
    "none": _NONE,
    "light": _LIGHT,
    "moves": _MOVES,
    "standard": _STANDARD,
    "strong": _STRONG,
    "randaugment": _OPERATIONS,
    "autoaugment": _OPERATIONS,
}


# The random operations, and how far each goes at magnitude 10; the sign is random. Geometry moves
# image and mask, the rest changes the image alone, in shares of the patch's own range.
STRONGEST = {
    "identity": 0.0,
    "rotate": 30.0,  # degrees
    "shear_x": 0.3,  # shift of a row per row
    "shear_y": 0.3,
    "translate_x": 0.3,  # of the width
    "translate_y": 0.3,
    "scale": 0.4,  # of the logarithm: 0.67…1.49 times
    "brightness": 0.3,  # added
    "contrast": 0.5,  # times 0.5…1.5 about the mean
    "gamma": 0.7,  # of the exponent's logarithm: 0.5…2
    "sharpness": 1.0,  # of the difference to a blurred copy, added or taken away
    "noise": 0.1,  # standard deviation
    "posterise": 0.125,  # height of the steps that values are rounded to
}

# Each patch gets one line: (operation, probability, magnitude 0…10), in this order. Unlike those of
# Cubuk et al. 2019 nothing was searched: every operation occurs, geometry beside intensities.
SUB_POLICIES = (
    (("rotate", 0.7, 5), ("gamma", 0.5, 5)),
    (("scale", 0.7, 5), ("contrast", 0.5, 5)),
    (("shear_x", 0.6, 5), ("brightness", 0.5, 5)),
    (("shear_y", 0.6, 5), ("noise", 0.5, 4)),
    (("translate_x", 0.6, 5), ("sharpness", 0.5, 7)),
    (("translate_y", 0.6, 5), ("gamma", 0.5, 7)),
    (("rotate", 0.5, 8), ("scale", 0.5, 7)),
    (("contrast", 0.6, 7), ("noise", 0.4, 6)),
    (("sharpness", 0.6, 9), ("posterise", 0.4, 4)),
    (("gamma", 0.6, 4), ("identity", 1.0, 0)),
)


def resolved(settings: AugmentSettings) -> AugmentSettings:
    """A copy with the policy's numbers for every `auto`; what was given stays."""
    given, numbers = settings.model_dump(), POLICIES[settings.policy]
    return AugmentSettings.model_validate(
        {name: numbers[name] if value == "auto" else value for name, value in given.items()}
    )
