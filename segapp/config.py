"""YAML files and KEY=VALUE words become one checked `Settings` object.

An unknown key is refused with the nearest name, and so are settings that contradict each other.
"""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from segapp.contradictions import RESIDUAL_DECODERS, depth_is_open, refuse_contradictions
from segapp.errors import ConfigError
from segapp.policies import POLICIES
from segapp.settings import DEFAULT_BUDGET_MINUTES, WARM_UP, Settings

BUILT_IN_CONFIG = "brain.yaml"
_WHOLE_WORD = 4  # letters; shorter ones are parts of many keys
_TEXT_KEYS = {"data.root", "train.out", "model.encoder", "model.encoder_weights"}
_TEXT_KEYS |= {"model.init_from"}


def load_settings(config: Path | None, overrides: list[str]) -> Settings:
    """Read CONFIG (a YAML file), apply `section.key=value` words, check everything.

    Neither CONFIG nor data.root: the built-in configs/brain.yaml. data.root alone: the defaults.
    Of train.epochs and train.budget_minutes the one given last (command line over file) counts;
    with neither, the budget is DEFAULT_BUDGET_MINUTES. Raises ConfigError, naming the key.
    """
    config, tree, changes = read_words(config, overrides)
    if "compare" in tree:
        raise ConfigError(f"{config}: is a comparison; use segapp compare {config} --out DIR")
    return settings_of(tree, changes, config)


def read_words(
    config: Path | None, overrides: list[str]
) -> tuple[Path | None, dict[str, Any], list[tuple[str, Any]]]:
    """What `load_settings` checks: the config file taken, its content, (key, value) of each word.

    Raises ConfigError for a file that can't be read and a word that is none.
    """
    changes = [parse_override(word) for word in overrides]
    if config is None and not any(key == "data.root" for key, _ in changes):
        config = built_in_config()
    return config, _read_yaml(config) if config else {}, changes


def settings_of(
    tree: dict[str, Any], changes: list[tuple[str, Any]], config: Path | None
) -> Settings:
    """The settings of a file's content, which stays as it is, with (key, value) changes."""
    tree = copy.deepcopy(tree)
    forget_resolved(tree, [key for key, _ in changes])
    for key, value in changes:
        _set(tree, key, value)
    settings = _validate(tree, config, {key for key, _ in changes})
    lengths = {"train.epochs", "train.budget_minutes"}
    given = {key for key, value in changes if key in lengths and value is not None}
    if given == {"train.epochs"}:
        settings.train.budget_minutes = None
    elif given == {"train.budget_minutes"}:
        settings.train.epochs = None
    elif settings.train.epochs and settings.train.budget_minutes:
        where = "" if given else f"{config}: "
        problem = "train.epochs and train.budget_minutes exclude each other; give one"
        raise ConfigError(where + problem)
    if settings.train.epochs is None and settings.train.budget_minutes is None:
        settings.train.budget_minutes = DEFAULT_BUDGET_MINUTES
    if settings.data.root is None:
        raise ConfigError("data.root is missing: name the folder of the data set, data.root=DIR")
    refuse_contradictions(settings)
    if settings.train.out is None:
        name = config.stem if config else settings.data.root.resolve().name
        settings.train.out = Path("runs") / name
    return settings


def forget_resolved(tree: dict[str, Any], changed: list[str]) -> None:
    """Drop from a run's config.yaml what an `auto` became of a key that is `changed` now: another
    augmentation policy, schedule or architecture brings its own."""
    sections = {name: t for name in ("augment", "optim", "model") if (t := _section(tree, name))}
    for key in changed:
        section, _, name = key.partition(".")
        content = sections.get(section, {})
        became: dict[str, Any] = {}
        if key == "augment.policy":
            became = POLICIES.get(str(content.get(name, "moves")), {})
        elif key == "optim.schedule":
            became = {"warm_up": WARM_UP.get(str(content.get(name, "onecycle")))}
        elif key in ("model.architecture", "model.encoder"):
            before = content.get("architecture", "unet")
            if depth_is_open(str(before), str(content.get("encoder", "resnet34"))):
                became["encoder_depth"] = content.get("encoder_depth")
            if name == "architecture":
                became["residual"] = before in RESIDUAL_DECODERS
                became["full_resolution"] = before == "unet"
        for other, value in became.items():
            if content.get(other) == value:
                content.pop(other, None)


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    content = tree.get(name)
    return content if isinstance(content, dict) else {}


def built_in_config() -> Path:
    """configs/brain.yaml of the working directory, of the installed package or of the checkout."""
    local = Path("configs") / BUILT_IN_CONFIG
    package = Path(__file__).parent
    places = (local, package / local, package.parent / local)
    return next((path for path in places if path.is_file()), local)


def run_config(run: Path) -> Path:
    """The config.yaml of a run folder. Raises ConfigError where there is none."""
    config = run / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{run}: holds no config.yaml; --resume takes a run folder")
    return config


def parse_override(word: str) -> tuple[str, Any]:
    """ "train.epochs=20" → ("train.epochs", 20). Raises ConfigError."""
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
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, no config file; did you mean data.root={path}?")
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
    near = [k for k in keys if k.endswith("." + last)]
    near = near or [k for k in keys if "." in key and k.startswith(key)]
    if len(last) >= _WHOLE_WORD:  # "train.minutes", of budget_minutes; in its own section first
        parts = [k for k in keys if last in k.partition(".")[2].split("_")]
        near = near or sorted(parts, key=lambda k: k.partition(".")[0] != key.partition(".")[0])
    near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "segapp train --print-config lists the keys"
    return f"unknown key {key!r}; {hint}"
