"""What a training costs, from figures that were measured once."""

from __future__ import annotations

import pytest

from segapp import estimate
from segapp.estimate import matmul_flops, training_cost


@pytest.mark.parametrize(("bf16", "images_per_second"), [(False, 19), (True, 41)])
def test_the_cost_of_one_pass(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, images_per_second: float
) -> None:
    """What was measured at 350 GFLOP/s with patches of 160 pixels."""
    monkeypatch.setattr(estimate, "matmul_flops", lambda: 3.5e11)
    monkeypatch.setattr(estimate, "has_bf16", lambda: bf16)
    slices = [(50, 200, 100), (20, 100, 100)]
    cost = training_cost(slices, channels=2, batch=8, patch=160, steps=40)
    assert cost["slices"] == 70
    assert cost["seconds_per_pass"] == pytest.approx(70 / images_per_second, rel=0.1)
    assert cost["seconds_per_epoch"] == pytest.approx(40 * 8 / images_per_second, rel=0.1)
    assert cost["memory_mb"] == pytest.approx(1200, rel=0.1)  # 1,097 in bf16, 1,316 in fp32
    # two float16 channels and a uint8 mask for each of 1.2 million pixels, beside the run
    assert cost["disk_mb"] == pytest.approx(150 + 1.2 * 5)


def test_the_machine_is_measured_in_a_moment() -> None:
    assert 1e8 < matmul_flops(0.02) < 1e15
