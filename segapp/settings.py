"""The settings there are: what each key means, what it accepts, what it is unless told.

docs/settings.md is made from this file (`python -m segapp.reference`). `auto` stands for "decided
from the data and the machine when training starts"; the run's config.yaml holds what was decided.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from segapp.parsing import all_different, at_home, comma_list, ends_at_one, number_or_names, numbers

Auto = Literal["auto"]
DEFAULT_BUDGET_MINUTES = 15.0
WARM_UP = {"onecycle": 0.3, "cosine": 0.05, "poly": 0.05}  # what optim.warm_up=auto means

Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
UserPath = Annotated[Path, BeforeValidator(at_home)]
ClassNames = Annotated[list[Name], BeforeValidator(comma_list), AfterValidator(all_different)]


def _set(default: Any, description: str) -> Any:
    return Field(default=default, description=description)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, about: ValidationInfo) -> Any:
        """YAML's yes, no, on and off are truth values, and true would count as 1."""
        wanted = cls.model_fields[str(about.field_name)].annotation
        if isinstance(value, bool) and "bool" not in str(wanted):
            raise ValueError("expected no true or false")
        return value


class DataSettings(_Section):
    """Which cases, and what of them."""

    root: UserPath | None = _set(None, "Folder of the data set.")
    classes: ClassNames | None = _set(
        None, "Class names in the order of their mask values; else from the data set."
    )
    ignore: int | None = _set(None, "Mask value that counts nowhere, e.g. 255.")
    limit: Annotated[
        Annotated[int, Field(ge=1, strict=True)]
        | Annotated[float, Field(gt=0, lt=1)]
        | Annotated[list[Name], Field(min_length=1)]
        | None,
        BeforeValidator(number_or_names),
    ] = _set(
        None,
        "A first try on less: a share (0.1) or a number (20) of the training cases, without test; "
        "or the names of the classes to learn (liver,tumour); all others become background.",
    )
    modality: Auto | Literal["unknown"] | Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] = _set(
        "auto",
        "What took the scans, in DICOM's words (CT, MR, …): predict marks scans whose header says "
        "otherwise. auto: as headers, dataset.json or values as low as air in CT tell.",
    )
    slice_axis: Auto | Literal["axial", "coronal", "sagittal"] = _set(
        "auto", "Anatomical direction along which volumes are cut; auto: thickest."
    )
    context_slices: Annotated[int, Field(ge=0, le=5)] = _set(
        0, "Slices on each side that the network sees beside the one it segments."
    )
    val_share: Annotated[float, Field(gt=0, lt=1)] = _set(
        0.2, "Share of the training patients set aside where there is no val split."
    )
    workers: Auto | Annotated[int, Field(ge=0)] = _set(
        "auto", "Processes that prepare batches beside the training."
    )


class PreprocessSettings(_Section):
    """How scans become what the network sees; stored in the model file."""

    spacing_mm: Annotated[
        Auto | Literal["none"] | Annotated[float, Field(gt=0)],
        BeforeValidator(lambda value: "none" if value is None else value),
    ] = _set(
        "none",
        "Side of a pixel in mm that slices are resampled to, none, or auto (the scans' median).",
    )
    size: Auto | Literal["native"] | Annotated[int, Field(ge=32)] = _set(
        "auto", "Longest side of a slice in pixels, native, or auto (native up to 640, else 512…)."
    )
    normalisation: Auto | Literal["imagenet", "zscore", "percentile", "ct"] = _set(
        "auto", "What intensities become: 0 ± 1 (zscore), -1…1 (percentile), 0 ± 1 in HU (ct)."
    )


class AugmentSettings(_Section):
    """Random changes of the training patches. …_p: the probability that a patch (mixup_p and
    cutmix_p: a batch) gets one; auto takes the policy's value, but for foreground_p."""

    policy: Literal[
        "none", "light", "moves", "standard", "strong", "randaugment", "autoaugment"
    ] = _set("moves", "What auto means below; or random operations, or fixed pairs of them.")
    operations: Annotated[int, Field(ge=1, le=8)] = _set(2, "Random ones of a patch (randaugment).")
    magnitude: Annotated[float, Field(ge=0, le=10)] = _set(5, "Their strength, 0…10 (randaugment).")
    flip_p: Auto | Share = _set(
        "auto", "Horizontal flip; auto also leaves it out where it would swap classes."
    )
    vertical_flip_p: Share = _set(0, "Vertical flip.")
    affine_p: Auto | Share = _set("auto", "Rotation, shear and scale in one resampling.")
    rotate_deg: Auto | Annotated[float, Field(ge=0, le=180)] = _set("auto", "Up to ±degrees.")
    shear_deg: Auto | Annotated[float, Field(ge=0, le=45)] = _set("auto", "Up to ±degrees.")
    scale: Auto | BelowOne = _set("auto", "Size changes by ±share.")
    elastic_p: Auto | Share = _set("auto", "Elastic deformation (Simard et al. 2003).")
    grid_p: Auto | Share = _set("auto", "Grid distortion.")
    colour_p: Auto | Share = _set("auto", "Brightness and contrast; saturation and hue for RGB.")
    brightness: Auto | Share = _set("auto", "Up to ±share of the slice's range.")
    contrast: Auto | Share = _set("auto", "Up to ±share.")
    saturation: Auto | Share = _set("auto", "Up to ±share (RGB only).")
    hue: Auto | Annotated[float, Field(ge=0, le=0.5)] = _set("auto", "Up to ±turns (RGB only).")
    gamma_p: Auto | Share = _set("auto", "Gamma curve of the patch's own range.")
    bias_field_p: Auto | Share = _set("auto", "A smooth multiplicative field, as of an MR coil.")
    low_resolution_p: Auto | Share = _set(
        "auto", "Shrunk and enlarged again, as of a coarser scan."
    )
    blur_p: Auto | Share = _set("auto", "Gaussian blur.")
    noise_p: Auto | Share = _set("auto", "Gaussian noise.")
    salt_pepper_p: Auto | Share = _set("auto", "Salt-and-pepper noise.")
    erase_p: Auto | Share = _set("auto", "Rectangles erased from the image; the mask stays.")
    foreground_p: Auto | Share = _set(
        "auto",
        "Patches about a class of the slice, each as likely, so that rare ones are seen; auto: a "
        "third where a patch shows less than a third of a slice, else none, whatever the policy.",
    )
    mixup_p: Share = _set(0, "Batches mixed with themselves (Mixup, Zhang et al. 2018).")
    mixup_alpha: Annotated[float, Field(gt=0)] = _set(
        0.2, "Mixup's share is drawn from Beta(alpha, alpha)."
    )
    cutmix_p: Share = _set(
        0, "Batches with rectangles of one another, masks too (CutMix, Yun et al. 2019)."
    )
    cutmix_alpha: Annotated[float, Field(gt=0)] = _set(
        1.0, "CutMix's area is drawn from Beta(alpha, alpha)."
    )


class ModelSettings(_Section):
    """The network, and what its weights start from."""

    architecture: Literal[
        "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3",
        "deeplabv3plus", "upernet", "segformer",
    ] = _set("unet", "Of segmentation-models-pytorch.")  # fmt: skip
    encoder: str = _set("resnet34", "Any encoder of segmentation-models-pytorch.")
    encoder_weights: Annotated[str, BeforeValidator(at_home)] = _set(
        "auto", "auto, imagenet, none, or a local .safetensors/.pth FILE of the encoder."
    )
    encoder_depth: Auto | Annotated[int, Field(ge=3, le=5)] = _set(
        "auto",
        "Stages of the encoder, below 5 of a ResNet; auto: for unet what leaves a patch 12 pixels.",
    )
    init_from: UserPath | None = _set(
        None, "A whole segapp model to go on from, pruned or not; classes may differ."
    )
    residual: Auto | bool = _set(
        "auto", "Residual blocks in the decoder; auto: where it is a U-Net's or U-Net++'s."
    )
    full_resolution: Auto | bool = _set(
        "auto", "A skip connection from the image itself; auto: where the decoder is a U-Net's."
    )
    separable: bool = _set(False, "Depthwise-separable convolutions in the decoder: fewer weights.")
    dropout: BelowOne = _set(0, "Share of the decoder's last channels left out at random.")
    stochastic_depth: BelowOne = _set(
        0,
        "Share of samples that skip the last residual block; rising from 0 with depth, "
        "through encoder and decoder (Huang et al. 2016).",
    )
    tta: bool = _set(False, "Predictions averaged over the training's flips; 2 or 4 times slower.")


class LossSettings(_Section):
    """What is minimised; always computed in float32."""

    name: Literal["dice_ce", "ce", "focal_ce", "tversky_ce"] = _set(
        "dice_ce", "Cross-entropy, alone or beside a second term."
    )
    weight: Annotated[float, Field(gt=0)] = _set(
        1.0, "Weight of the second term beside the cross-entropy's 1."
    )
    label_smoothing: BelowOne = _set(
        0, "Share of the target spread over all classes (cross-entropy only)."
    )
    class_weights: Annotated[
        Literal["none", "auto"] | list[Annotated[float, Field(gt=0)]],
        BeforeValidator(numbers),
    ] = _set(
        "none",
        "Weights in the cross-entropy: none, auto (1 / ln(1.02 + share of pixels), "
        "Paszke et al. 2016) or a number for each class.",
    )
    focal_gamma: Annotated[float, Field(gt=0, le=10)] = _set(
        2.0, "How much easy pixels are left out (focal_ce)."
    )
    tversky_beta: Annotated[float, Field(gt=0, lt=1)] = _set(
        0.7, "Weight of missed pixels; false ones have the rest to 1 (tversky_ce)."
    )


class OptimSettings(_Section):
    """The optimiser (AdamW) and its learning rate over the run."""

    max_lr: Annotated[float, Field(gt=0)] = _set(
        2e-3, "Peak of the learning rate; segapp train --find-lr suggests one."
    )
    schedule: Literal["onecycle", "cosine", "poly"] = _set(
        "onecycle", "The way of the learning rate; each rises first."
    )
    warm_up: Auto | BelowOne = _set(
        "auto", "Share of the run in which the rate rises; auto: 0.3 for onecycle, else 0.05."
    )
    weight_decay: Annotated[float, Field(ge=0)] = _set(1e-2, "Not of norms and biases.")
    batch_size: Auto | Annotated[int, Field(ge=1)] = _set("auto", "Patches seen at once.")
    accumulate: Annotated[int, Field(ge=1, le=1024)] = _set(
        1, "Batches whose gradients are averaged into one step."
    )
    patch: Auto | Literal["full"] | Annotated[int, Field(ge=64, multiple_of=32)] = _set(
        "auto", "Side of the square training patches in pixels; full: whole slices."
    )
    clip_norm: Annotated[float, Field(gt=0)] = _set(5.0, "Gradients are clipped to it.")
    encoder_lr: Annotated[float, Field(gt=0, le=1)] = _set(
        1.0,
        "Share of the rate that the encoder's first layers get, rising with depth to 1 "
        "at the decoder; for pretrained encoders.",
    )
    freeze_encoder: BelowOne = _set(0, "Share of the run in which a pretrained encoder is frozen.")
    ema: BelowOne = _set(
        0, "Decay of the weights' running average that becomes the model; 0: none."
    )


class TrainSettings(_Section):
    """The run."""

    out: UserPath | None = _set(None, "Run folder; default runs/<name of the config or the data>.")
    epochs: Annotated[int, Field(ge=1)] | None = _set(
        None, "Length of the run, instead of a budget; of train.steps_per_epoch steps each."
    )
    budget_minutes: Annotated[float, Field(gt=0)] | None = _set(
        None,
        "Wall-clock time from the command's start to the written model; "
        f"{DEFAULT_BUDGET_MINUTES:g} where neither it nor epochs is given.",
    )
    steps_per_epoch: Auto | Annotated[int, Field(ge=1)] = _set(
        "auto", "Optimiser steps of an epoch; auto: those of one pass, but 40…250."
    )
    patience: Annotated[int, Field(ge=1)] | None = _set(
        None, "Stop after so many epochs without a better val mIoU of the classes that val holds."
    )
    progressive: Annotated[
        Annotated[list[Annotated[float, Field(ge=0.25, le=1)]], Field(min_length=2)] | None,
        BeforeValidator(numbers),
        AfterValidator(lambda scales: scales and ends_at_one(scales)),
    ] = _set(None, "Scales of the slices in equal stages of the run, e.g. 0.5,0.75,1.")
    folds: Annotated[int, Field(ge=2, le=20)] | None = _set(
        None, "Cross-validation: so many models by patient, in one budget, and their ensemble."
    )
    fold: Annotated[int, Field(ge=1)] | None = _set(
        None, "Only this one of the folds (from 1), in the whole budget, without the ensemble."
    )
    precision: Auto | Literal["fp32", "bf16", "fp16"] = _set(
        "auto", "auto: bf16 where the hardware computes in it, fp16 on older GPUs, else fp32."
    )
    save_minutes: Annotated[float, Field(ge=0)] = _set(
        1.0,
        "Time between two saved states, which a killed run loses at most; 0: each step's.",
    )
    export: Literal["none", "openvino"] = _set(
        "none", "openvino: RUN/openvino is written at the end, which answers sooner on a CPU."
    )
    seed: Annotated[int, Field(ge=0)] = _set(0, "Of everything that is drawn at random.")
    deterministic: bool = _set(
        False, "The same model file, bit for bit, each time on one machine; slower on a GPU."
    )


class Settings(_Section):
    data: DataSettings = Field(default_factory=DataSettings)
    preprocess: PreprocessSettings = Field(default_factory=PreprocessSettings)
    augment: AugmentSettings = Field(default_factory=AugmentSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    optim: OptimSettings = Field(default_factory=OptimSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)

    @property
    def run_folder(self) -> Path:
        """train.out."""
        assert self.train.out is not None, "load_settings makes sure of it"
        return self.train.out

    def to_yaml(self) -> str:
        """The settings as a YAML document that `load_settings` reads back to the same object."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
