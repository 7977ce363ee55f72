from pathlib import Path

import numpy as np
import pytest
from test_predict import RAW

from segapp.novelty import features, fit_novelty, scan_features
from segapp.preprocess import Preprocessing
from segapp.scan import Scan


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A bright ellipse, somewhat moved and stretched, on noise: (1, H, W) float32."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    row, column = size[0] / 2 - 8 + rng.normal(0, 1), size[1] / 2 + rng.normal(0, 1)
    inside = ((rows - row) / rng.uniform(14, 17)) ** 2 + ((columns - column) / 9) ** 2 < 1
    return (2 * inside + rng.normal(0, 0.1, size)).astype(np.float32)[None]


@pytest.fixture(scope="module")
def novelty():
    found = fit_novelty(
        [features(picture(n))[None] for n in range(60)], [str(n) for n in range(60)]
    )
    assert found
    return found


def test_new_pictures_of_the_kind_are_like_it(novelty) -> None:
    found = [novelty.unlikeness(features(picture(n))[None])[0] for n in range(100, 200)]
    assert np.mean(np.array(found) <= 1) >= 0.85, "about 95 % are below 1"
    assert novelty.unlikeness(features(picture(0))[None])[0] < 0.01, "itself"


@pytest.mark.parametrize(
    ("alter", "word"),
    [
        (
            lambda x: x + np.random.default_rng(0).normal(0, 1, x.shape).astype(np.float32),
            "intensities",  # the darkest are darker by far
        ),
        (lambda x: 2 - x, "intensities"),
        (lambda x: x[:, ::-1], "layout"),
        (lambda x: np.ascontiguousarray(x.transpose(0, 2, 1)), "shape"),
        (lambda x: x[:, :, :24], ""),  # half of it is bright, and its shape is another
        (lambda x: np.zeros_like(x), ""),
    ],
)
def test_altered_ones_are_not(novelty, alter, word) -> None:
    for n in range(100, 110):
        value, what = novelty.unlikeness(features(np.ascontiguousarray(alter(picture(n))))[None])
        assert value > 1.2
        assert word in what


def test_features_are_finite_whatever_comes() -> None:
    for shape in ((1, 1, 1), (1, 2, 500), (3, 33, 31), (1, 700, 900)):
        for image in (
            np.zeros(shape),
            np.ones(shape),
            np.random.default_rng(0).normal(0, 9, shape),
        ):
            found = features(image.astype(np.float32))
            assert found.shape == (6 * shape[0] + 24,)
            assert np.isfinite(found).all()


def test_a_scan_is_its_median_slice(novelty) -> None:
    usual = [features(picture(n)) for n in range(100, 105)]
    odd = [features(2 - picture(n)) for n in range(2)]
    assert novelty.unlikeness(np.stack([*usual, *odd]))[0] < 1.2
    assert novelty.unlikeness(np.stack([*usual[:1], *odd]))[0] > 1.2


def test_cases_of_one_patient_do_not_vouch_for_each_other() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (12, 30))
    scans = [c + rng.normal(0, 0.01, (1, 30)) for c in centres for _ in range(5)]
    apart = fit_novelty(scans, [str(n // 5) for n in range(60)])
    together = fit_novelty(scans, [str(n) for n in range(60)])
    assert apart
    assert together
    assert apart.limit > 5 * together.limit


def test_too_few_and_very_many() -> None:
    assert fit_novelty([], []) is None
    assert fit_novelty([np.zeros((1, 30))], ["a"]) is None
    assert fit_novelty([np.zeros((1, 30))] * 2, ["a", "b"]) is None, "one slice is nothing"
    same = fit_novelty([np.zeros((5, 30))] * 2, ["a", "a"])
    assert same
    assert same.unlikeness(np.ones((1, 30)))[0] > 1
    many = fit_novelty(
        [np.random.default_rng(n).normal(0, 1, (3, 30)) for n in range(900)], ["a"] * 900
    )
    assert many
    assert len(many.kept) <= 256
    assert type(many).model_validate_json(many.model_dump_json()) == many


@pytest.mark.parametrize("scans", [256, 281])
def test_no_place_in_the_scans_is_preferred(scans: int) -> None:
    """Every scan has the same 32 places, each unlike the others; whichever number of scans there
    is, the median slice of a new one is as usual."""
    rng = np.random.default_rng(0)
    places = rng.normal(0, 1, (32, 30))
    looks = [places + rng.normal(0, 0.3, places.shape) for _ in range(scans + 20)]
    novelty = fit_novelty(looks[:scans], [str(n) for n in range(scans)])
    assert novelty
    usual = [novelty.unlikeness(scan)[0] for scan in looks[scans:]]
    assert 0.6 < np.median(usual) < 1.1


def test_scan_features_are_those_of_what_the_network_sees() -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (1, 20, 30, 50)).astype(np.uint8)
    scan = Scan(voxels, np.diag([1.0, 1, 3, 1]), Path("x.nii"))
    for options in ({}, {"context": 1}, {"size": 16}):
        prepared = Preprocessing(channels=1, **RAW, **options).prepare(scan)
        found = scan_features(prepared)
        assert found.shape == (32, 30)
        size, context = prepared.target, options.get("context", 0)
        first = prepared.network_input(0, 1)[0, context : context + 1, : size[0], : size[1]]
        assert found[0] == pytest.approx(features(first))
    few = Scan(voxels[..., :3], scan.affine, scan.source)
    assert scan_features(Preprocessing(channels=1, **RAW).prepare(few)).shape == (3, 30)
