"""Settings that make no sense together: each is refused by name, and nothing else is."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from segapp.config import known_keys
from segapp.contradictions import ONLY_WITH, STRENGTH_OF, refuse_contradictions
from segapp.errors import ConfigError
from segapp.policies import POLICIES, resolved
from segapp.settings import AugmentSettings, ModelSettings, Settings


def settings(values: dict[str, Any]) -> Settings:
    """settings({"model.tta": True})"""
    tree: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return Settings.model_validate(tree)


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        refuse_contradictions(settings(values))
    assert "\n" not in str(error.value)
    return str(error.value)


CONTRADICTIONS: list[tuple[dict[str, Any], tuple[str, str]]] = [
    *(
        ({f"augment.{name}": 0.5, "optim.batch_size": 1}, (f"augment.{name}", "optim.batch_size=1"))
        for name in ("mixup_p", "cutmix_p")
    ),
    (
        {"augment.foreground_p": 0.5, "optim.patch": "full"},
        ("augment.foreground_p", "optim.patch=full"),
    ),
    (
        {"train.deterministic": True, "train.budget_minutes": 3.0},
        ("train.deterministic", "train.budget_minutes"),
    ),
    ({"data.val_share": 0.3, "train.folds": 5}, ("data.val_share", "train.folds")),
    (
        {"train.patience": 3, "train.progressive": [0.5, 1]},
        ("train.patience", "train.progressive"),
    ),
    *(
        (
            {"model.separable": True, "model.architecture": name},
            ("model.separable", f"model.architecture={name}"),
        )
        for name in ("linknet", "pspnet", "segformer")
    ),
    ({"loss.weight": 0.5, "loss.name": "ce"}, ("loss.weight", "loss.name=ce")),
    ({"loss.focal_gamma": 1}, ("loss.focal_gamma", "loss.name=dice_ce")),
    ({"loss.tversky_beta": 0.5}, ("loss.tversky_beta", "loss.name=dice_ce")),
    ({"augment.operations": 3}, ("augment.operations", "augment.policy=moves")),
    (
        {"augment.magnitude": 3, "augment.policy": "autoaugment"},
        ("augment.magnitude", "augment.policy=autoaugment"),
    ),
    ({"augment.mixup_alpha": 1}, ("augment.mixup_alpha", "augment.mixup_p=0")),
    ({"augment.cutmix_alpha": 2}, ("augment.cutmix_alpha", "augment.cutmix_p=0")),
    (
        {"augment.rotate_deg": 45, "augment.affine_p": 0},
        ("augment.rotate_deg", "augment.affine_p=0"),
    ),
    (
        {"augment.scale": 0.5, "augment.policy": "none"},
        ("augment.scale", "augment.policy=none"),
    ),
    (
        {"augment.contrast": 0.5, "augment.policy": "randaugment"},
        ("augment.contrast", "augment.policy=randaugment"),
    ),
    (
        {"preprocess.spacing_mm": "auto", "preprocess.size": 256},
        ("preprocess.spacing_mm", "preprocess.size"),
    ),
    ({"augment.mixup_p": 0.6, "augment.cutmix_p": 0.5}, ("augment.mixup_p", "augment.cutmix_p")),
    (
        {"model.residual": True, "model.architecture": "fpn"},
        ("model.residual", "model.architecture=fpn"),
    ),
    (
        {"model.full_resolution": True, "model.architecture": "unetplusplus"},
        ("model.full_resolution", "model.architecture=unetplusplus"),
    ),
    (
        {"model.encoder_depth": 4, "model.architecture": "manet"},
        ("model.encoder_depth=4", "manet"),
    ),
    (
        {"model.separable": True, "model.architecture": "deeplabv3plus"},
        ("model.separable", "model.architecture=deeplabv3plus"),
    ),
    *(
        (
            {"optim.batch_size": 1, "model.architecture": name},
            ("optim.batch_size=1", f"model.architecture={name}"),
        )
        for name in ("upernet", "pan", "deeplabv3", "deeplabv3plus")
    ),
    (
        {"model.init_from": "m", "model.encoder_weights": "imagenet"},
        ("model.init_from", "model.encoder_weights"),
    ),
    (
        {"optim.freeze_encoder": 0.2, "model.encoder_weights": "none"},
        ("optim.freeze_encoder", "model.encoder_weights=none"),
    ),
    (
        {"optim.encoder_lr": 0.2, "model.encoder_weights": "none"},
        ("optim.encoder_lr", "model.encoder_weights=none"),
    ),
    ({"model.tta": True, "augment.flip_p": 0}, ("model.tta", "augment.flip_p")),
    ({"model.tta": True, "augment.policy": "none"}, ("model.tta", "augment.flip_p")),
    ({"train.fold": 2}, ("train.fold", "train.folds")),
    ({"train.fold": 4, "train.folds": 3}, ("train.fold=4", "train.folds=3")),
    ({"optim.warm_up": 0}, ("optim.warm_up=0", "optim.schedule=onecycle")),
]


@pytest.mark.parametrize(("values", "named"), CONTRADICTIONS)
def test_a_contradiction_is_refused_and_both_keys_are_named(
    values: dict[str, Any], named: tuple[str, str]
) -> None:
    message = refused(values)
    for name in named:
        assert name in message


@pytest.mark.parametrize(
    "values",
    [
        {"loss.weight": 0.5, "loss.name": "focal_ce"},
        {"loss.focal_gamma": 1, "loss.name": "focal_ce"},
        {"loss.tversky_beta": 0.5, "loss.name": "tversky_ce"},
        {"augment.operations": 3, "augment.magnitude": 9, "augment.policy": "randaugment"},
        {"augment.mixup_alpha": 1, "augment.mixup_p": 0.5, "augment.cutmix_p": 0.5},
        {"augment.rotate_deg": 45, "augment.affine_p": 0.1, "augment.policy": "none"},
        {"augment.colour_p": 0},  # nobody gave the brightness that does nothing now
        {"preprocess.spacing_mm": "auto", "preprocess.size": "native"},
        {"model.residual": True, "model.architecture": "unetplusplus"},
        {"model.residual": False, "model.architecture": "fpn"},
        {"optim.batch_size": 1, "model.architecture": "unet"},
        {"model.init_from": "m", "model.encoder_weights": "none", "optim.freeze_encoder": 0.1},
        {"model.tta": True},
        {"model.tta": True, "augment.policy": "none", "augment.vertical_flip_p": 0.5},
        {"train.fold": 3, "train.folds": 3},
        {"optim.warm_up": 0, "optim.schedule": "cosine"},
    ],
)
def test_what_goes_together_is_not_refused(values: dict[str, Any]) -> None:
    refuse_contradictions(settings(values))


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_is_refused_before_or_after_it_became_numbers(policy: str) -> None:
    refuse_contradictions(settings({"augment.policy": policy}))
    numbers = Settings(augment=resolved(AugmentSettings(policy=policy)))  # type: ignore[arg-type]
    assert numbers.augment.rotate_deg != "auto"
    refuse_contradictions(numbers)


def test_every_architecture_is_fine_with_the_defaults() -> None:
    for name in get_args(ModelSettings.model_fields["architecture"].annotation):
        refuse_contradictions(settings({"model.architecture": name}))


def test_the_tables_name_keys_and_values_that_exist() -> None:
    keys = set(known_keys())
    assert {*ONLY_WITH, *STRENGTH_OF, *STRENGTH_OF.values()} <= keys
    for key, values in ONLY_WITH.values():
        section, _, name = key.partition(".")
        field = Settings.model_fields[section].annotation.model_fields[name]  # type: ignore[union-attr]
        assert set(values) < set(get_args(field.annotation))
