"""docs/settings.md: every setting, in a page made from the settings' classes."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic.fields import FieldInfo

from segapp.contradictions import ONLY_WITH, RULES, STRENGTH_OF
from segapp.settings import DEFAULT_BUDGET_MINUTES, Settings

_WORDS = {int: "whole number", float: "number", bool: "true, false", str: "name", Path: "path"}
_BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
_HEAD = f"""\
# Settings

Made by `python -m segapp.reference` from `segapp/settings.py`. A setting is given as a word,
`segapp train data.root=DIR optim.max_lr=1e-3`, or in a YAML file with a section for each heading
below: the file comes first on the command line, and words override it. `auto` is decided from the
data and the machine when training starts, and the run's `config.yaml` holds what was decided.
– means: not given. Give one of `train.epochs` and `train.budget_minutes` (as a word it replaces the
file's); with neither, a run takes {DEFAULT_BUDGET_MINUTES:g} minutes. `segapp train --print-config`
prints what a command would use. Paths may begin with `~`, the home folder.
"""
_COMPARE = """\
## compare

Makes the file a comparison, for `segapp compare`; see `configs/compare-*.yaml`.

| key | default | meaning |
|---|---|---|
| `compare.title` | the keys that vary | Heading of the report. |
| `compare.seeds` | `3` | Runs of each variant, with the seeds 0, 1, 2… |
| `compare.vary` | – | For each key a list of values; every combination is a variant. |
| `compare.variants` | – | Instead: names, and for each the keys and values that it sets. |

The first variant is the baseline. `--vary` and `--seeds` on the command line replace these.
"""


def settings_reference() -> str:
    """The Markdown page: a table for each section, and what contradicts what."""
    parts = [_HEAD]
    for section, field in Settings.model_fields.items():
        model = field.annotation
        assert model is not None
        parts.append(f"## {section}\n\n{' '.join((model.__doc__ or '').split())}\n")
        rows = ["| key | default | accepts | meaning |", "|---|---|---|---|"]
        for name, setting in model.model_fields.items():  # type: ignore[attr-defined]
            cells = (f"`{section}.{name}`", _default(setting.default), accepts(setting))
            rows.append(f"| {' | '.join(cells)} | {_escaped(setting.description)} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join([*parts, _COMPARE, _contradictions()])


def accepts(setting: FieldInfo) -> str:
    """What a setting accepts, in words: "`auto`, number 0…1"."""
    return _said(setting.annotation, setting.metadata)


def _said(annotation: Any, bounds: list[Any]) -> str:
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        own = [b for m in inner[1:] for b in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return _said(inner[0], own)
    if kind is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if kind is list:
        least = next((b.min_length for b in bounds if isinstance(b, MinLen)), 0)
        more = f"{least} or more " if least > 1 else ""
        one = _said(inner[0], [])
        return more + one.replace("number", "numbers").replace("name", "names") + ", as a,b"
    if inner:  # a union
        return ", ".join(_said(part, []) for part in inner if part is not NoneType)
    return _WORDS[annotation] + _range(bounds)


def _range(bounds: list[Any]) -> str:
    """ " 0…1", " > 0", " ≥ 64 and a multiple of 32", or "" without bounds."""
    values = {type(b): getattr(b, _BOUNDS[type(b)][0]) for b in bounds if type(b) in _BOUNDS}
    if values.keys() == {Ge, Le}:
        return f" {values[Ge]:g}…{values[Le]:g}"
    text = [f"{_BOUNDS[kind][1]} {value:g}" for kind, value in values.items()]
    text += [f"a multiple of {b.multiple_of}" for b in bounds if isinstance(b, MultipleOf)]
    return " " + " and ".join(text) if text else ""


def _default(value: Any) -> str:
    if value is None:
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _escaped(text: str | None) -> str:
    return (text or "").replace("<", "&lt;").replace("|", "\\|")


def _contradictions() -> str:
    lines = [
        "## What does not go together",
        "",
        "Refused before the first step, nearly all of it before anything is read:",
        "",
    ]
    for key, (other, values) in ONLY_WITH.items():
        choices = " or ".join(f"`{value}`" for value in values)
        lines.append(f"- `{key}` does something only where `{other}` is {choices}.")
    for share in dict.fromkeys(STRENGTH_OF.values()):
        keys = ", ".join(f"`{key}`" for key, of in STRENGTH_OF.items() if of == share)
        lines.append(f"- Does nothing while `{share}` is 0: {keys}.")
    for rule in RULES:
        lines.append(f"- {' '.join((rule.__doc__ or '').split())}")
    lines += ["", "A share that is left to `augment.policy` counts with the policy's value."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_reference(), end="")
