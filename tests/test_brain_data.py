"""The committed data set data/brain: what its README promises, checked file by file."""

import csv
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

BRAIN = Path(__file__).parents[1] / "data" / "brain"
WHEEL = os.environ.get("SEGAPP_NILEARN_WHEEL")


def read_cases() -> list[dict[str, str]]:
    with (BRAIN / "cases.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def z_of(case: dict[str, str]) -> int:
    return int(Path(case["image"]).stem.removeprefix("z"))


def read_png(path: str) -> np.ndarray:
    with Image.open(BRAIN / path) as image:
        assert image.mode == "L"
        return np.asarray(image)


@pytest.fixture(scope="module")
def cases() -> list[dict[str, str]]:
    return read_cases()


@pytest.fixture(scope="module")
def volume() -> nib.Nifti1Image:
    return nib.load(BRAIN / "t1.nii.gz")


def test_counts_per_split(cases):
    assert list(cases[0]) == ["image", "mask", "patient", "split"]
    assert Counter(case["split"] for case in cases) == {"train": 70, "val": 14, "test": 24}


def test_the_table_and_the_folders_name_the_same_files(cases):
    named = {case[kind] for case in cases for kind in ("image", "mask")}
    assert named == {path.relative_to(BRAIN).as_posix() for path in BRAIN.rglob("*.png")}
    assert len(named) == 2 * len(cases)
    for case in cases:
        name = Path(case["image"]).name
        assert case["image"] == f"{case['split']}/images/{name}"
        assert case["mask"] == f"{case['split']}/masks/{name}"


def test_splits_follow_the_slabs(cases):
    for case in cases:
        slab = z_of(case) // 12
        split = "test" if slab % 4 == 2 else "val" if slab % 8 == 4 else "train"
        assert (case["patient"], case["split"]) == (f"slab{slab:02d}", split)


def test_no_patient_in_two_splits(cases):
    split_of = {case["patient"]: case["split"] for case in cases}
    assert all(split_of[case["patient"]] == case["split"] for case in cases)


def test_two_slices_dropped_on_each_side_of_a_border(cases):
    # Slabs 1 | 2 meet between z 23 and 24: 22, 23, 24, 25 are gone, 21 and 26 are 5 apart.
    splits = {z_of(case): case["split"] for case in cases}
    assert splits.keys().isdisjoint({22, 23, 24, 25})
    assert (splits[21], splits[26]) == ("train", "test")
    neighbours = itertools.pairwise(sorted(splits))
    gaps = {below: above - below for below, above in neighbours if splits[below] != splits[above]}
    assert len(gaps) == 9  # slabs 1|2|3|4|5|6|7, 9|10|11|12
    assert set(gaps.values()) == {5}


def test_masks_fit_their_images_and_the_classes(cases):
    classes = (BRAIN / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert classes == ["background", "csf", "grey_matter", "white_matter"]
    for case in cases:
        image, mask = read_png(case["image"]), read_png(case["mask"])
        assert image.shape == mask.shape == (233, 197)
        assert mask.max() < len(classes)
        assert np.count_nonzero(mask) >= 500
        assert not mask[image == 0].any(), "a label outside of the brain"


def test_slices_are_the_volume_in_display_orientation(cases, volume):
    ras = np.asanyarray(nib.as_closest_canonical(volume).dataobj)
    lps = ras[::-1, ::-1]  # the volume is left-right symmetric: only the second flip can be seen
    for case in cases:
        np.testing.assert_array_equal(read_png(case["image"]), lps[:, :, z_of(case)].T)


def test_posterior_is_down(cases):
    # The lowest slice cuts the brain stem and the cerebellum, which lie behind the middle.
    rows = np.nonzero(read_png(min(cases, key=z_of)["mask"]))[0]
    assert rows.mean() > 233 / 2


def test_the_volume_has_geometry(volume):
    assert volume.shape == (197, 233, 189)
    assert volume.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.header.get_zooms() == (1, 1, 1)
    assert volume.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(volume.get_qform(), volume.affine)
    np.testing.assert_array_equal(volume.affine[:3, 3], (-98, -134, -72))


def test_small_and_licensed():
    files = [path for path in BRAIN.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    notice = (BRAIN / "LICENSE").read_text(encoding="utf-8")
    assert "Louis Collins, McConnell Brain" in notice
    assert "Permission to use, copy, modify, and distribute" in notice


@pytest.mark.skipif(not WHEEL, reason="SEGAPP_NILEARN_WHEEL does not name the nilearn 0.14.1 wheel")
def test_the_script_makes_the_same_bytes_again(tmp_path):
    script = BRAIN / "make_brain.py"
    subprocess.run([sys.executable, script, WHEEL, tmp_path], check=True)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) == 2 * len(read_cases()) + 3
    different = [str(p) for p in made if (tmp_path / p).read_bytes() != (BRAIN / p).read_bytes()]
    assert different == []
