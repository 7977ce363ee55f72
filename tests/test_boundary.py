"""Surface distances, by hand and against brute force over all pairs of voxels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score, precision_recall_fscore_support

from segapp import metrics
from segapp.boundary import Boundary, boundary, surface

ISO = np.ones(3)


def points(shape, *places):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def test_two_voxels_2_mm_apart():
    a, b = points((5, 5, 5), (1, 2, 2)), points((5, 5, 5), (2, 2, 2))
    assert boundary(a, b, np.array([2.0, 1, 1]), 1.9) == (2.0, 2.0, 0.0)
    assert boundary(a, b, np.array([2.0, 1, 1]), 2.0) == (2.0, 2.0, 1.0)
    assert boundary(a, a, np.array([2.0, 1, 1]), 0.0) == (0.0, 0.0, 1.0)


def test_a_box_one_larger_on_one_side():
    a, b = np.zeros((2, 9, 9), bool)
    a[2:5, 2:7] = True  # 15 voxels, 12 of them surface
    b[2:6, 2:7] = True  # 20 voxels, 14 of them surface
    assert (surface(a).sum(), surface(b).sum()) == (12, 14)
    hd95, msd, nsd = boundary(a, b, np.ones(2), 0.5)
    # the lower edge's five voxels of b are 1 away; of a's, the three inner ones of its lower edge
    assert hd95 == 1.0
    assert msd == pytest.approx((5 + 3) / 26)
    assert nsd == pytest.approx(18 / 26)


def test_both_empty_says_nothing_and_one_empty_costs_the_diagonal():
    none, one = points((3, 4, 1)), points((3, 4, 1), (1, 1, 0))
    assert np.isnan(boundary(none, none, ISO, 1.0)).all()
    for pair in ((none, one), (one, none)):
        assert boundary(*pair, np.array([1.0, 1, 5]), 1.0) == (
            5.0,
            5.0,
            0.0,
        )  # 3 and 4: a slice is plane
    assert boundary(*(np.ones((1, 1, 1), bool),) * 2, ISO, 1.0) == Boundary(0.0, 0.0, 1.0)


def test_what_touches_the_images_edge_has_its_surface_there():
    assert surface(np.ones((3, 3), bool)).sum() == 8
    assert surface(np.ones((1, 5), bool)).sum() == 5


def test_a_sheared_grid_is_measured_in_space():
    steps = np.array([[1.0, 0, 0], [0.5, 1, 0], [0, 0, 2]])  # rows: the step along each axis
    a, b = points((4, 4, 4), (1, 1, 1)), points((4, 4, 4), (1, 2, 1))
    assert boundary(a, b, steps, 1.0).hd95 == pytest.approx(1.25**0.5)
    none = np.zeros_like(a)
    longest = np.linalg.norm([4 + 2, 4, 8])
    assert boundary(a, none, steps, 1.0).hd95 == pytest.approx(longest)


def test_a_plate_in_a_volume_is_all_surface():
    a = np.zeros((5, 5, 5), bool)
    a[2, 1:4, 1:4] = True
    b = np.zeros_like(a)
    b[3, 1:4, 1:4] = True
    assert boundary(a, b, ISO, 0.5) == (1.0, 1.0, 0.0)


def brute_force(truth, prediction, spacing, tolerance):
    """By its definition, over all pairs of surface voxels."""
    kept = [n for n, size in enumerate(truth.shape) if size > 1]
    step = np.array([spacing[n] for n in kept], float)
    if not truth.any() and not prediction.any():
        return (np.nan,) * 3
    if truth.any() != prediction.any():
        diagonal = np.sqrt(sum((truth.shape[n] * spacing[n]) ** 2 for n in kept))
        return diagonal, diagonal, 0.0
    if not kept:
        return 0.0, 0.0, 1.0
    places = []
    for mask in (truth, prediction):
        mask = mask.reshape([mask.shape[n] for n in kept])
        padded = np.pad(mask, 1)
        inner = mask.copy()
        for axis in range(mask.ndim):
            for start in (0, 2):
                window = [slice(1, -1)] * mask.ndim
                window[axis] = slice(start, start + mask.shape[axis])
                inner &= padded[tuple(window)]
        places.append(np.argwhere(mask & ~inner) * step)
    apart = np.sqrt(((places[0][:, None] - places[1][None]) ** 2).sum(-1))
    forth, back = apart.min(1), apart.min(0)
    both = np.concatenate([forth, back])
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
    return hd95, both.mean(), np.count_nonzero(both <= tolerance + 1e-9) / len(both)


def random_mask(rng, shape):
    kind = rng.integers(5)
    if kind == 0:
        return np.zeros(shape, bool)
    if kind == 1:
        return points(shape, tuple(rng.integers(0, n) for n in shape))
    if kind == 2:
        return rng.random(shape) < rng.uniform(0.05, 0.95)
    ends = [sorted(rng.integers(0, n + 1, 2)) for n in shape]  # boxes, also at the edges
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in ends)] = True
    return mask if kind == 3 else mask & (rng.random(shape) < 0.9)


def check_pairs(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        shape = tuple(rng.integers(1, 9, rng.integers(2, 4)))
        shape += (1,) * (3 - len(shape))
        spacing = rng.uniform(0.3, 5, 3) if rng.random() < 0.7 else ISO
        tolerance = rng.choice([0.0, 1.0, 2.5])
        truth, prediction = random_mask(rng, shape), random_mask(rng, shape)
        found = boundary(truth, prediction, spacing, tolerance)
        expected = brute_force(truth, prediction, spacing, tolerance)
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
        matrix = metrics.confusion(truth.astype(np.uint8), prediction.astype(np.uint8), 2)
        flat = truth.ravel(), prediction.ravel()
        precision, sensitivity, dice, _ = precision_recall_fscore_support(
            *flat, average=None, labels=[True], zero_division=np.nan
        )
        iou = jaccard_score(*flat, zero_division=0)
        either, both = truth.any() or prediction.any(), truth.any() and prediction.any()
        ours = [f(matrix)[1] for f in (metrics.iou, metrics.dice)]
        theirs = [iou, dice[0]] if either else [np.nan, np.nan]
        if either and not both:
            theirs = [0.0, 0.0]
        ours += [metrics.sensitivity(matrix)[1], metrics.precision(matrix)[1]]
        theirs += [sensitivity[0], precision[0]]
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_random_pairs_equal_their_oracles():
    check_pairs(500)


@pytest.mark.slow
def test_ten_thousand_random_pairs_equal_their_oracles():
    check_pairs(10_000)


@st.composite
def overlapping(draw):
    """A truth and a prediction with a voxel in common."""
    size = draw(st.integers(2, 6))
    bits = st.lists(st.booleans(), min_size=size * size, max_size=size * size)
    truth, prediction = (np.array(draw(bits)).reshape(size, size, 1) for _ in range(2))
    place = draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1)), 0
    truth[place] = prediction[place] = True
    return truth, prediction


@given(st.lists(overlapping(), min_size=1, max_size=5), st.data())
def test_a_further_miss_never_improves_a_mean(cases, data):
    def means(missed):
        rows = []
        for n, (truth, prediction) in enumerate(cases):
            given = np.zeros_like(prediction) if n in missed else prediction
            matrix = metrics.confusion(truth.astype(np.uint8), given.astype(np.uint8), 2)
            surfaces = boundary(truth, given, ISO, 1.0)
            scores = [f(matrix)[1] for f in (metrics.dice, metrics.iou, metrics.sensitivity)]
            rows.append([*scores, surfaces.nsd, -surfaces.hd95, -surfaces.msd])
        return metrics.mean_of_known(np.array(rows).T)

    missed = data.draw(st.sets(st.integers(0, len(cases) - 1), max_size=len(cases) - 1))
    more = data.draw(st.sampled_from(sorted(set(range(len(cases))) - missed)))
    before, after = means(missed), means(missed | {more})
    assert (after <= before).all()
    assert (np.delete(after, 3) < np.delete(before, 3)).all(), "NSD may be 0 before"
