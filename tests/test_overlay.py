from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segapp.errors import OutputError
from segapp.report.overlay import (
    busiest_slice,
    display_slices,
    display_window,
    draw_slice,
    middle_of_most,
    pixel_aspect,
    save_png,
    write_overlay,
)
from segapp.scan import Scan, SegClass, Segmentation

CLASSES = (
    SegClass("background", 0, (9, 9, 9)),
    SegClass("red", 1, (255, 0, 0)),
    SegClass("blue", 2, (0, 0, 200)),
)


def scan(voxels, affine=None):
    return Scan(np.asarray(voxels), affine, Path("a.nii"))


def test_alpha_by_hand():
    image = np.array([[[0, 100, 200]]], np.uint8)
    picture = draw_slice(image, np.array([[0, 1, 2]]), CLASSES, (0, 255), opacity=0.25)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[0, 0, 0], [139, 75, 75], [150, 150, 200]]]


@pytest.mark.parametrize("opacity", [0, 1])
def test_no_opacity_and_full(opacity):
    picture = draw_slice(np.full((1, 1, 2), 50), np.array([[0, 1]]), CLASSES, (0, 255), opacity)
    assert picture.tolist() == [[[50, 50, 50], [255, 0, 0] if opacity else [50, 50, 50]]]


def test_the_window_is_black_to_white_and_cut_beyond():
    image = np.array([[[-1000, -100, 50, 200, 3000]]], np.int16)
    picture = draw_slice(image, np.zeros((1, 5), np.uint8), CLASSES, (-100, 200))
    assert picture[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_colour_stays_colour_and_other_channels_show_the_first():
    image = np.arange(3, dtype=np.uint8).reshape(3, 1, 1)
    nothing = np.zeros((1, 1), np.uint8)
    assert draw_slice(image, nothing, CLASSES, (0, 255)).tolist() == [[[0, 1, 2]]]
    assert draw_slice(image[1:], nothing, CLASSES, (0, 255)).tolist() == [[[1, 1, 1]]]


def test_8_bits_are_shown_as_they_are():
    assert display_window(scan(np.full((1, 4, 4, 1), 7, np.uint8))) == (0, 255)


def test_others_by_their_percentiles():
    voxels = np.arange(201, dtype=np.int16).reshape(1, 201, 1, 1)
    assert display_window(scan(voxels)) == (1, 199)


@pytest.mark.parametrize("value", [0, -1000, 0.5])
def test_a_constant_image_has_a_window(value):
    low, high = display_window(scan(np.full((1, 4, 4, 4), value, np.float32)))
    assert low == value
    assert high > low


def test_slices_as_a_reader_sees_them():
    voxels = np.zeros((1, 2, 3, 4), np.uint8)
    voxels[0, 1, 2, 3] = 9  # right, anterior, superior: first column, first row, last slice
    labels = (voxels[0] > 0).astype(np.uint8)
    segmentation = Segmentation(labels, scan(voxels, np.eye(4)), CLASSES)
    images, shown = display_slices(segmentation, "axial")
    assert images.shape == (4, 1, 3, 2)
    assert images[3, 0, 0, 0] == 9
    assert shown[3, 0, 0] == 1
    assert display_slices(segmentation, "sagittal")[1][1, 0, 0] == 1


def test_a_single_coronal_slice_is_shown_as_such():
    segmentation = Segmentation(
        np.zeros((4, 1, 5), np.uint8), scan(np.zeros((1, 4, 1, 5)), np.eye(4)), CLASSES
    )
    assert display_slices(segmentation, "axial")[1].shape == (1, 5, 4)
    assert pixel_aspect(segmentation.scan, "axial") == 1


def test_the_shape_of_a_pixel():
    s = scan(np.zeros((1, 5, 5, 5)), np.diag([0.5, 1.0, 4.0, 1.0]))
    assert pixel_aspect(s, "axial") == 2  # 1 mm high, 0.5 mm wide
    assert pixel_aspect(s, "coronal") == 8
    assert pixel_aspect(s, "sagittal") == 4
    assert pixel_aspect(scan(np.zeros((1, 5, 5, 1))), "axial") == 1


def test_the_busiest_slice():
    labels = np.zeros((5, 4, 4), np.uint8)
    assert busiest_slice(labels) == 2
    labels[1, 0], labels[3, :2] = 1, 2
    assert busiest_slice(labels) == 3
    assert middle_of_most(np.array([100, 95, 93, 91, 80, 0])) == 2, "not the edge of a slab"
    assert middle_of_most(np.array([0, 0, 7])) == 2
    assert middle_of_most(np.array([0, 0])) == 1


def test_an_overlay_file(tmp_path):
    voxels = np.full((1, 3, 2, 2), 100, np.uint8)
    labels = np.zeros((3, 2, 2), np.uint8)
    labels[0, 0, 1] = 1
    write_overlay(Segmentation(labels, scan(voxels, np.eye(4)), CLASSES), "axial", tmp_path / "a")
    picture = np.asarray(Image.open(tmp_path / "a"))
    assert picture.shape == (2, 3, 3)
    assert picture[1, 2].tolist() == [178, 50, 50]  # left, posterior: last column, last row
    assert (picture[0] == 100).all()


def test_a_picture_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "file" / "a.png")
