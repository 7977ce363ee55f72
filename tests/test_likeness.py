"""Warnings for scans unlike the training scans, and none for scans like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segapp.cases import Case
from segapp.fingerprint import CaseFacts, measure
from segapp.likeness import TrainingRange, training_range, unlike
from segapp.preprocess import Preprocessing
from segapp.scan import Scan


def scan_of(
    spacing: tuple[float, ...] | None = (0.5, 0.5, 1.0),
    low: float = 0,
    high: float = 255,
    shape: tuple[int, ...] = (7, 11, 13),
    channels: int = 1,
) -> Scan:
    """`channels` times the same ramp from low to high; spacing towards right, anterior, superior;
    None: a raster."""
    voxels = np.linspace(low, high, np.prod(shape), dtype=np.float32).reshape(1, *shape)
    affine = None if spacing is None else np.diag([*spacing, 1])
    return Scan(voxels.repeat(channels, 0), affine, Path("a"))


def facts_of(scan: Scan) -> CaseFacts:
    mask = np.ones((1, *scan.shape), np.uint8)
    return measure(Case("c", (Path("c"),), Path("m"), "p"), scan, mask)


def known_from(*scans: Scan, **preprocessing: Any) -> tuple[TrainingRange, Preprocessing]:
    prep = Preprocessing(**{"channels": 1, **preprocessing})
    return training_range([facts_of(s) for s in scans], prep), prep


def said(scan: Scan, *training: Scan, **preprocessing: Any) -> tuple[str, ...]:
    known, prep = known_from(*training, **preprocessing)
    return unlike(prep.prepare(scan), known)


FINE = (scan_of((0.45, 0.5, 1.0)), scan_of((0.55, 0.5, 1.2)))


def test_the_range_by_hand() -> None:
    one, two = scan_of((0.45, 0.5, 1.0), 0, 200), scan_of((0.55, 0.5, 1.2), 100, 200)
    known, _ = known_from(one, two, scan_of(None, 0, 1000, (7, 11, 1)))
    assert known.dtypes == ("float32",)
    assert known.pixel_mm == pytest.approx((0.45, 0.55))
    assert known.slice_mm == pytest.approx((1, 1.2)), "of volumes only"
    assert known.thickest == ("axial",)
    assert known.intensities == (pytest.approx((1, 995)),)
    assert known.narrowest == (pytest.approx(99),)
    assert str(known) == "float32; intensities 1…995; pixels of 0.45–0.55 mm; slices 1–1.2 mm apart"
    rasters, _ = known_from(scan_of(None, shape=(7, 11, 1)))
    assert (rasters.pixel_mm, rasters.slice_mm, rasters.thickest) == (None, None, ())


@pytest.mark.parametrize(
    ("spacing", "warnings"),
    [
        ((0.5, 0.5, 1.1), ()),
        ((0.31, 0.8, 1.7), ()),  # within half as much again
        ((0.9, 0.9, 1.0), ("pixels of 0.9 mm; the training scans had 0.45–0.55 mm",)),
        ((0.9, 0.5, 1.0), ("pixels of 0.5 × 0.9 mm; the training scans had 0.45–0.55 mm",)),
        ((0.2, 0.2, 1.0), ("pixels of 0.2 mm; the training scans had 0.45–0.55 mm",)),
        ((0.5, 0.5, 5.0), ("slices 5 mm apart; the training scans had 1–1.2 mm",)),
        ((0.5, 0.5, 0.5), ("slices 0.5 mm apart; the training scans had 1–1.2 mm",)),
        ((0.5, 5.0, 0.5), ("its thickest direction is coronal; the model cuts axial slices",)),
        (None, ("spacing unknown: no areas or volumes",)),
    ],
)
def test_another_spacing_is_told(spacing: tuple[float, ...] | None, warnings: tuple) -> None:
    assert said(scan_of(spacing), *FINE) == warnings


def test_what_no_training_scan_had_is_no_lack() -> None:
    flat = scan_of(None, shape=(7, 11, 1))
    assert said(flat, flat) == ()


def test_a_single_slice_has_no_distance_to_others() -> None:
    assert said(scan_of((0.5, 0.5, 9.0), shape=(30, 30, 1)), *FINE) == ()


def test_directions_seen_in_training_are_no_news() -> None:
    coronal = scan_of((0.5, 5.0, 0.5))
    assert said(coronal, scan_of((0.5, 0.5, 5)), coronal) == ()


def test_a_model_that_resamples_takes_other_pixels_up_to_a_point() -> None:
    assert said(scan_of((0.9, 0.9, 1.0)), *FINE, spacing_mm=0.5) == ()
    assert len(said(scan_of((2.0, 2.0, 1.0)), *FINE, spacing_mm=0.5)) == 1
    _, prep = known = known_from(*FINE, spacing_mm=0.5)
    prepared = prep.prepare(scan_of(None))
    assert unlike(prepared, known[0]) == (), "said when it was prepared"
    assert len(prepared.warnings) == 1


def test_nothing_is_said_of_what_training_did_not_know() -> None:
    assert said(scan_of((3.0, 3.0, 3.0)), scan_of(None, shape=(30, 30, 1))) == ()


@pytest.mark.parametrize(
    ("low", "high", "warning"),
    [
        (0, 200, ""),
        (-90, 290, ""),  # half a range beyond, at most
        (50, 160, ""),
        (80, 160, "intensities 80.4…160 begin higher than the training scans', at most at 1"),
        (-1024, 3071, "intensities -1004…3051 reach beyond the training scans' 1…199"),
        (0, 400, "intensities 2…398 reach beyond the training scans' 1…199"),
        (-150, 100, "intensities -149…98.8 reach beyond the training scans' 1…199"),
        (0, 10, "intensities 0.05…9.95 span only 5 % of the narrowest training scan's"),
        (7, 7, ""),
    ],
)
def test_other_intensities_are_told(low: float, high: float, warning: str) -> None:
    found = said(scan_of(low=low, high=high), scan_of(high=200))
    assert found == ((warning,) if warning else ())


def test_each_channel_has_its_own_range() -> None:
    known = scan_of(channels=2)
    voxels = known.voxels.copy()
    voxels[1] = 9
    flat = Scan(voxels, known.affine, Path("a"))
    assert said(known, known, channels=2) == ()
    assert said(flat, known, channels=2) == ("channel 1: all voxels have the same value",)
    voxels[1] = 20 * known.voxels[1]
    assert said(flat, known, channels=2)[0].startswith("channel 1: intensities")


def test_imagenets_range_follows_the_depth_of_the_image() -> None:
    rows = np.arange(256, dtype=np.uint8).reshape(1, 256, 1, 1).repeat(3, 0)
    eight, sixteen = (Scan(v, np.eye(4), Path("a")) for v in (rows, rows.astype(np.uint16) * 257))
    model = {"channels": 3, "normalisation": "imagenet", "white": 255.0}
    model |= {"shift": (120.0,) * 3, "scale": (60.0,) * 3}
    assert said(sixteen, eight, **model) == ()
    assert len(said(Scan(rows.astype(np.uint16), np.eye(4), Path("a")), eight, **model)) == 3
    grey = Scan(rows[:1], np.eye(4), Path("a"))
    assert said(grey, eight, **model) == ()


def test_a_large_scan_is_sampled() -> None:
    ((low, high),) = facts_of(scan_of(high=1000, shape=(80, 90, 100))).percentiles
    assert (low, high) == (pytest.approx(5, abs=1), pytest.approx(995, abs=1))
