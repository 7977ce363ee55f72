"""docs/settings.md is the page that the settings' classes make, and holds all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from segapp.config import known_keys
from segapp.contradictions import ONLY_WITH, RULES, STRENGTH_OF
from segapp.reference import accepts, settings_reference
from segapp.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def test_the_page_in_docs_is_up_to_date() -> None:
    again = "python -m segapp.reference > docs/settings.md"
    assert PAGE.read_text(encoding="utf-8") == settings_reference(), again


def test_every_key_has_a_row_that_says_what_it_means() -> None:
    rows = [line.strip("| ").split(" | ") for line in settings_reference().splitlines()]
    meanings = {row[0].strip("`"): row[-1] for row in rows if len(row) == 4}
    assert set(known_keys()) <= set(meanings)
    assert all(meanings[key].endswith(".") for key in known_keys())


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("data.root", "path"),
        ("data.classes", "names, as a,b"),
        ("data.limit", "whole number ≥ 1, number > 0 and < 1, names, as a,b"),
        ("preprocess.spacing_mm", "`auto`, `none`, number > 0"),
        ("augment.flip_p", "`auto`, number 0…1"),
        ("augment.vertical_flip_p", "number 0…1"),
        ("augment.operations", "whole number 1…8"),
        ("model.residual", "`auto`, true, false"),
        ("model.dropout", "number ≥ 0 and < 1"),
        ("loss.name", "`dice_ce`, `ce`, `focal_ce`, `tversky_ce`"),
        ("loss.class_weights", "`none`, `auto`, numbers > 0, as a,b"),
        ("optim.patch", "`auto`, `full`, whole number ≥ 64 and a multiple of 32"),
        ("train.progressive", "2 or more numbers 0.25…1, as a,b"),
    ],
)
def test_what_a_setting_accepts_is_said_in_words(key: str, said: str) -> None:
    section, name = key.split(".")
    model = Settings.model_fields[section].annotation
    assert accepts(model.model_fields[name]) == said  # type: ignore[union-attr]
    assert f"| `{key}` | " in settings_reference()


def test_the_page_says_what_does_not_go_together() -> None:
    _, _, text = settings_reference().partition("## What does not go together")
    for key in (*ONLY_WITH, *STRENGTH_OF):
        assert f"`{key}`" in text
    for rule in RULES:
        assert rule.__doc__
        assert " ".join(rule.__doc__.split()) in text
