"""What is measured of a result, and a result beside somebody's mask."""

from __future__ import annotations

import csv
import tracemalloc
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series
from PIL import Image
from scipy import ndimage

from segapp import measure as module
from segapp import metrics
from segapp.agreement import compare_labels, read_reference, reference_labels, taken_for
from segapp.errors import ScanError
from segapp.measure import UNRANGED, count_components, measure, measures_json, write_measures
from segapp.outcomes import Outcome
from segapp.scan import Assessment, Scan, Segmentation, make_classes

CLASSES = make_classes(["background", "bone", "skin", "air"], [0, 100, 200, 7])
MM = np.diag([1.0, 2, 5, 1])  # a voxel is 10 mm³ = 0.01 ml, a pixel 2 mm²


def volume(affine: np.ndarray | None = MM) -> Segmentation:
    """Two pieces of bone of 8 and 1 voxels that meet at a corner, of 10 and 100; no skin; air
    everywhere on one side, of 3."""
    voxels, labels = np.zeros((1, 6, 5, 4), np.int16), np.zeros((6, 5, 4), np.uint8)
    labels[0:2, 0:2, 0:2], voxels[0, 0:2, 0:2, 0:2] = 1, 10
    labels[2, 2, 2], voxels[0, 2, 2, 2] = 1, 100
    labels[5], voxels[0, 5] = 3, 3
    return Segmentation(labels, Scan(voxels, affine, Path("a.nii")), CLASSES)


def image(pixels: np.ndarray, labels: np.ndarray) -> Segmentation:
    """(J, I, C) colours or greys and (J, I) labels."""
    voxels = pixels.reshape(*labels.shape, -1).transpose(2, 1, 0)[..., None]
    return Segmentation(labels.T[..., None], Scan(voxels, None, Path("a.png")), CLASSES)


def test_size_pieces_and_mean_of_a_volume():
    bone, skin, air = measure(volume())
    assert (bone.name, bone.voxels, bone.unit, bone.components) == ("bone", 9, "ml", 2)
    assert bone.size == pytest.approx(0.09)
    assert bone.mean_intensity == pytest.approx((8 * 10 + 100) / 9)
    assert (skin.voxels, skin.size, skin.components, skin.mean_intensity) == (0, 0, 0, None)
    assert (air.voxels, air.components, air.mean_intensity) == (20, 1, 3)
    assert bone.low is None


def test_a_slice_has_an_area_and_an_image_neither():
    labels = np.zeros((6, 5, 1), np.uint8)
    labels[:2, 0] = 2
    scan = Scan(np.ones((1, 6, 5, 1), np.float32), MM, Path("a.nii"))
    assert (measure(Segmentation(labels, scan, CLASSES))[1].size, "mm2") == (4.0, "mm2")
    assert measures_json(measure(Segmentation(labels, scan, CLASSES)))["unit"] == "mm²"
    without = measure(Segmentation(labels, Scan(scan.voxels, None, scan.source), CLASSES))[1]
    assert (without.voxels, without.size, without.unit) == (2, None, None)


def test_pieces_of_an_image_join_by_edges_and_colours_count_by_their_luminance():
    labels = np.array([[1, 0, 1], [0, 1, 1]])  # 3 in one piece, 1 that touches a corner
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = (100, 0, 0)
    bone = measure(image(pixels, labels))[0]
    assert bone.components == 2
    assert bone.mean_intensity == pytest.approx(0.299 * 100 / 4)


def test_ranges_are_those_of_the_table_of_results():
    ranges = (None, (7.2, 11.5), None, None)
    judged = Assessment(0.9, None, (), ranges, promised=0.8)
    seg = volume()
    seg = Segmentation(seg.labels, seg.scan, CLASSES, assessment=judged)
    bone, skin, _ = measure(seg)
    assert (bone.low, bone.high) == (pytest.approx(0.07), pytest.approx(0.12))  # floor and ceiling
    assert skin.low is None
    told = measures_json(measure(seg), judged.promised)
    assert "about 80 % of scans" in told["note"]
    assert "few patients in validation" in told["note"]
    assert "few patients" not in str(measures_json(measure(seg), 0.9)["note"])
    assert measures_json(measure(seg), None, corrected=True)["note"] == UNRANGED
    assert told["classes"][1]["low"] is None
    unplaced = Segmentation(seg.labels, volume(None).scan, CLASSES, assessment=judged)
    assert (measure(unplaced)[0].low, measure(unplaced)[0].high) == (7, 12)  # in voxels


@pytest.mark.parametrize("place", [(4, 2, 0), (4, 2, 6), (0, 2, 3), (4, 5, 3)])
def test_sizes_of_what_reaches_the_edge_are_told_to_be_those_of_a_part(place, tmp_path):
    labels = np.zeros((8, 6, 7), np.uint8)
    labels[1:-1, 1:-1, 1:-1] = 1
    labels[place] = 2
    scan = Scan(np.ones((1, *labels.shape), np.float32), MM, Path("a.nii"))
    found = measure(Segmentation(labels, scan, CLASSES))
    assert [m.at_edge for m in found] == [False, True, False]
    said = measures_json(found)["edge_note"]
    assert said.startswith(f"{CLASSES[2].name} reaches the edge of the scan")
    assert said.endswith("its size is of the part that was scanned.")
    write_measures(found, tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        assert [row["at_edge"] for row in csv.DictReader(file)] == ["no", "yes", "no"]
    labels[0, 0, 0] = 1
    said = measures_json(measure(Segmentation(labels, scan, CLASSES)))["edge_note"]
    assert said.startswith(f"{CLASSES[1].name}, {CLASSES[2].name} reach the edge")


def test_an_image_and_a_volume_without_a_place_have_no_edge(tmp_path):
    labels = np.ones((8, 6, 7), np.uint8)
    for there, affine in ((labels, None), (labels[:, :, :1], MM), (labels[:1], MM)):
        scan = Scan(np.ones((1, *there.shape), np.float32), affine, Path("a.nii"))
        found = measure(Segmentation(there, scan, CLASSES))
        assert {m.at_edge for m in found} == {None}
        assert measures_json(found)["edge_note"] is None
        write_measures(found, tmp_path / "m.csv")
        with (tmp_path / "m.csv").open(newline="") as file:
            assert {row["at_edge"] for row in csv.DictReader(file)} == {""}


@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_are_the_same_slab_by_slab(monkeypatch, order):
    rng = np.random.default_rng(0)
    labels = np.array(rng.integers(0, 3, (13, 11, 9)), np.uint8, order=order)
    whole = [ndimage.label(labels == index)[1] for index in (1, 2, 3)]
    assert whole[0] > 20
    monkeypatch.setattr(module, "_PIECE", 1)  # a slab is a plane
    assert [count_components(labels, index) for index in (1, 2, 3)] == whole


def test_labels_that_lie_otherwise_than_the_voxels_are_measured_alike():
    seg = volume()
    turned = Segmentation(np.asfortranarray(seg.labels), seg.scan, CLASSES)
    assert measure(turned) == measure(seg)


def test_the_table_has_a_line_for_each_class(tmp_path):
    outcome = Outcome(Path("a.nii"), status="review", reason="odd", warnings=("w",))
    outcome.estimated_dice = 0.51234567
    write_measures(measure(volume()), tmp_path / "m.csv", outcome, corrected_voxels=4)
    with (tmp_path / "m.csv").open(newline="") as file:
        bone, skin, air = csv.DictReader(file)
    assert list(bone)[:8] == [
        *("class", "voxels", "size", "unit", "low", "high", "components", "mean_intensity")
    ]
    assert (bone["class"], bone["voxels"], bone["size"], bone["unit"]) == (
        "bone",
        "9",
        "0.09",
        "ml",
    )
    assert (skin["mean_intensity"], air["mean_intensity"]) == ("", "3")
    assert (air["status"], air["estimated_dice"], air["corrected_voxels"]) == (
        *("review", "0.512346", "4"),
    )
    write_measures(measure(volume()), tmp_path / "m.csv")
    assert "status" not in (tmp_path / "m.csv").read_text()


@pytest.mark.parametrize("shape", [(7,), (3, 50, 70), (50, 70, 1), (0, 4), ()])
def test_confusion_in_pieces_is_that_of_the_whole(monkeypatch, shape):
    rng = np.random.default_rng(1)
    truth = np.asarray(rng.integers(0, 4, shape), np.uint8)
    truth = np.where(truth == 3, 255, truth)
    prediction = np.asfortranarray(np.asarray(rng.integers(0, 3, shape), np.uint8))
    expected = np.zeros((3, 3), np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t < 3:
            expected[t, p] += 1
    monkeypatch.setattr(metrics, "_PIECE", 100)
    for given in (truth, np.asfortranarray(truth)):
        assert np.array_equal(metrics.confusion(given, prediction, 3), expected)


def test_confusion_takes_little_memory():
    truth = np.zeros((300, 256, 256), np.uint8)  # 20 million voxels: 160 MB as int64
    tracemalloc.start()
    try:
        metrics.confusion(truth, np.moveaxis(truth, 0, 2).reshape(truth.shape), 4)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        metrics.confusion(truth.transpose(2, 1, 0), truth.transpose(2, 1, 0), 4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 40e6


def png(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def test_a_reference_mask_is_compared_class_by_class(tmp_path):
    labels = np.array([[1, 1, 0], [2, 0, 0]])
    seg = image(np.zeros((2, 3), np.uint8), labels)
    path = png(tmp_path / "mask.png", np.array([[100, 0, 0], [9, 0, 0]]))
    found = reference_labels(path, seg.scan, CLASSES, ignore=9)
    assert found.shape == seg.labels.shape
    assert found[:, :, 0].T.tolist() == [[1, 0, 0], [255, 0, 0]]
    # bone: 2 · 1 / (1 + 2); skin is ignored where it is, air is nowhere
    assert compare_labels(found, seg.labels, CLASSES) == {
        "bone": pytest.approx(2 / 3),
        "skin": None,
        "air": None,
    }


def test_a_reference_that_does_not_fit_says_how(tmp_path):
    seg = image(np.zeros((2, 3), np.uint8), np.zeros((2, 3), int))
    with pytest.raises(ScanError, match=r"is 3×3 but its image a\.png is 3×2"):
        reference_labels(png(tmp_path / "big.png", np.zeros((3, 3))), seg.scan, CLASSES)
    with pytest.raises(ScanError, match=r"mask value 5 is outside .* expected are .* 100 bone"):
        reference_labels(png(tmp_path / "five.png", np.full((2, 3), 5)), seg.scan, CLASSES)


LPS = np.array([[-0.7, 0.05, 0, 30], [0.05, -0.8, 0, 40], [0, 0, 2, -9], [0, 0, 0, 1]])


def volume_of(labels: np.ndarray) -> Segmentation:
    scan = Scan(np.zeros((1, *labels.shape), np.int16), LPS, Path("a"))
    return Segmentation(labels.astype(np.uint8), scan, CLASSES)


@pytest.mark.parametrize(
    "turns", [("L", "P", "S"), ("R", "A", "S"), ("S", "R", "P"), ("A", "I", "L")]
)
def test_a_reference_whose_axes_run_otherwise_is_turned(turns, tmp_path):
    """Lossless: as nibabel turns it, over the same place."""
    labels = np.random.default_rng(0).integers(0, 3, (5, 4, 3))
    values = np.array([0, 100, 200], np.int16)[labels]
    start = nib.io_orientation(LPS)
    change = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(turns))
    nib.save(nib.Nifti1Image(values, LPS).as_reoriented(change), tmp_path / "mask.nii.gz")
    seg = volume_of(labels)
    found = reference_labels(tmp_path / "mask.nii.gz", seg.scan, CLASSES)
    assert np.array_equal(found, labels)
    moved = LPS.copy()
    moved[0, 3] += 3
    nib.save(nib.Nifti1Image(values, moved).as_reoriented(change), tmp_path / "moved.nii.gz")
    with pytest.raises(ScanError, match="image a"):
        reference_labels(tmp_path / "moved.nii.gz", seg.scan, CLASSES)


def test_a_reference_may_be_the_one_thing_in_an_archive(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (8, 6, 3))
    slices = write_series(tmp_path / "m", 100 * labels.transpose(2, 1, 0).astype(np.int16))
    for name, files in (("one.zip", slices), ("two.zip", [*slices, tmp_path / "a.png"])):
        png(tmp_path / "a.png", labels[:, :, 0])
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in files:
                archive.write(file, f"mask/{file.name}")
    mask = read_reference(tmp_path / "one.zip")
    scan = Scan(np.zeros((1, 8, 6, 3), np.int16), mask.affine, Path("a"))
    assert np.array_equal(reference_labels(tmp_path / "one.zip", scan, CLASSES), labels)
    with pytest.raises(ScanError, match="is an archive of 2 scans; expected one mask"):
        read_reference(tmp_path / "two.zip")


def test_a_mask_of_one_value_says_which_class_it_is_taken_for():
    def mask(*values: int) -> Scan:
        return Scan(np.array(values, np.int32)[None, :, None, None], None, Path("m"))

    three = make_classes(["background", "csf", "grey"], [0, 1, 2])
    assert "one value, 1: it is compared as csf" in taken_for(mask(0, 1), three)
    assert taken_for(mask(0, 1, 2), three) == taken_for(mask(0, 0), three) == ""
    assert taken_for(mask(0, 1), three[:2]) == ""
