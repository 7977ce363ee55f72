import math
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segapp.errors import ScanError
from segapp.preprocess import (
    Preprocessing,
    adapt_channels,
    from_slices,
    orientation,
    scan_axis,
    slice_spacing,
    thickest_axis,
    to_slices,
)
from segapp.scan import Scan

AXES = ("axial", "coronal", "sagittal")
ORIENTATIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]


def make_scan(voxels, affine=None):
    return Scan(np.asarray(voxels), affine, Path("a.nii"))


def raster(pixels, dtype: Any = np.float32):
    """A grey image from its rows."""
    return make_scan(np.asarray(pixels, dtype).T[None, :, :, None])


def make_affine(order, signs, spacing=(1, 1, 1)):
    """Voxel axis n runs along world axis order[n] in the direction signs[n]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for n in range(3):
        affine[order[n], n] = signs[n] * spacing[n]
    return affine


def random_affine(seed):
    """Rotated, scaled, and for odd seeds sheared; mirrored or not."""
    rng = np.random.default_rng(seed)
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if seed % 2:
        matrix = matrix + rng.uniform(-0.3, 0.3, (3, 3))
    affine = np.eye(4)
    affine[:3, :3] = matrix * rng.uniform(0.3, 5, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def canonical(voxels, affine):
    """(C, I, J, K) → (C, R, A, S) by nibabel."""
    moved = np.moveaxis(voxels, 0, -1)
    image = nib.as_closest_canonical(nib.Nifti1Image(moved, affine))
    return np.moveaxis(np.asarray(image.dataobj), -1, 0)


def laid_out(ras, axis):
    """(C, R, A, S) → slices: rows and columns towards posterior, inferior, left, as named."""
    if axis == "axial":  # slices S, rows P, columns L
        return ras[:, ::-1, ::-1].transpose(3, 0, 2, 1)
    if axis == "coronal":  # slices A, rows I, columns L
        return ras[:, ::-1, :, ::-1].transpose(2, 0, 3, 1)
    return ras[:, :, ::-1, ::-1].transpose(1, 0, 3, 2)  # slices R, rows I, columns P


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_slices_and_back_for_every_axis_order(axis, order, signs):
    voxels = np.arange(120, dtype=np.int32).reshape(2, 3, 4, 5)
    affine = make_affine(order, signs)
    slices = to_slices(voxels, affine, axis)
    assert np.array_equal(slices, laid_out(canonical(voxels, affine), axis))
    assert np.array_equal(from_slices(slices, affine, axis), voxels)


@pytest.mark.parametrize("axis", AXES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_the_layout_is_anatomical_also_for_oblique_and_sheared_grids(axis, seed):
    affine = random_affine(seed)
    expected = nib.io_orientation(affine)
    world, sign = orientation(affine)
    assert (list(world), list(sign)) == (expected[:, 0].tolist(), expected[:, 1].tolist())
    voxels = np.arange(120, dtype=np.int32).reshape(2, 3, 4, 5)
    slices = to_slices(voxels, affine, axis)
    assert np.array_equal(slices, laid_out(canonical(voxels, affine), axis))
    assert np.array_equal(from_slices(slices, affine, axis), voxels)


def test_the_layout_in_words():
    voxels = np.zeros((1, 2, 2, 2))
    voxels[0, 1, 0, 0] = 1  # right, posterior, inferior in a RAS grid
    affine = np.eye(4)
    # The patient's right is the left column, posterior and inferior the last row.
    assert to_slices(voxels, affine, "axial")[0, 0, 1, 0] == 1
    assert to_slices(voxels, affine, "coronal")[0, 0, 1, 0] == 1
    assert to_slices(voxels, affine, "sagittal")[1, 0, 1, 1] == 1  # below, behind


def test_a_raster_has_columns_and_rows():
    image = raster([[1, 2, 3], [4, 5, 6]])
    slices = to_slices(image.voxels, None, "axial")
    assert slices.tolist() == [[[[1, 2, 3], [4, 5, 6]]]]
    assert np.array_equal(from_slices(slices, None, "axial"), image.voxels)
    assert np.array_equal(to_slices(image.voxels, None, "sagittal"), slices)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_a_single_slice_is_cut_along_itself(order, signs):
    affine = make_affine(order, signs)
    k = order.index(1)
    shape = (1 if k == 0 else 4, 1 if k == 1 else 5, 1 if k == 2 else 6)  # one coronal slice
    assert scan_axis(shape, affine, "axial") == "coronal"
    assert thickest_axis(make_scan(np.zeros((1, *shape)), affine)) == "coronal"
    prepared = Preprocessing(channels=1).prepare(make_scan(np.zeros((1, *shape)), affine))
    assert len(prepared) == 1
    assert "coronal" in prepared.warnings[0]


@pytest.mark.parametrize("shape", [(1, 1, 5), (4, 5, 6), (1, 1, 1)])
def test_what_is_no_single_slice_keeps_the_models_axis(shape):
    assert scan_axis(shape, np.eye(4), "sagittal") == "sagittal"
    prepared = Preprocessing(channels=1).prepare(make_scan(np.zeros((1, *shape)), np.eye(4)))
    assert prepared.warnings == ()


@pytest.mark.parametrize("scale", [1, 1e-4])  # a clinical scanner, a microscope
@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((1, 1, 1), "axial"),
        ((1, 1, 3), "axial"),
        ((1, 3, 1), "coronal"),
        ((3, 1, 1), "sagittal"),
        ((3, 3, 1), "axial"),  # a tie
        ((1.00001, 1, 1), "axial"),  # as good as a tie
    ],
)
def test_the_thickest_axis_is_anatomical(spacing, axis, scale):
    for order, signs in ORIENTATIONS[::5]:
        there = [spacing[w] * scale for w in order]
        scan = make_scan(np.zeros((1, 4, 5, 6)), make_affine(order, signs, there))
        assert thickest_axis(scan) == axis
    assert thickest_axis(make_scan(np.zeros((1, 4, 5, 1)))) == "axial"


def test_spacing_of_slices_rows_and_columns():
    affine = make_affine((1, 2, 0), (1, -1, 1), (2, 3, 4))  # A: 2 mm, S: 3 mm, R: 4 mm
    scan = make_scan(np.zeros((1, 5, 5, 5)), affine)
    assert slice_spacing(scan, "axial") == (3, 2, 4)
    assert slice_spacing(scan, "coronal") == (2, 3, 4)
    assert slice_spacing(scan, "sagittal") == (4, 3, 2)


# Normalisation


def test_zscore_by_hand():
    prepared = Preprocessing(channels=1).prepare(raster([[0, 2], [4, 6]]))
    expected = (np.array([[0, 2], [4, 6]]) - 3) / math.sqrt(5)
    np.testing.assert_allclose(prepared.normalised(0, 1)[0, 0], expected, rtol=1e-6)
    assert prepared.normalised(0, 1).dtype == np.float32


def test_zscore_over_what_is_not_zero():
    prepared = Preprocessing(channels=1, nonzero=True).prepare(raster([[0, 2], [4, 6]]))
    expected = (np.array([[0, 2], [4, 6]]) - 4) / math.sqrt(8 / 3)
    np.testing.assert_allclose(prepared.normalised(0, 1)[0, 0], expected, rtol=1e-6)


def test_percentiles_become_minus_one_and_one():
    pixels = np.arange(201).reshape(1, 201)  # 0.5 % is 1, 99.5 % is 199
    prepared = Preprocessing(channels=1, normalisation="percentile").prepare(raster(pixels))
    expected = (np.clip(pixels, 1, 199) - 100) / 99
    np.testing.assert_allclose(prepared.normalised(0, 1)[0, 0], expected, rtol=1e-6, atol=1e-7)


def test_imagenet_is_a_constant_for_each_channel():
    prep = Preprocessing(channels=3, normalisation="imagenet", shift=(1, 2, 3), scale=(1, 2, 4))
    x = prep.prepare(make_scan(np.full((3, 4, 5, 1), 7, np.uint8))).normalised(0, 1)
    assert x[0, :, 0, 0].tolist() == [6, 2.5, 1]


def test_ct_is_clipped_first():
    prep = Preprocessing(
        channels=1, normalisation="ct", shift=(50,), scale=(25,), clip=((-100, 300),)
    )
    x = prep.prepare(raster([[-2000, 50, 3000]], np.int16)).normalised(0, 1)
    assert x.ravel().tolist() == [-6, 0, 10]


def test_statistics_of_channels_are_their_own():
    voxels = np.stack([np.arange(6.0), 100 * np.arange(6.0) + 7]).reshape(2, 2, 3, 1)
    x = Preprocessing(channels=2).prepare(make_scan(voxels)).normalised(0, 1)
    np.testing.assert_allclose(x[0, 0], x[0, 1], atol=1e-5)


@pytest.mark.parametrize("kind", ["zscore", "percentile"])
def test_statistics_of_a_slice_or_of_the_scan(kind):
    voxels = np.random.default_rng(0).normal(100, 20, (1, 7, 8, 5)) * np.arange(1, 6)
    scan = make_scan(voxels, np.eye(4))
    of_slices = Preprocessing(channels=1, normalisation=kind, over="slice").prepare(scan)
    of_scan = Preprocessing(channels=1, normalisation=kind, over="scan").prepare(scan)
    assert len(of_slices.shift) == 5
    assert len(of_scan.shift) == 1
    for k in range(5):
        alone = Preprocessing(channels=1, normalisation=kind).prepare(
            make_scan(voxels[..., k : k + 1], np.eye(4))
        )
        assert np.array_equal(of_slices.normalised(k, k + 1), alone.normalised(0, 1))
    assert np.array_equal(of_slices.normalised(0, 5)[3:5], of_slices.normalised(3, 5))
    assert np.array_equal(of_scan.normalised(0, 5)[3:5], of_scan.normalised(3, 5))
    if kind == "zscore":
        everything = of_scan.normalised(0, 5)
        assert everything.mean() == pytest.approx(0, abs=1e-5)
        assert everything.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("nonzero", [True, False])
@pytest.mark.parametrize("over", ["slice", "scan"])
@pytest.mark.parametrize("kind", ["zscore", "percentile"])
@pytest.mark.parametrize("value", [0, 0.1, 1e-38, -1e-44, 1000, 1e29])
def test_a_constant_image_is_finite(kind, over, nonzero, value):
    prep = Preprocessing(channels=1, normalisation=kind, over=over, nonzero=nonzero)
    for dtype in (np.float32, np.float64):
        x = prep.prepare(make_scan(np.full((1, 9, 8, 3), value, dtype), np.eye(4)))
        found = x.network_input(0, 3)
        assert found.shape == (3, 1, 64, 64)
        assert (found == 0).all()


@pytest.mark.parametrize("value", [1e31, -1e300])
def test_values_that_overflow_are_refused(value):
    voxels = np.zeros((1, 4, 4, 1))
    voxels[0, 1, 1] = value
    with pytest.raises(ScanError, match="beyond"):
        Preprocessing(channels=1).prepare(make_scan(voxels))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float64])
def test_the_file_s_type_does_not_matter(dtype):
    pixels = np.arange(100).reshape(10, 10)
    reference = Preprocessing(channels=1).prepare(raster(pixels)).network_input(0, 1)
    found = Preprocessing(channels=1).prepare(raster(pixels, dtype)).network_input(0, 1)
    assert np.array_equal(reference, found)


# Size


@pytest.mark.parametrize(
    ("size", "shape", "target"),
    [
        (None, (100, 37), (100, 37)),
        (64, (128, 64), (64, 32)),
        (64, (64, 10), (64, 10)),
        (128, (64, 32), (128, 64)),
        (10, (1000, 3), (10, 1)),
    ],
)
def test_the_longest_side_is_brought_to_size(size, shape, target):
    prep = Preprocessing(channels=1, size=size)
    assert prep.target_size(shape, None, Path("a.png")) == target
    x = prep.prepare(raster(np.zeros(shape))).network_input(0, 1)
    assert x.shape[2:] == tuple(max(64, -(-n // 32) * 32) for n in target)


def test_padding_repeats_the_edge_and_is_cut_off():
    prep = Preprocessing(channels=1, normalisation="imagenet", shift=(0,), scale=(1,), stride=2)
    prepared = prep.prepare(raster([[1, 2, 3], [4, 5, 6]]))
    x = prepared.network_input(0, 1)
    assert x[0, 0].tolist() == [[1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [4, 5, 6, 6]]
    logits = np.concatenate([x, np.zeros_like(x)], axis=1)
    p = prepared.probabilities(logits)
    assert p.shape == (1, 2, 2, 3)
    np.testing.assert_allclose(p[0, 0], 1 / (1 + np.exp(-np.array([[1, 2, 3], [4, 5, 6]]))), 1e-6)


def test_temperature_flattens_and_huge_logits_are_finite():
    prepared = Preprocessing(channels=1).prepare(raster(np.zeros((32, 32))))
    logits = np.zeros((1, 2, 32, 32), np.float32)
    logits[:, 1] = 2
    assert prepared.probabilities(logits, 2.0)[0, 1, 0, 0] == pytest.approx(1 / (1 + math.exp(-1)))
    logits[:, 1] = 1e30
    assert prepared.probabilities(logits)[0, :, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("own", [40, 64, 65, 100, 127, 128, 200, 300])
def test_resized_and_back_nothing_moves(own):
    """A centred square through a resize to 96 and back stays centred and symmetric."""
    pixels = np.zeros((own, own))
    edge = own // 4
    pixels[edge : own - edge, edge : own - edge] = 1
    prep = Preprocessing(
        channels=1, size=96, normalisation="imagenet", shift=(0.5,), scale=(0.05,), stride=32
    )
    prepared = prep.prepare(raster(pixels))
    x = prepared.network_input(0, 1)
    p = prepared.probabilities(np.concatenate([np.zeros_like(x), x], axis=1))
    assert p.shape == (1, 2, own, own)
    inside = p[0, 1]
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(inside, inside[::-1], atol=1e-4)
    np.testing.assert_allclose(inside, inside[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(inside, inside.T, atol=1e-4)
    wrong = (inside > 0.5) != (pixels > 0)
    assert wrong.sum() <= 8 * own / 96  # at most about the corners


# Spacing


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_pixels_become_square_at_the_models_spacing(axis, order, signs):
    """20 × 30 × 10 voxels of 1 × 0.5 × 3 mm towards right, anterior, superior; target 0.5 mm."""
    shape, spacing = (20, 30, 10), (1, 0.5, 3)
    affine = make_affine(order, signs, [spacing[w] for w in order])
    scan = make_scan(np.zeros((1, *(shape[w] for w in order))), affine)
    prepared = Preprocessing(channels=1, spacing_mm=0.5, slice_axis=axis, stride=1).prepare(scan)
    rows, columns, slices = {
        "axial": (30, 40, 10),  # 30 of 0.5 mm, 20 of 1 mm
        "coronal": (60, 40, 30),  # 10 of 3 mm
        "sagittal": (60, 30, 20),
    }[axis]
    assert prepared.target == (rows, columns)
    assert prepared.network_input(0, slices).shape == (slices, 1, rows, columns)
    assert prepared.warnings == ()
    p = prepared.probabilities(np.zeros((slices, 2, rows, columns), np.float32))
    assert p.shape == (slices, 2, *prepared.slices.shape[2:]), "back on the scan's own grid"
    np.testing.assert_allclose(p, 0.5)


@pytest.mark.parametrize("mm", [0.3, 0.5, 0.9, 2])
def test_at_the_models_spacing_a_thing_has_the_models_size(mm):
    """A bar of 12 mm is 24 pixels of 0.5 mm for the network, whatever the scan's own pixels."""
    pixels = np.zeros((round(60 / mm), round(60 / mm)))
    centres = (np.arange(len(pixels)) + 0.5) * mm
    pixels[:, (centres > 24) & (centres < 36)] = 1
    raw = {"normalisation": "imagenet", "shift": (0,), "scale": (1,)}
    prep = Preprocessing(channels=1, spacing_mm=0.5, stride=1, **raw)
    scan = make_scan(pixels.T[None, :, :, None], np.diag([-mm, -mm, 3, 1]))
    x = prep.prepare(scan).network_input(0, 1)[0, 0]
    assert abs(x.shape[0] - 120) <= 1
    assert x[60].sum() == pytest.approx(24, abs=2 * mm)  # the bar's own pixels are this coarse
    assert (x[60] * np.arange(x.shape[1])).sum() / x[60].sum() == pytest.approx(59.5, abs=mm)


def test_an_unknown_spacing_is_taken_for_the_models():
    prepared = Preprocessing(channels=1, spacing_mm=0.5).prepare(raster(np.zeros((40, 50))))
    assert prepared.target == (40, 50)
    said = "spacing unknown (taken as the model's 0.5 mm): no areas or volumes"
    assert prepared.warnings == (said,)


def test_what_would_grow_beyond_reason_is_refused():
    prep = Preprocessing(channels=1, spacing_mm=0.001)
    scan = make_scan(np.zeros((1, 9, 8, 1), np.uint8), np.diag([1, 1, 1, 1]))
    with pytest.raises(ScanError, match=r"pixels of 1 × 1 mm; brought to 0\.001 mm .* 8000 × 9000"):
        prep.prepare(scan)
    large = make_scan(np.zeros((1, 9000, 2, 1), np.uint8), np.diag([0.001, 0.001, 1, 1]))
    assert prep.prepare(large).target == (2, 9000), "as it is: nothing grows"
    tiny = make_scan(np.zeros((1, 9, 8, 1), np.uint8), np.diag([1e-6, 1e-6, 1, 1]))
    assert prep.prepare(tiny).target == (1, 1)


# Channels


def test_colour_turns_grey_by_luminance():
    scan = make_scan(np.array([255, 0, 100], np.uint8).reshape(3, 1, 1, 1))
    grey, warnings = adapt_channels(scan, 1)
    assert grey.voxels.ravel() == pytest.approx([0.299 * 255 + 11.4])
    assert "luminance" in warnings[0]
    assert grey.source == scan.source
    assert Preprocessing(channels=1).prepare(scan).warnings == warnings


def test_grey_serves_a_colour_model_with_a_warning():
    scan = raster([[1, 2]], np.uint8)
    colour, warnings = adapt_channels(scan, 3)
    assert colour.voxels[:, :, 0, 0].tolist() == [[1, 2]] * 3
    assert warnings == ("grey image; the model was trained on colour ones",)


@pytest.mark.parametrize(("has", "wants"), [(2, 1), (4, 3), (3, 4), (1, 2), (3, 2)])
def test_other_channels_are_refused(has, wants):
    with pytest.raises(ScanError, match=rf"has {has} channel\(s\).* trained on {wants}"):
        Preprocessing(channels=wants).prepare(make_scan(np.zeros((has, 4, 4, 1))))


def test_preprocessing_travels_as_json():
    prep = Preprocessing(
        channels=2, normalisation="ct", shift=(1, 2), scale=(3, 4), clip=((0, 1), (2, 3))
    )
    assert Preprocessing.model_validate_json(prep.model_dump_json()) == prep


def test_slices_are_the_same_bytes_whatever_the_axis_order():
    """Statistics are sums, and sums depend on the order: it must not be the file's."""
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.normal(100, 30, (9, 10, 11)).astype(np.float32), np.eye(4))
    prep = Preprocessing(channels=1, size=16)
    reference = prep.prepare(make_scan(np.asarray(image.dataobj)[None], image.affine))
    for order, signs in ORIENTATIONS:
        turned = image.as_reoriented(list(zip(order, signs, strict=True)))
        found = prep.prepare(make_scan(np.asarray(turned.dataobj)[None], turned.affine))
        assert found.network_input(0, 11).tobytes() == reference.network_input(0, 11).tobytes()


@pytest.mark.parametrize("unit", [1, 256], ids=["8 bits", "16 bits"])
def test_black_slices_look_like_background_not_like_tissue(unit: int) -> None:
    """A slice that says nothing about its own range takes that of the volume's others, in whatever
    unit the volume is stored."""
    voxels = np.zeros((1, 10, 10, 4), np.float32)
    tissue = np.arange(36).reshape(6, 6) + 82.5  # mean 100
    voxels[0, 2:8, 2:8, 1] = tissue
    voxels[0, 2:8, 2:8, 2] = 2 * tissue
    voxels[0, 5, 5, 3] = 7  # a constant has no range
    fitted = Preprocessing(channels=1, over="slice", nonzero=True, typical=((100.0, 20.0),))
    prepared = fitted.prepare(Scan(unit * voxels, None, Path("volume")))
    black, first, second, nearly = prepared.normalised(0, 4)[:, 0]
    assert first[2:8, 2:8].mean() == pytest.approx(0, abs=1e-5)
    assert second[2:8, 2:8].std() == pytest.approx(1)
    deviation = 1.5 * tissue.std()  # the median of one and two times as much
    np.testing.assert_allclose(black, -150 / deviation, rtol=1e-6)
    assert nearly[5, 5] == pytest.approx((7 - 150) / deviation)
    without = Preprocessing(channels=1, over="slice", nonzero=True)
    np.testing.assert_array_equal(
        without.prepare(Scan(voxels, None, Path("volume"))).normalised(0, 1), 0
    )


def test_where_no_slice_tells_its_range_the_training_images_do() -> None:
    voxels = np.zeros((1, 10, 10, 2), np.float32)
    voxels[0, 5, 5, 1] = 7
    fitted = Preprocessing(channels=1, over="slice", nonzero=True, typical=((100.0, 20.0),))
    black, nearly = fitted.prepare(Scan(voxels, None, Path("volume"))).normalised(0, 2)[:, 0]
    np.testing.assert_allclose(black, -5)  # (0 - 100) / 20
    assert nearly[5, 5] == pytest.approx((7 - 100) / 20)


@pytest.mark.parametrize("kind", ["zscore", "percentile"])
def test_a_constant_image_takes_the_typical_range(kind: str) -> None:
    voxels = np.full((1, 6, 6, 1), 140, np.uint8)
    fitted = Preprocessing(channels=1, normalisation=kind, typical=((100.0, 20.0),))
    got = fitted.prepare(Scan(voxels, None, Path("flat.png"))).normalised(0, 1)
    expected = 2.0 if kind == "zscore" else 40 / (2.576 * 20)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_channels_in_files_of_their_own_are_never_made_up() -> None:
    """A T1/T2/FLAIR model must not take one of them for all three, nor a colour picture."""
    model = Preprocessing(channels=3, channel_files=3)
    for channels in (1, 2):
        scan = Scan(np.zeros((channels, 4, 4, 1), np.uint8), None, Path("one_0000.nii.gz"))
        with pytest.raises(ScanError, match="each a file of its own"):
            model.prepare(scan)
    grey = Preprocessing(channels=1, channel_files=2)
    with pytest.raises(ScanError):
        grey.prepare(Scan(np.zeros((3, 4, 4, 1), np.uint8), None, Path("colour.png")))


def test_imagenet_constants_follow_the_depth_of_the_image() -> None:
    mean = tuple(255 * m for m in (0.485, 0.456, 0.406))
    model = Preprocessing(
        channels=3, normalisation="imagenet", white=255, shift=mean, scale=(255.0,) * 3
    )
    eight = np.full((3, 2, 2, 1), 51, np.uint8)
    sixteen = np.full((3, 2, 2, 1), 51 * 257, np.uint16)  # the same share of white
    results = [
        model.prepare(Scan(v, None, Path("x.png"))).normalised(0, 1) for v in (eight, sixteen)
    ]
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    assert results[0][0, 0, 0, 0] == pytest.approx(0.2 - 0.485, abs=1e-5)
    with pytest.raises(ScanError, match="white is unknown"):
        model.prepare(Scan(eight.astype(np.float32), None, Path("x.tif")))


def test_a_grey_imagenet_model_takes_a_colour_image_by_luminance() -> None:
    model = Preprocessing(
        channels=1, normalisation="imagenet", white=255, shift=(127.5,), scale=(255.0,)
    )
    prepared = model.prepare(Scan(np.full((3, 2, 2, 1), 255, np.uint8), None, Path("x.png")))
    np.testing.assert_allclose(prepared.normalised(0, 1), 0.5, atol=1e-5)
    assert "luminance" in prepared.warnings[0]


def test_neighbouring_slices_are_further_channels_lowest_first() -> None:
    """Slices of 0, 1, 2, 3 with one on each side; at the ends the last one again."""
    volume = np.broadcast_to(np.arange(4.0), (1, 64, 64, 4)).astype(np.float32)
    prep = Preprocessing(channels=1, context=1, normalisation="imagenet", shift=(0,), scale=(1,))
    prepared = prep.prepare(make_scan(volume, np.eye(4)))
    assert prep.inputs == 3
    whole = prepared.network_input(0, 4)
    assert whole.shape == (4, 3, 64, 64)
    assert whole[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    for k in range(4):
        np.testing.assert_array_equal(prepared.network_input(k, k + 1), whole[k : k + 1])


def test_neighbours_keep_the_channels_of_a_slice_together() -> None:
    volume = np.stack([np.arange(3.0), 10 + np.arange(3.0)]).reshape(2, 1, 1, 3)
    volume = np.broadcast_to(volume, (2, 64, 64, 3)).astype(np.float32)
    prep = Preprocessing(
        channels=2, context=2, normalisation="imagenet", shift=(0, 0), scale=(1, 1)
    )
    middle = prep.prepare(make_scan(volume, np.eye(4))).network_input(1, 2)
    assert middle[0, :, 0, 0].tolist() == [0, 10, 0, 10, 1, 11, 2, 12, 2, 12]


def test_a_lone_slice_of_a_model_with_neighbours_is_warned_about() -> None:
    prep = Preprocessing(channels=1, context=1)
    lone = prep.prepare(raster(np.arange(64 * 64).reshape(64, 64)))
    assert any("neighbours" in w for w in lone.warnings)
    assert lone.network_input(0, 1).shape == (1, 3, 64, 64)
