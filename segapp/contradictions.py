"""Settings that make no sense together, refused before anything is read.

The docstrings of the rules are also what docs/settings.md says about them, and the error itself
where a rule yields "".
"""

from __future__ import annotations

from collections.abc import Iterator

from segapp.errors import ConfigError
from segapp.policies import POLICIES
from segapp.settings import AugmentSettings, Settings

# A key that does something only where another has one of these values.
ONLY_WITH = {
    "loss.weight": ("loss.name", ("dice_ce", "focal_ce", "tversky_ce")),
    "loss.focal_gamma": ("loss.name", ("focal_ce",)),
    "loss.tversky_beta": ("loss.name", ("tversky_ce",)),
    "augment.operations": ("augment.policy", ("randaugment",)),
    "augment.magnitude": ("augment.policy", ("randaugment",)),
}
# A strength does nothing while the share of patches that get it is 0.
STRENGTH_OF = {
    **dict.fromkeys(
        ("augment.rotate_deg", "augment.shear_deg", "augment.scale"), "augment.affine_p"
    ),
    **dict.fromkeys(("augment.brightness", "augment.contrast"), "augment.colour_p"),
    **dict.fromkeys(("augment.saturation", "augment.hue"), "augment.colour_p"),
    "augment.mixup_alpha": "augment.mixup_p",
    "augment.cutmix_alpha": "augment.cutmix_p",
}
_POOLS_TO_ONE_PIXEL = ("pan", "deeplabv3", "deeplabv3plus", "upernet")
_NO_DENSE_CONVOLUTION = ("linknet", "pspnet", "segformer", "deeplabv3plus")  # in the decoder
RESIDUAL_DECODERS = ("unet", "unetplusplus")


def depth_is_open(architecture: str, encoder: str) -> bool:
    """Whether model.encoder_depth=auto depends on the patches; else it is all of the encoder."""
    return architecture == "unet" and encoder.startswith("resnet")


def refuse_contradictions(settings: Settings) -> None:
    """Raise ConfigError naming the first keys that don't go together, and what to do."""
    for rule in (_without_effect, *RULES):
        for problem in rule(settings):
            as_told = " ".join((rule.__doc__ or "").replace("`", "").split()).rstrip(".")
            raise ConfigError(problem or as_told)


def _without_effect(s: Settings) -> Iterator[str]:
    for key, (other, values) in ONLY_WITH.items():
        if _is_changed(s, key) and _value(s, other) not in values:
            wanted = " or ".join(values)
            yield f"{key} does nothing with {other}={_value(s, other)}; it needs {wanted}"
    for key, share in STRENGTH_OF.items():
        if _is_changed(s, key) and _value(s, share) == 0:
            cause = f"{share}=0"
            if share.removeprefix("augment.") in POLICIES[s.augment.policy]:
                cause += f", as augment.policy={s.augment.policy} has it"
            yield f"{key} does nothing with {cause}; set {share} too"


def _length_by_the_clock(s: Settings) -> Iterator[str]:
    """`train.deterministic` needs `train.epochs`: how many steps fit into `train.budget_minutes`
    differs each time."""
    if s.train.deterministic and s.train.budget_minutes:
        yield ""


def _two_sizes(s: Settings) -> Iterator[str]:
    """`preprocess.spacing_mm` and `preprocess.size` in pixels both say how large a slice becomes:
    give one."""
    if s.preprocess.spacing_mm != "none" and isinstance(s.preprocess.size, int):
        yield "preprocess.spacing_mm and preprocess.size exclude each other; give one"


def _mixed_batches(s: Settings) -> Iterator[str]:
    """`augment.mixup_p` and `augment.cutmix_p` are shares of the same batches: at most 1
    together."""
    if s.augment.mixup_p + s.augment.cutmix_p > 1:
        yield ""


def _nobody_to_mix_with(s: Settings) -> Iterator[str]:
    """`augment.mixup_p` and `augment.cutmix_p` mix the images of a batch, so `optim.batch_size`
    can't be 1."""
    for key in ("augment.mixup_p", "augment.cutmix_p"):
        if _value(s, key) and s.optim.batch_size == 1:
            yield f"{key} mixes the images of a batch, and optim.batch_size=1; use 2 or more"


def _no_room_to_move(s: Settings) -> Iterator[str]:
    """`augment.foreground_p` places the patches, and `optim.patch=full` leaves them no room: give a
    smaller one."""
    if _value(s, "augment.foreground_p") and s.optim.patch == "full":
        yield ""


def _residual_blocks(s: Settings) -> Iterator[str]:
    """`model.residual=true` needs a `model.architecture` whose decoder has such blocks: unet or
    unetplusplus."""
    if s.model.residual is True and s.model.architecture not in RESIDUAL_DECODERS:
        yield (
            f"model.residual=true: only the decoders of {' and '.join(RESIDUAL_DECODERS)} have "
            f"such blocks, not model.architecture={s.model.architecture}"
        )


def _full_resolution(s: Settings) -> Iterator[str]:
    """`model.full_resolution=true` is for `model.architecture=unet`."""
    if s.model.full_resolution is True and s.model.architecture != "unet":
        yield (
            f"model.full_resolution=true: only the decoder of unet has such a connection, not "
            f"model.architecture={s.model.architecture}"
        )


def _short_encoder(s: Settings) -> Iterator[str]:
    """`model.encoder_depth` below 5 is for unet or unetplusplus, over a ResNet."""
    depth = s.model.encoder_depth
    if depth not in ("auto", 5) and s.model.architecture not in RESIDUAL_DECODERS:
        yield (
            f"model.encoder_depth={depth}: the encoder of a {s.model.architecture} can't be cut "
            "short; leave it out"
        )


def _nothing_to_separate(s: Settings) -> Iterator[str]:
    """`model.separable` changes nothing about a `model.architecture` whose decoder has no dense
    convolution of 3×3: linknet, pspnet, segformer, deeplabv3plus."""
    if s.model.separable and s.model.architecture in _NO_DENSE_CONVOLUTION:
        yield (
            f"model.separable does nothing with model.architecture={s.model.architecture}, whose "
            "decoder has no dense convolution to replace; leave it out"
        )


def _one_pixel_batches(s: Settings) -> Iterator[str]:
    """`optim.batch_size=1` can't train a `model.architecture` that normalises one pixel an image
    over the batch: pan, deeplabv3, deeplabv3plus, upernet."""
    if s.model.architecture in _POOLS_TO_ONE_PIXEL and s.optim.batch_size == 1:
        yield (
            f"optim.batch_size=1 can't train model.architecture={s.model.architecture}, which "
            "normalises one pixel an image over the batch; use 2 or more"
        )


def _two_starts(s: Settings) -> Iterator[str]:
    """`model.init_from` brings the weights of the encoder, so `model.encoder_weights` can't be
    imagenet or a file."""
    if s.model.init_from and s.model.encoder_weights not in ("auto", "none"):
        yield "model.init_from and model.encoder_weights exclude each other; give one"


def _nothing_to_spare(s: Settings) -> Iterator[str]:
    """`optim.freeze_encoder` and `optim.encoder_lr` spare pretrained weights, so the encoder must
    not start from random ones: `model.encoder_weights=none` without `model.init_from`."""
    for key in ("optim.freeze_encoder", "optim.encoder_lr"):
        if _is_changed(s, key) and s.model.encoder_weights == "none" and not s.model.init_from:
            yield (
                f"{key} spares pretrained weights, and with model.encoder_weights=none the encoder "
                "starts from random ones; give model.encoder_weights or model.init_from"
            )


def _no_flips(s: Settings) -> Iterator[str]:
    """`model.tta` averages over the flips of the training, so `augment.flip_p` and
    `augment.vertical_flip_p` can't both be 0 (`augment.policy=none` has no flips): set one of them
    or leave `model.tta` out."""
    if s.model.tta and _value(s, "augment.flip_p") == 0 and s.augment.vertical_flip_p == 0:
        yield ""


def _folds(s: Settings) -> Iterator[str]:
    """`train.fold` needs `train.folds`, and is at most that number; with folds, `data.val_share`
    has no say."""
    if s.train.folds and _is_changed(s, "data.val_share"):
        yield "data.val_share does nothing with train.folds, which sets 1 / folds aside in turn"
    if s.train.fold and not s.train.folds:
        yield "train.fold needs train.folds, the number of folds"
    elif s.train.fold and s.train.folds and s.train.fold > s.train.folds:
        yield f"train.fold={s.train.fold}, but there are only train.folds={s.train.folds}"


def _no_rise(s: Settings) -> Iterator[str]:
    """`optim.warm_up=0` leaves nothing of `optim.schedule=onecycle`, which rises first: use
    `optim.schedule=cosine`."""
    if s.optim.schedule == "onecycle" and s.optim.warm_up == 0:
        yield ""


def _patience(s: Settings) -> Iterator[str]:
    """`train.patience` could end a run with `train.progressive` before it saw whole slices: leave
    one of them out."""
    if s.train.patience and s.train.progressive:
        yield ""


RULES = (
    *(_length_by_the_clock, _two_sizes, _mixed_batches, _nobody_to_mix_with),
    *(_no_room_to_move, _patience),
    *(_residual_blocks, _full_resolution, _short_encoder, _nothing_to_separate),
    _one_pixel_batches,
    *(_two_starts, _nothing_to_spare, _no_flips, _folds, _no_rise),
)


def _value(s: Settings, key: str):
    """The value of a key; the policy's where an augmentation is left to it."""
    section, _, name = key.partition(".")
    value = getattr(getattr(s, section), name)
    if section == "augment" and value == "auto":
        return POLICIES[s.augment.policy][name]
    return value


def _is_changed(s: Settings, key: str) -> bool:
    """Whether a key has a value that nobody would have without giving it. A run's own config.yaml
    holds the policy's numbers in place of `auto`."""
    section, _, name = key.partition(".")
    if section == "augment" and AugmentSettings.model_fields[name].default == "auto":
        return _value(s, key) != POLICIES[s.augment.policy][name]
    return _value(s, key) != type(getattr(s, section)).model_fields[name].default
