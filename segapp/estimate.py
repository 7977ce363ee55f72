"""What a training would cost on this machine, told before it and without importing torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Measured with the default network (a U-Net on the first stages of a ResNet-34) on two cores with
# batches of 8 and patches of 96, 160 and 256 pixels: images a second against the matrix product
# below, and the peak memory.
_FLOP_PER_PIXEL, _FLOP_PER_PIXEL_BF16, _FLOP_PER_IMAGE = 0.72e6, 0.33e6, 0.3e9
_MB_BASE, _MB_PER_PIXEL = 850, 1.7e-3
_MB_RUN = 150  # model.safetensors 6 or 36, last/ 19 or 108, pictures
_SIDE = 1024


def training_cost(
    slices: Sequence[tuple[int, int, int]], channels: int, batch: int, patch: int, steps: int
) -> dict[str, float]:
    """Seconds for one pass over the slices on the CPU and for an epoch, peak memory and disk space
    in MB.

    slices: (number, rows, columns) of each training case, as the network sees them; steps: of an
    epoch. An estimate, good within a factor of two.
    """
    count = sum(n for n, _, _ in slices)
    pixels = sum(n * rows * columns for n, rows, columns in slices)
    speed = matmul_flops()
    per_pixel = _FLOP_PER_PIXEL_BF16 if has_bf16() else _FLOP_PER_PIXEL
    seconds = (per_pixel * patch**2 + _FLOP_PER_IMAGE) / speed  # for one patch
    return {
        "slices": count,
        "seconds_per_pass": count * seconds,
        "steps_per_epoch": steps,
        "seconds_per_epoch": steps * batch * seconds,
        "memory_mb": _MB_BASE + _MB_PER_PIXEL * batch * patch**2,
        "disk_mb": _MB_RUN + pixels * (2 * channels + 1) / 1e6,  # float16 images, uint8 masks
        "gflops": speed / 1e9,
    }


def has_bf16() -> bool:
    """Whether the processor multiplies in bf16, which NumPy's float32 does not show."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def matmul_flops(seconds: float = 0.2) -> float:
    """Floating-point operations a second of NumPy's matrix product in float32."""
    a = np.random.default_rng(0).random((_SIDE, _SIDE), np.float32)
    np.matmul(a, a)  # threads start
    best, until = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        np.matmul(a, a)
        best = min(best, time.perf_counter() - began)
    return 2 * _SIDE**3 / best
