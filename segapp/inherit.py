"""What a run takes over from the model it goes on from (model.init_from)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from segapp.checkpoint import ModelInfo, read_info
from segapp.errors import ConfigError
from segapp.fingerprint import CaseFacts, typical_spread
from segapp.preprocess import Preprocessing
from segapp.settings import Settings

_NETWORK = {"architecture": "name", "encoder": "encoder"}
_NETWORK |= {key: key for key in ("residual", "full_resolution", "separable", "encoder_depth")}


def inherit_network(settings: Settings) -> tuple[Settings, ModelInfo | None]:
    """Settings with the network of model.init_from in place of what nobody chose, and that model's
    record; the settings as they are, and None, without one.

    Raises ConfigError for a network that was chosen and is another one, and for an ensemble;
    ModelFileError for a file that is no model.
    """
    if settings.model.init_from is None:
        return settings, None
    info = read_info(settings.model.init_from)
    if info.architecture.members > 1:
        raise ConfigError(
            f"model.init_from={settings.model.init_from}: an ensemble of "
            f"{info.architecture.members} models; name one of its folds (fold1/model.safetensors)"
        )
    settings = settings.model_copy(deep=True)
    chosen = set(settings.model.model_fields_set)
    for key, theirs in _NETWORK.items():
        own, inherited = getattr(settings.model, key), getattr(info.architecture, theirs)
        if key in chosen and own not in (inherited, "auto"):
            raise ConfigError(
                f"model.{key}={own}, but the network of model.init_from has {inherited}; leave "
                f"model.{key} out"
            )
        setattr(settings.model, key, inherited)
    settings.model.encoder_weights = "none"
    return settings, info


def earlier_images(settings: Settings) -> list[str]:
    """Hashes of the images that the model of model.init_from was trained on."""
    if settings.model.init_from is None:
        return []
    data = read_info(settings.model.init_from).data
    return sorted({*data.images.get("train", ()), *data.earlier})


def inherit_preprocessing(
    settings: Settings, info: ModelInfo | None, facts: Sequence[CaseFacts], channel_files: int
) -> Preprocessing | None:
    """The preprocessing that the weights are used to, unless the data has other channels or a
    setting asks for another one; None then, or without a model to go on from.

    What its zscore or percentile takes for typical is fitted on the data: that is no habit of the
    weights, and stored values may be of another range (8 bits there, 16 here).
    """
    if info is None:
        return None
    theirs = info.preprocessing
    channels = Counter(f.channels for f in facts).most_common(1)[0][0]
    if (channels, channel_files) != (theirs.channels, theirs.channel_files):
        return None
    inherited = {
        "data.slice_axis": theirs.slice_axis,
        "data.context_slices": theirs.context,
        "preprocess.spacing_mm": theirs.spacing_mm or "none",
        "preprocess.size": theirs.size or "native",
        "preprocess.normalisation": theirs.normalisation,
    }
    for key, value in inherited.items():
        section, _, name = key.partition(".")
        group = getattr(settings, section)
        own = getattr(group, name)
        if name in group.model_fields_set and own not in ("auto", value):
            return None
    if not theirs.typical:
        return theirs
    typical = typical_spread(facts, channels, theirs.nonzero)
    return theirs.model_copy(update={"typical": typical})
