"""The rules that choose a preprocessing, on cases small enough to count in one's head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segapp.cases import Case
from segapp.errors import ScanError
from segapp.fingerprint import (
    CaseFacts,
    fit_preprocessing,
    measure,
    percentiles,
    sides_that_flips_swap,
)
from segapp.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from segapp.scan import Scan
from segapp.settings import Settings

CASE = Case("c", (Path("c"),), Path("m"), "p")


def facts_of(
    voxels: np.ndarray,
    affine: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    ignore: int | None = None,
) -> CaseFacts:
    """voxels (C, I, J, K); the mask is 1 everywhere unless given."""
    if mask is None:
        mask = np.ones((1, *voxels.shape[1:]), np.uint8)
    return measure(CASE, Scan(voxels, affine, Path("c")), mask, ignore)


def fit(*facts: CaseFacts, channel_files: int = 1, **keys: object) -> Preprocessing:
    settings = Settings()
    for key, value in keys.items():
        setattr(settings.data if key == "slice_axis" else settings.preprocess, key, value)
    return fit_preprocessing(facts, settings, channel_files)[0]


def grey(width: int = 8, height: int = 6, value: int = 7, dtype: type = np.uint8) -> CaseFacts:
    return facts_of(np.full((1, width, height, 1), value, dtype))


def test_facts_are_counted_by_hand() -> None:
    voxels = np.array([[[[0], [5]], [[0], [9]], [[-3], [0]]]], np.int16)  # 3 columns, 2 rows
    mask = np.array([[[[0], [2]], [[0], [2]], [[7], [0]]]], np.uint8)
    facts = facts_of(voxels, None, mask)
    assert facts.shape == (3, 2, 1)
    assert facts.channels == 1
    assert facts.dtype == "int16"
    assert facts.spacing_mm is None
    assert set(facts.slice_spacings.values()) == {None}
    assert facts.percentiles == (pytest.approx((-2.925, 8.9)),)  # of -3 0 0 0 5 9, interpolated
    assert facts.mask_counts == {0: 3, 2: 2, 7: 1}
    assert (facts.minimum, facts.maximum) == (-3, 9)
    assert facts.zero_share == 0.5
    assert facts.samples.tolist() == [[5], [9], [-3]]
    assert set(facts.slice_sizes.values()) == {(2, 3)}  # rows, columns
    # What is ignored is no foreground, though it is counted.
    ignored = facts_of(voxels, None, mask, ignore=7)
    assert ignored.samples.tolist() == [[5], [9]]
    assert ignored.mask_counts == facts.mask_counts


def test_samples_have_every_channel_and_are_drawn_alike() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 99, (2, 200, 200, 1)).astype(np.float32)
    voxels[1] = -voxels[0]
    one, two = facts_of(voxels), facts_of(voxels)
    assert one.samples.shape == (20_000, 2)
    assert np.array_equal(one.samples[:, 0], -one.samples[:, 1])
    assert np.array_equal(one.samples, two.samples)


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ([(640, 300)], None),
        ([(300, 640)], None),
        ([(641, 300)], 512),
        ([(100, 100), (100, 100), (2000, 2000)], None),  # the median counts
        ([(600, 600), (700, 700)], 512),
    ],
)
def test_slices_up_to_640_stay_as_they_are(sides: list[tuple[int, int]], size: int | None) -> None:
    assert fit(*(grey(*side) for side in sides)).size == size


def striped(side: int, *widths: int, turned: bool = False, flat: bool = False) -> CaseFacts:
    """A square slice of noise with a stripe of each width across it, of the values 1, 2, …"""
    mask = np.zeros((1, side, side, 1), np.uint8)
    for value, width in enumerate(widths, start=1):
        start = value * side // (len(widths) + 1)
        mask[0, start : start + width] = value
    noise = np.random.default_rng(0).integers(0, 99, mask.shape).astype(np.uint8)
    voxels = np.ones_like(mask) if flat else noise
    return facts_of(voxels, None, mask.swapaxes(1, 2) if turned else mask)


def test_a_stripe_is_as_wide_as_it_is_and_a_square_half_as_wide() -> None:
    for turned in (False, True):
        facts = striped(700, 3, 50, turned=turned)
        assert all(widths == {1: 3, 2: 50} for widths in facts.widths.values())
    mask = np.zeros((1, 700, 700, 1), np.uint8)
    mask[0, 100:120, 100:120] = 9
    mask[0, 300:310, 300:310] = 255
    assert facts_of(np.ones_like(mask), None, mask, ignore=255).widths["axial"] == {9: 10}
    assert not any(striped(640, 3).widths.values())  # never resized, so not asked
    assert facts_of(np.ones((1, 700, 10, 1), np.uint8)).widths["axial"] == {}  # no outline at all


def test_detail_is_what_512_pixels_lose() -> None:
    checks = np.indices((1024, 1024)).sum(0).astype(np.float32)[None, :, :, None]
    assert facts_of(checks % 2).detail["axial"] == pytest.approx(1, abs=0.02)  # all grey
    assert facts_of(checks // 64 % 2).detail["axial"] < 0.3
    assert facts_of(checks).detail["axial"] < 0.001  # a ramp
    assert facts_of(0 * checks).detail["axial"] == 0
    assert facts_of(checks[:, :640, :640] % 2).detail["axial"] == 0  # stays as it is anyway


@pytest.mark.parametrize(
    ("side", "widths", "size"),
    [
        (1024, (12,), 512),  # 6 pixels are left
        (1024, (11, 100), None),
        (1024, (3,), None),
        (2048, (12,), None),
        pytest.param(4000, (9,), 2048, marks=pytest.mark.slow),  # no larger
    ],
)
def test_large_slices_with_fine_classes_and_detail_stay_large(
    side: int, widths: tuple[int, ...], size: int | None
) -> None:
    assert fit(striped(side, *widths)).size == size
    assert fit(striped(side, *widths, flat=True)).size == 512  # nothing to lose


def test_the_finest_class_is_that_of_the_median_case() -> None:
    assert fit(striped(1024, 2), striped(1024, 30), striped(1024, 40)).size == 512


def test_a_size_that_is_set_wins() -> None:
    assert fit(grey(2000, 100), size="native").size is None
    assert fit(grey(100, 100), size=256).size == 256


def pixels_of(row: float, column: float) -> CaseFacts:
    """A slice whose columns run to the left and rows to posterior, as many headers have it."""
    affine = np.diag([-column, -row, 5, 1])
    return facts_of(np.ones((1, 800, 600, 1), np.uint8), affine)


@pytest.mark.parametrize(
    ("asked", "found"), [("none", None), (0.7, 0.7), ("auto", 0.6), ("auto of two", 0.75)]
)
def test_the_spacing_is_the_median_of_the_cases(asked: str | float, found: float | None) -> None:
    facts = [pixels_of(0.5, 0.5), pixels_of(0.4, 0.9), pixels_of(1, 1)]  # √0.36 is 0.6
    if asked == "auto of two":
        asked, facts = "auto", facts[::2]
    fitted = fit(*facts, spacing_mm=asked)
    assert fitted.spacing_mm == (None if found is None else pytest.approx(found, rel=1e-5))
    assert fitted.size == (512 if found is None else None)


@pytest.mark.parametrize("asked", ["auto", 0.5])
def test_a_training_scan_of_unknown_spacing_is_named(asked: str | float) -> None:
    with pytest.raises(ScanError, match=r"^c: its spacing is unknown.*preprocess\.spacing_mm=none"):
        fit(pixels_of(1, 1), grey(), spacing_mm=asked)


def test_ct_is_known_by_air() -> None:
    assert fit(grey(value=-501, dtype=np.int16)).normalisation == "ct"
    assert fit(grey(value=-500, dtype=np.int16)).normalisation == "zscore"
    odd = [grey(value=v, dtype=np.int16) for v in (0, 0, -1000)]  # one odd file is no CT set
    assert fit(*odd).normalisation == "zscore"


def test_ct_is_clipped_and_standardised_by_its_foreground() -> None:
    # 1001 foreground voxels -500…500: 0.5 % is -495, 99.5 % is 495; air outside does not count.
    voxels = np.full((1, 1101, 1, 1), -1000, np.int16)
    voxels[0, :1001, 0, 0] = np.arange(-500, 501)
    mask = np.zeros((1, 1101, 1, 1), np.uint8)
    mask[0, :1001] = 1
    fitted = fit(facts_of(voxels, None, mask))
    assert fitted.normalisation == "ct"
    assert fitted.clip == ((-495.0, 495.0),)
    assert fitted.shift == (0.0,)
    clipped = np.clip(np.arange(-500, 501), -495, 495)
    assert fitted.scale == (pytest.approx(clipped.std(), rel=1e-6),)


def test_ct_of_one_value_or_of_none_divides_by_one() -> None:
    flat = fit(grey(value=-1000, dtype=np.int16))
    assert (flat.shift, flat.scale, flat.clip) == ((-1000.0,), (1.0,), ((-1000.0, -1000.0),))
    voxels = np.full((1, 4, 4, 1), -1000, np.int16)
    empty = fit(facts_of(voxels, None, np.zeros((1, 4, 4, 1), np.uint8)))
    assert (empty.shift, empty.scale) == ((0.0,), (1.0,))


def test_ct_samples_of_all_cases_count() -> None:
    fitted = fit(*(grey(10, 10, v, np.int16) for v in (-600, -800)))
    assert fitted.shift == (-700.0,)
    assert fitted.scale == (100.0,)
    assert fitted.clip == ((-800.0, -600.0),)


def test_eight_bit_rgb_takes_imagenets_constants() -> None:
    rgb = facts_of(np.full((3, 8, 6, 1), 9, np.uint8))
    fitted = fit(rgb)
    assert fitted.normalisation == "imagenet"
    assert fitted.channels == 3
    assert fitted.shift == pytest.approx([255 * m for m in IMAGENET_MEAN])
    assert fitted.scale == pytest.approx([255 * s for s in IMAGENET_STD])


def test_three_channels_that_are_no_picture_do_not() -> None:
    assert fit(facts_of(np.ones((3, 8, 6, 1), np.uint16))).normalisation == "zscore"
    assert fit(facts_of(np.ones((3, 8, 6, 1), np.uint8)), channel_files=3).normalisation == "zscore"
    mixed = [facts_of(np.ones((3, 8, 6, 1), t)) for t in (np.uint8, np.uint16)]
    assert fit(*mixed).normalisation == "zscore"
    assert fit(grey()).normalisation == "zscore"


def test_imagenets_constants_fit_other_images_on_request() -> None:
    one = fit(grey(), normalisation="imagenet")
    assert one.shift == pytest.approx([255 * np.mean(IMAGENET_MEAN)])
    assert fit(grey(dtype=np.uint16), normalisation="imagenet").shift == pytest.approx(
        [65535 * np.mean(IMAGENET_MEAN)]
    )
    floats = [grey(value=v, dtype=np.float32) for v in (50, 100)]  # the largest seen is white
    assert fit(*floats, normalisation="imagenet").scale == pytest.approx(
        [100 * np.mean(IMAGENET_STD)]
    )
    assert len(fit(facts_of(np.ones((2, 4, 4, 1))), normalisation="imagenet").shift) == 2


def test_most_cases_decide_the_channels() -> None:
    rgb = facts_of(np.ones((3, 8, 6, 1), np.uint8))
    assert fit(rgb, grey(), grey()).channels == 1
    assert fit(rgb, grey(), rgb).channels == 3


@pytest.mark.parametrize(
    ("zeros", "nonzero"), [((0, 0), False), ((2, 0), False), ((3, 0), True), ((2, 2), True)]
)
def test_zeros_are_left_out_beyond_a_tenth(zeros: tuple[int, int], nonzero: bool) -> None:
    """The mean share over cases of 10 pixels: 2 zeros in one of two cases are a tenth."""
    facts = []
    for count in zeros:
        voxels = np.ones((1, 10, 1, 1), np.uint8)
        voxels[0, :count] = 0
        facts.append(facts_of(voxels))
    assert fit(*facts).nonzero is nonzero


def test_statistics_are_of_a_slice_only_if_all_cases_are_one() -> None:
    volume = facts_of(np.ones((1, 8, 6, 4), np.int16))
    assert fit(grey(), grey()).over == "slice"
    assert fit(grey(), volume).over == "scan"
    assert fit(volume).over == "scan"


def volume(spacing: tuple[float, ...], order: tuple[int, ...], signs: tuple[int, ...]) -> CaseFacts:
    """20 × 30 × 40 voxels towards right, anterior, superior, stored in another order and sense.

    spacing: towards right, anterior, superior; order: the world axis of each voxel axis.
    """
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, world in enumerate(order):
        affine[world, axis] = signs[axis] * spacing[world]
    shape = [(20, 30, 40)[world] for world in order]
    return facts_of(np.ones((1, *shape), np.int16), affine)


ORDERS = [
    ((0, 1, 2), (1, 1, 1)),
    ((0, 1, 2), (-1, -1, 1)),
    ((2, 0, 1), (1, 1, 1)),
    ((1, 2, 0), (-1, 1, -1)),
    ((2, 1, 0), (-1, -1, -1)),
]


@pytest.mark.parametrize(("order", "signs"), ORDERS)
@pytest.mark.parametrize(
    ("spacing", "axis", "size"),
    [
        ((1, 1, 5), "axial", (30, 20)),  # rows towards posterior, columns towards left
        ((1, 5, 1), "coronal", (40, 20)),
        ((5, 1, 1), "sagittal", (40, 30)),
        ((1, 1, 1), "axial", (30, 20)),  # a tie
        ((3, 1, 3), "axial", (30, 20)),
        ((1, 1, 1.0001), "axial", (30, 20)),
    ],
)
def test_volumes_are_cut_across_their_thickest_direction(order, signs, spacing, axis, size) -> None:
    facts = volume(spacing, order, signs)
    assert facts.thickest == axis
    assert facts.slice_sizes[axis] == size
    assert fit(facts).slice_axis == axis
    assert facts.slice_sizes == {"axial": (30, 20), "coronal": (40, 20), "sagittal": (40, 30)}
    right, anterior, superior = (pytest.approx(mm) for mm in spacing)
    assert facts.slice_spacings == {
        "axial": (superior, anterior, right),
        "coronal": (anterior, superior, right),
        "sagittal": (right, superior, anterior),
    }


def test_an_oblique_volume_goes_to_the_nearest_direction() -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    tilted = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1.0]])
    affine = tilted @ np.diag([1, 1, 6, 1])
    assert facts_of(np.ones((1, 4, 4, 4), np.int16), affine).thickest == "axial"


def test_most_volumes_decide_the_direction_and_the_user_before_them() -> None:
    axial, coronal = (volume(s, (0, 1, 2), (1, 1, 1)) for s in ((1, 1, 5), (1, 5, 1)))
    assert fit(axial, coronal, coronal).slice_axis == "coronal"
    assert fit(axial, coronal, coronal, slice_axis="sagittal").slice_axis == "sagittal"


def test_the_size_is_that_of_the_slices_that_are_cut() -> None:
    """100 × 100 × 700 is small cut axially, and large cut any other way."""
    tall = facts_of(np.ones((1, 100, 100, 700), np.uint8), np.eye(4))
    assert fit(tall).size is None
    assert fit(tall, slice_axis="coronal").size == 512
    assert fit(tall, slice_axis="sagittal").size == 512


@pytest.mark.parametrize(
    ("shape", "axis"), [((9, 8, 1), "axial"), ((9, 1, 8), "coronal"), ((1, 9, 8), "sagittal")]
)
def test_a_single_slice_is_cut_as_it_is(shape: tuple[int, ...], axis: str) -> None:
    facts = facts_of(np.ones((1, *shape), np.int16), np.diag([1, 1, 1, 1.0]))
    assert facts.thickest == axis
    assert fit(facts).slice_axis == axis
    assert sorted(facts.slice_sizes[facts.thickest]) == [8, 9]


def test_every_automatic_choice_gives_its_reason() -> None:
    _, reasons = fit_preprocessing([grey()], Settings(), 1)
    assert [r.split(":")[0] for r in reasons] == [
        "slices",
        "size",
        "normalisation",
        "its statistics",
    ]
    settings = Settings()
    settings.data.slice_axis, settings.preprocess.size = "axial", "native"
    settings.preprocess.normalisation = "ct"
    assert fit_preprocessing([grey()], settings, 1)[1] == []


def mirrored(seed: int, sided: bool) -> CaseFacts:
    """Two discs of values 1 and 2: 1 always in the left half, or anywhere."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((1, 40, 20, 1), np.uint8)
    columns = [int(rng.integers(2, 15)), int(rng.integers(22, 35))]
    if not sided and rng.random() < 0.5:
        columns.reverse()
    for value, column in zip((1, 2), columns, strict=True):
        mask[0, column : column + 4, 8:12, 0] = value
    scan = Scan(mask.astype(np.uint8), None, Path("x.png"))
    return measure(Case("x", (Path("x.png"),), Path("m.png"), "x"), scan, mask)


def test_sides_by_hand() -> None:
    mask = np.zeros((1, 9, 2, 1), np.uint8)
    mask[0, 0:2], mask[0, 7:9] = 3, 5  # columns 0, 1 and 7, 8 of 0…8: the middle is 4
    facts = measure(Case("x", (Path("x"),), Path("m"), "x"), Scan(mask, None, Path("x")), mask)
    assert facts.sides["axial"] == pytest.approx({3: -3.5 / 4, 5: 3.5 / 4})


def test_flips_are_off_only_where_they_would_swap_two_classes() -> None:
    assert sides_that_flips_swap([mirrored(n, sided=True) for n in range(20)], "axial") == (1, 2)
    assert sides_that_flips_swap([mirrored(n, sided=False) for n in range(20)], "axial") is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [1, 2, 3, 199, 5000])
@pytest.mark.parametrize("most", [1, 4, 250])
def test_percentiles_by_counting_are_numpys(dtype: type, count: int, most: int) -> None:
    values = np.random.default_rng(0).integers(0, most + 1, (1, count, 1, 1)).astype(dtype)
    (found,) = percentiles(Scan(values, None, Path("x.png")))
    assert found == pytest.approx(tuple(np.percentile(values, (0.5, 99.5))), rel=1e-12)
