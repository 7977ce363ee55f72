from pathlib import Path

import numpy as np
import pytest

from segapp.errors import DataError
from segapp.scan import Scan, Segmentation, as_called_now, make_classes

CLASSES = make_classes(["background", "lesion"], [0, 255])


def scan(shape, affine=None, channels=1):
    return Scan(np.zeros((channels, *shape), np.int16), affine, Path("a.nii"))


def scaled(*spacing):
    return np.diag([*spacing, 1.0])


def test_shape_channels_and_spacing():
    s = scan((4, 5, 6), scaled(-1, 2, 3), channels=2)
    assert (s.shape, s.channels, s.spacing_mm) == ((4, 5, 6), 2, (1, 2, 3))
    assert scan((4, 5, 1)).spacing_mm is None


def test_spacing_of_a_turned_grid():
    turn = np.eye(4)
    turn[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    assert scan((2, 2, 2), turn @ scaled(1, 2, 5)).spacing_mm == pytest.approx((1, 2, 5))


def test_a_new_array_keeps_its_place():
    s = scan((4, 5, 6), scaled(1, 1, 2))
    new = s.with_voxels(np.ones((3, 4, 5, 6)))
    assert new.affine is s.affine
    assert new.source == s.source
    assert new.channels == 3
    assert s.channels == 1
    with pytest.raises(ValueError, match=r"expected a \(C, I, J, K\) array on \(4, 5, 6\)"):
        s.with_voxels(np.ones((1, 5, 4, 6)))


def test_labels_must_lie_on_the_scan():
    with pytest.raises(ValueError, match="not on the scan's"):
        Segmentation(np.zeros((5, 4, 6), np.uint8), scan((4, 5, 6)), CLASSES)


def test_two_voxels_of_2_by_3_by_4_mm():
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, :2] = 1
    s = Segmentation(labels, scan((4, 5, 6), scaled(-2, 3, 4)), CLASSES)
    assert s.voxel_counts() == {"background": 118, "lesion": 2}
    assert s.volumes_ml() == pytest.approx({"background": 2.832, "lesion": 0.048})
    with pytest.raises(DataError, match="no areas"):
        s.areas_mm2()


def test_a_slice_has_areas_also_where_it_is_oblique_or_sheared():
    labels = np.array([[[1], [0]], [[1], [1]]], np.uint8)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = (3, 0, 0), (2, 0, 2)  # a parallelogram: 3 × 2 = 6 mm²
    s = Segmentation(labels, scan((2, 2, 1), affine), CLASSES)
    assert s.areas_mm2() == pytest.approx({"background": 6, "lesion": 18})
    with pytest.raises(DataError, match="no volumes"):
        s.volumes_ml()


def test_unknown_spacing_has_no_sizes():
    s = Segmentation(np.zeros((2, 2, 1), np.uint8), scan((2, 2, 1)), CLASSES)
    with pytest.raises(DataError, match=r"a\.nii: no volumes"):
        s.volumes_ml()
    with pytest.raises(DataError, match=r"a\.nii: no areas"):
        s.areas_mm2()


def test_every_class_is_counted_also_one_that_is_not_there():
    s = Segmentation(np.zeros((2, 2, 1), np.uint8), scan((2, 2, 1)), CLASSES)
    assert s.voxel_counts() == {"background": 4, "lesion": 0}


@pytest.mark.parametrize(
    ("values", "dtype"), [((0, 255), np.uint8), ((3, 256), np.uint16), ((7, 65535), np.uint16)]
)
def test_mask_values_are_those_of_the_training_masks(values, dtype):
    labels = np.array([[[0]], [[1]]], np.uint8)
    classes = make_classes(["a", "b"], list(values))
    found = Segmentation(labels, scan((2, 1, 1)), classes).mask_values()
    assert found.dtype == dtype
    assert found.ravel().tolist() == list(values)


def test_a_class_that_nobody_named_is_known_by_its_value():
    old = make_classes(["background", "class_255"], [0, 255])
    named = make_classes(["tissue", "lesion"], [0, 255])
    assert as_called_now(old, named) == ["tissue", "lesion"]
    assert as_called_now(named, old) == ["background", "class_255"]
    other = make_classes(["background", "lesion"], [0, 1])
    assert as_called_now(old, other) == ["background", "class_255"], "another value"
    assert as_called_now(other, make_classes(["background", "cyst"], [0, 1])) == [
        *("background", "lesion")
    ], "both have names"
    three = make_classes(["background", "class_1", "class_2"], [0, 1, 2])
    mixed = make_classes(["background", "square", "class_1"], [0, 1, 2])
    assert as_called_now(three, mixed) == ["background", "class_1", "class_2"], "names go first"
    assert old[1].may_be(named[1])
    assert named[1].may_be(old[1])
    assert not old[1].may_be(other[1])


def test_colours_are_distinct_and_the_background_is_black():
    classes = make_classes([f"c{n}" for n in range(40)], list(range(40)))
    assert classes[0].colour == (0, 0, 0)
    assert len({c.colour for c in classes}) == 40
    assert all(0 <= part <= 255 for c in classes for part in c.colour)
    with pytest.raises(ValueError, match="zip"):
        make_classes(["a"], [0, 1])
