"""Typed settings: YAML files and KEY=VALUE words become one checked `Settings` object.

Every key says what it means and what it accepts; an unknown key is refused with the nearest name.
`auto` stands for "decided from the data and the machine when training starts"; the run's
config.yaml holds what was decided.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from segapp.errors import ConfigError

BUILT_IN_CONFIG = "brain.yaml"

Auto = Literal["auto"]


def _comma_list(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _all_different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("every class needs a name of its own")
    return names


Share = Annotated[float, Field(ge=0, le=1)]
ClassNames = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_comma_list),
    AfterValidator(_all_different),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class DataSettings(_Section):
    root: Path | None = Field(default=None, description="Folder of the data set.")
    classes: ClassNames | None = Field(
        default=None,
        description="Class names in the order of their mask values; else from the data set.",
    )
    ignore: int | None = Field(
        default=None, description="Mask value that counts nowhere, e.g. 255."
    )
    slice_axis: Auto | Literal["axial", "coronal", "sagittal"] = Field(
        default="auto",
        description="Anatomical direction along which volumes are cut; auto: thickest.",
    )
    val_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="Share of the training patients set aside where there is no val split.",
    )
    workers: Auto | Annotated[int, Field(ge=0)] = Field(
        default="auto", description="Processes that prepare batches beside the training."
    )


class PreprocessSettings(_Section):
    spacing_mm: Annotated[
        Auto | Literal["none"] | Annotated[float, Field(gt=0)],
        BeforeValidator(lambda value: "none" if value is None else value),
    ] = Field(
        default="none",
        description="Side of a pixel in mm that slices are resampled to, or none, or auto (the "
        "training scans' median).",
    )
    size: Auto | Literal["native"] | Annotated[int, Field(ge=32)] = Field(
        default="auto",
        description="Longest side of a slice in pixels, native, or auto (native if small).",
    )
    normalisation: Auto | Literal["imagenet", "zscore", "percentile", "ct"] = Field(
        default="auto", description="How intensities are brought to the network's range."
    )


class AugmentSettings(_Section):
    """Shares (…_p) are the probability that a training patch gets the change."""

    flip_p: Auto | Share = Field(
        default="auto", description="Horizontal flip; auto: 0.5, or 0 where it would swap classes."
    )
    affine_p: Share = Field(default=0.7, description="Rotation, shear and scale in one resampling.")
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = Field(
        default=15, description="Up to ±degrees."
    )
    shear_deg: Annotated[float, Field(ge=0, le=45)] = Field(
        default=10, description="Up to ±degrees."
    )
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.2, description="Size changes by ±share."
    )
    colour_p: Share = Field(
        default=0.3, description="Brightness and contrast; saturation and hue for RGB."
    )
    brightness: Share = Field(default=0.15, description="Up to ±share of the slice's range.")
    contrast: Share = Field(default=0.15, description="Up to ±share.")
    saturation: Share = Field(default=0.15, description="Up to ±share (RGB only).")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.03, description="Up to ±turns (RGB only)."
    )
    blur_p: Share = Field(default=0.05, description="Gaussian blur.")
    noise_p: Share = Field(default=0.1, description="Gaussian noise.")
    salt_pepper_p: Share = Field(default=0.02, description="Salt-and-pepper noise.")
    erase_p: Share = Field(
        default=0.05, description="Rectangles erased from the image; the mask stays."
    )


class ModelSettings(_Section):
    architecture: Literal["unet", "unetplusplus"] = "unet"
    encoder: str = Field(
        default="resnet34", description="Any encoder of segmentation-models-pytorch."
    )
    encoder_weights: str = Field(
        default="auto",
        description="auto, imagenet, none, or a local .safetensors/.pth FILE of the encoder.",
    )
    residual: bool = Field(default=True, description="Residual blocks in the decoder.")


class LossSettings(_Section):
    name: Literal["dice_ce", "ce"] = "dice_ce"
    dice_weight: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Weight of the Dice term beside the cross-entropy's 1."
    )


class OptimSettings(_Section):
    max_lr: Annotated[float, Field(gt=0)] = Field(
        default=2e-3, description="Peak of the one-cycle rate."
    )
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    batch_size: Auto | Annotated[int, Field(ge=1)] = "auto"
    patch: Auto | Literal["full"] | Annotated[int, Field(ge=64, multiple_of=32)] = Field(
        default="auto",
        description="Side of the square training patches in pixels; full: whole slices.",
    )
    clip_norm: Annotated[float, Field(gt=0)] = Field(
        default=5.0, description="Gradients are clipped to it"
    )


class TrainSettings(_Section):
    out: Path | None = Field(default=None, description="Run folder; default runs/<config name>.")
    epochs: Annotated[int, Field(ge=1)] | None = None
    budget_minutes: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Wall-clock time from the command's start to the written model."
    )
    steps_per_epoch: Auto | Annotated[int, Field(ge=1)] = Field(
        default="auto",
        description="Optimiser steps between validations; auto: one pass, at least 40.",
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Stop after so many epochs without a better val mIoU."
    )
    precision: Auto | Literal["fp32", "bf16", "fp16"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0


class Settings(_Section):
    data: DataSettings = Field(default_factory=DataSettings)
    preprocess: PreprocessSettings = Field(default_factory=PreprocessSettings)
    augment: AugmentSettings = Field(default_factory=AugmentSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    optim: OptimSettings = Field(default_factory=OptimSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)

    def to_yaml(self) -> str:
        """The settings as a YAML document that `load_settings` reads back to the same object."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


DEFAULT_BUDGET_MINUTES = 15.0
_TEXT_KEYS = {"data.root", "train.out", "model.encoder", "model.encoder_weights"}


def load_settings(config: Path | None, overrides: list[str]) -> Settings:
    """Read CONFIG (a YAML file), apply `section.key=value` words, check everything.

    Neither CONFIG nor data.root: the built-in configs/brain.yaml. data.root alone: the defaults.
    Of train.epochs and train.budget_minutes the one given last (command line over file) counts;
    with neither, the budget is DEFAULT_BUDGET_MINUTES. Raises ConfigError, naming the key.
    """
    changes = [_parse_override(word) for word in overrides]
    if config is None and not any(key == "data.root" for key, _ in changes):
        config = built_in_config()
    tree = _read_yaml(config) if config else {}
    for key, value in changes:
        _set(tree, key, value)
    settings = _validate(tree, config, {key for key, _ in changes})
    lengths = {"train.epochs", "train.budget_minutes"}
    given = {key for key, value in changes if key in lengths and value is not None}
    if given == lengths:
        raise ConfigError("train.epochs and train.budget_minutes exclude each other; give one")
    if given == {"train.epochs"}:
        settings.train.budget_minutes = None
    elif given == {"train.budget_minutes"}:
        settings.train.epochs = None
    elif settings.train.epochs and settings.train.budget_minutes:
        raise ConfigError(f"{config}: train.epochs and train.budget_minutes exclude each other")
    if settings.train.epochs is None and settings.train.budget_minutes is None:
        settings.train.budget_minutes = DEFAULT_BUDGET_MINUTES
    if settings.data.root is not None:
        settings.data.root = settings.data.root.expanduser()
    else:
        raise ConfigError("data.root is missing: name the folder of the data set, data.root=DIR")
    if settings.preprocess.spacing_mm != "none" and isinstance(settings.preprocess.size, int):
        raise ConfigError("preprocess.spacing_mm and preprocess.size exclude each other; give one")
    if settings.train.out is None:
        name = config.stem if config else settings.data.root.resolve().name
        settings.train.out = Path("runs") / name
    return settings


def built_in_config() -> Path:
    """configs/brain.yaml of the working directory, of the installed package or of the checkout."""
    local = Path("configs") / BUILT_IN_CONFIG
    package = Path(__file__).parent
    places = (local, package / local, package.parent / local)
    return next((path for path in places if path.is_file()), local)


def _parse_override(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"{word!r} is neither a config file nor KEY=VALUE, e.g. train.epochs=20")
    if key in _TEXT_KEYS:  # a folder named 2024 or 1e3 is no number
        return key, text or None
    try:
        return key, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2024-13-45, a date that is none
        raise ConfigError(f"{key}: {text!r} is not a YAML value") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the config file can't be read ({error})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as 'data:', found none")
    return {key: {} if value is None else value for key, value in tree.items()}


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    section, dot, name = key.partition(".")
    if not dot:
        raise ConfigError(_unknown(key))
    content = tree.setdefault(section, {})
    if isinstance(content, dict):  # if not, the check says so
        content[name] = value


def _validate(tree: dict[str, Any], config: Path | None, typed: set[str]) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        # Union members add their own names to the location; the key is its first two parts.
        key = ".".join(str(part) for part in first["loc"][:2])
        if len(first["loc"]) == 1 and isinstance(first["input"], dict) and first["input"]:
            key += f".{next(iter(first['input']))}"
        where = f"{config}: " if config and key not in typed else ""
        if first["type"] == "extra_forbidden":
            raise ConfigError(where + _unknown(key)) from error
        wanted = "; ".join(
            dict.fromkeys(e["msg"] for e in error.errors() if e["loc"][:2] == first["loc"][:2])
        )
        raise ConfigError(f"{where}{key}: got {first['input']!r}: {wanted}") from error


def known_keys() -> list[str]:
    """Every `section.key` there is."""
    return [
        f"{section}.{key}"
        for section, field in Settings.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    ]


def _unknown(key: str) -> str:
    keys = known_keys()
    last = key.rpartition(".")[2]
    same_name = [k for k in keys if k.endswith("." + last)]
    near = same_name or difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "segapp train --print-config lists the keys"
    return f"unknown key {key!r}; {hint}"
