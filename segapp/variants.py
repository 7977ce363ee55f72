"""What a comparison is: a config file's `compare:` section, or --vary, as settings for each run."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segapp.config import forget_resolved, parse_override, read_words, settings_of
from segapp.errors import ConfigError
from segapp.settings import Settings

_OWN_KEYS = {"train.seed", "train.out"}
RunKey = tuple[str, int]  # variant, seed


class _Section(BaseModel):
    """The `compare:` section of a config file."""

    model_config = ConfigDict(extra="forbid")
    title: str = ""
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] | None = None
    variants: dict[str, dict[str, Any] | None] | None = None


@dataclass(frozen=True)
class Comparison:
    """What is compared. tree: the settings that all runs share, as in a config file; variants: for
    each name what it changes, the first being the baseline; runs: the settings of each, by
    (variant, seed), seed by seed."""

    title: str
    seeds: int
    tree: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    runs: dict[RunKey, Settings]

    def to_yaml(self) -> str:
        """A config file of this very comparison."""
        section = {"title": self.title, "seeds": self.seeds, "variants": self.variants}
        tree = {**self.tree, "compare": section}
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def read_comparison(
    config: Path | None, words: list[str], vary: list[str], seeds: int | None, out: Path
) -> Comparison:
    """The comparison that a config file's `compare:` section or --vary KEY=V1,V2 words describe.

    words: KEY=VALUE for all runs. vary and seeds replace the section's. Runs go to
    out/runs/<variant>-seed<N>. Raises ConfigError, naming the variant where one is at fault.
    """
    config, tree, changes = read_words(config, words)
    section = _read_section(tree.pop("compare", {}), config)
    if seeds is not None:
        section.seeds = seeds
    varied = _parse_vary(vary) or section.vary
    if varied:
        variants = _grid(varied)
    else:
        variants = {name: changed or {} for name, changed in (section.variants or {}).items()}
    if len(variants) < 2:
        raise ConfigError(
            f"{len(variants)} variants given, and comparing takes 2 or more: --vary KEY=V1,V2 or "
            "a compare: section in the config file"
        )
    forget_resolved(tree, [key for key, _ in changes])
    for key, value in changes:
        _refuse_own(key, "")
        _put(tree, key, value)
    folders = {name: _slug(name) for name in variants}
    runs: dict[RunKey, Settings] = {}
    for seed, (name, changed) in itertools.product(range(section.seeds), variants.items()):
        run = out / "runs" / f"{folders[name]}-seed{seed}"
        own = [("train.seed", seed), ("train.out", str(run))]
        for key in changed:
            _refuse_own(key, f"variant {name}: ")
        try:
            runs[name, seed] = settings_of(tree, [*changes, *changed.items(), *own], config)
        except ConfigError as error:
            raise ConfigError(f"variant {name}: {error}") from error
        if runs[name, seed].train.folds and not runs[name, seed].train.fold:
            raise ConfigError(
                f"variant {name}: train.folds without train.fold: comparing repeats over seeds; "
                "leave train.folds out or choose one fold"
            )
    _refuse_twins({name: runs[name, 0] for name in variants}, folders)
    title = section.title or "Comparison of " + (" and ".join(varied or ()) or ", ".join(variants))
    return Comparison(title, section.seeds, tree, variants, runs)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Note a word in a config file's content, where the other length of a run must go."""
    section, _, name = key.partition(".")
    content = tree.setdefault(section, {})
    if not isinstance(content, dict):  # the check says so
        return
    content[name] = value
    lengths = ("epochs", "budget_minutes")
    if section == "train" and name in lengths and value is not None:
        content.pop(lengths[1 - lengths.index(name)], None)


def _read_section(content: Any, config: Path | None) -> _Section:
    try:
        section = _Section.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("compare", *first["loc"]))
        raise ConfigError(f"{config}: {key}: got {first['input']!r}: {first['msg']}") from error
    if section.vary and section.variants:
        raise ConfigError(f"{config}: compare.vary and compare.variants exclude each other")
    return section


def _parse_vary(words: list[str]) -> dict[str, list[Any]]:
    varied: dict[str, list[Any]] = {}
    for word in words:
        key, _, text = word.partition("=")
        if not text:
            raise ConfigError(
                f"--vary {word}: expected KEY=V1,V2, e.g. --vary loss.name=ce,dice_ce"
            )
        if key in varied:
            raise ConfigError(f"--vary {key} is given twice; put all its values into one")
        varied[key] = [parse_override(f"{key}={value.strip()}")[1] for value in text.split(",")]
    return varied


def _grid(varied: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Every combination of the values, named after them: `ce` where words of one key are compared,
    else `tta=true max_lr=0.001`."""
    words_of_one_key = len(varied) == 1 and all(map(_is_word, *varied.values()))
    variants: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*varied.values()):
        changed = dict(zip(varied, values, strict=True))
        name = " ".join(f"{key.rpartition('.')[2]}={_word(v)}" for key, v in changed.items())
        name = values[0] if words_of_one_key else name
        if name in variants:
            raise ConfigError(f"{' and '.join(varied)}: the variant {name} is given twice")
        variants[name] = changed
    return variants


def _is_word(value: Any) -> bool:
    """Whether a value is text, and no number such as 1e-3, which YAML leaves as text."""
    return isinstance(value, str) and not re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", value)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_word, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _slug(name: str) -> str:
    slug = re.sub(r"[^\w.=+-]+", "-", name).strip("-.") or "variant"
    digest = hashlib.sha256(name.encode()).hexdigest()
    return slug if len(slug) <= 60 else f"{slug[:50]}-{digest[:8]}"


def _refuse_own(key: str, where: str) -> None:
    if key in _OWN_KEYS:
        raise ConfigError(f"{where}{key} is set by the comparison itself; use --seeds and --out")


def _refuse_twins(settings: dict[str, Settings], folders: dict[str, str]) -> None:
    for one, other in itertools.combinations(settings, 2):
        if folders[one].lower() == folders[other].lower():  # one name on some disks
            raise ConfigError(f"variants {one} and {other} would share a folder; rename one")
        a, b = (settings[name].model_dump(exclude={"train": {"out"}}) for name in (one, other))
        if a == b:
            raise ConfigError(f"variants {one} and {other} have the same settings; drop one")
