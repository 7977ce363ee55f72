"""Policies: every `auto` becomes a number, what was given stays."""

import pytest

from segapp.policies import POLICIES, STRONGEST, SUB_POLICIES, resolved
from segapp.settings import AugmentSettings


@pytest.mark.parametrize("policy", POLICIES)
def test_no_auto_is_left_and_every_number_is_the_policys(policy: str) -> None:
    asked = AugmentSettings.model_validate({"policy": policy})
    autos = {name for name, value in asked if value == "auto"}
    assert autos == set(POLICIES[policy])
    for name, value in resolved(asked):
        assert value == (POLICIES[policy][name] if name in autos else getattr(asked, name))


def test_what_was_given_wins_over_the_policy() -> None:
    asked = AugmentSettings(policy="strong", noise_p=0, rotate_deg=90, mixup_p=0.5)
    got = resolved(asked)
    assert (got.noise_p, got.rotate_deg, got.mixup_p) == (0, 90, 0.5)
    assert got.elastic_p == POLICIES["strong"]["elastic_p"]
    assert asked.elastic_p == "auto"  # the settings that were asked for stay as they are


def test_only_moves_by_default() -> None:
    on = {name for name, value in resolved(AugmentSettings()) if name.endswith("_p") and value}
    assert on == {"flip_p", "affine_p", "elastic_p"}


def test_standard_changes_a_little_of_everything() -> None:
    got = resolved(AugmentSettings(policy="standard"))
    on = {name: value for name, value in got if name.endswith("_p") and value}
    assert on == {
        **{"flip_p": 0.5, "affine_p": 0.7, "colour_p": 0.3, "blur_p": 0.05, "noise_p": 0.1},
        **{"salt_pepper_p": 0.02, "erase_p": 0.05},
    }
    assert (got.rotate_deg, got.shear_deg, got.scale) == (15, 10, 0.2)


def test_policies_differ_and_get_stronger() -> None:
    names = [name for name in POLICIES["none"] if name.endswith("_p")]
    for weaker, stronger in (("none", "light"), ("light", "standard"), ("standard", "strong")):
        pairs = [(POLICIES[weaker][name], POLICIES[stronger][name]) for name in names]
        assert all(a <= b for a, b in pairs)
        assert any(a < b for a, b in pairs)


def test_sub_policies_are_pairs_of_known_operations_and_use_them_all() -> None:
    assert len(SUB_POLICIES) == 10
    for line in SUB_POLICIES:
        assert len(line) == 2
        for name, p, magnitude in line:
            assert name in STRONGEST
            assert 0 < p <= 1
            assert 0 <= magnitude <= 10
    assert {name for line in SUB_POLICIES for name, _, _ in line} == set(STRONGEST)
