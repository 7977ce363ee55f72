"""What can be taken away of a result: files that are there, whole, and the same as predict's."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import write_series
from PIL import Image

from segapp.batch import list_inputs, predict_batch, predict_entry
from segapp.errors import OutputError
from segapp.formats import read_labels
from segapp.predict import Predictor
from segapp.preprocess import Preprocessing, to_slices
from segapp.report.reading import _EDGES, _lettered
from segapp.scan import Assessment, Segmentation, make_classes
from segapp.takeaway import Reading, downloads, write_download


class Bands:
    """An engine to reckon with: below 50 background, below 150 one class, above it the other."""

    batch_size, calls_at_once, precision = 4, 1, "fp32"

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        band = np.digitize(batch[:, 0], (50, 150))
        return 10 * np.eye(3, dtype=np.float32)[band].transpose(0, 3, 1, 2)


HOSTILE = "</td><script>alert(1)</script>"
CLASSES = make_classes(["background", "bone", HOSTILE], [0, 100, 200])
AS_IT_IS = Preprocessing(channels=1, stride=1, normalisation="imagenet", shift=(0.0,), scale=(1.0,))
PREDICTOR = Predictor(Bands(), AS_IT_IS, CLASSES)
OBLIQUE = np.array([[0, -2.0, 0.1, 5], [-1, 0.0, 0.2, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


def voxels(shape: tuple[int, ...]) -> np.ndarray:
    found = np.zeros(shape, np.uint8)
    found[2:5, 3:6], found[7:9, 1:4] = 100, 200
    return found


def write_source(name: str, folder: Path) -> Path:
    path = folder / name
    if name == "series":
        write_series(path, voxels((12, 9, 3)).transpose(2, 1, 0).astype(np.int16))
    elif ".nii" in name:
        nib.save(nib.Nifti1Image(voxels((12, 9, 4)), OBLIQUE), path)
    elif name.endswith(".nrrd"):
        size = "dimension: 3\nsizes: 12 9 1\nencoding: raw\nendian: little"
        head = f"NRRD0004\ntype: uint8\n{size}\n\n"
        path.write_bytes(head.encode() + voxels((12, 9)).tobytes(order="F"))
    else:
        Image.fromarray(voxels((12, 9)).T).save(path)
    return path


SOURCES = {
    "a.png": ["same", "nifti"],
    "a.bmp": ["same", "nifti"],
    "a.tif": ["same", "nifti", "png"],
    "a.nii.gz": ["same"],
    "a.nii": ["same", "nifti"],
    "a.nrrd": ["same", "nifti", "png"],
    "series": ["same", "dicomseg"],
}


@pytest.fixture
def read_back(tmp_path):
    def make(name: str = "a.nii.gz", **more: object) -> Reading:
        (entry,) = list_inputs([write_source(name, tmp_path)])
        segmentation, outcome = predict_entry(PREDICTOR, entry, tmp_path / "first.nii")
        return Reading(entry, segmentation, outcome, name, "hands", **more)  # type: ignore

    return make


@pytest.mark.parametrize("name", SOURCES)
def test_every_download_on_offer_can_be_had(read_back, tmp_path, name):
    r = read_back(name)
    offered = downloads(r.entry, r.segmentation)
    assert [d.kind for d in offered] == [*SOURCES[name], "csv", "report", "zip"]
    assert len({d.name for d in offered}) == len({d.label for d in offered}) == len(offered)
    masks = [d for d in offered if d.kind not in ("csv", "report", "zip")]
    assert all(re.fullmatch(r"Mask \(.+\)", d.label) for d in masks)
    assert masks[0].note == f"Values in a mask: 0 background, 100 bone, 200 {HOSTILE}"
    assert masks[0].label[6:-1] in offered[-1].label  # what the archive's mask is
    named = [d.kind for d in offered if "Identifies the patient" in d.note]
    assert named == [kind for kind in SOURCES[name] if kind == "dicomseg"]
    assert ("not in it" in offered[-1].note) == bool(named)
    for d in offered:
        path = write_download(d.kind, r, tmp_path / "taken")
        assert path == tmp_path / "taken" / d.name
        if d.kind in ("same", "nifti", "png"):
            mask = read_labels(path).voxels[0]
            assert np.array_equal(mask, r.segmentation.mask_values())
            assert np.unique(mask).tolist() == [0, 100, 200]
        if d.kind == "dicomseg":
            assert pydicom.dcmread(path).Modality == "SEG"
    names = set(zipfile.ZipFile(tmp_path / "taken" / offered[-1].name).namelist())
    assert names == {d.name for d in offered if d.kind in ("same", "csv", "report")}


@pytest.mark.parametrize("name", SOURCES)
def test_the_mask_is_the_file_that_predict_writes(read_back, tmp_path, name):
    r = read_back(name)
    predict_batch(PREDICTOR, [r.entry], tmp_path / "out")
    taken = write_download("same", r, tmp_path / "taken")
    (written,) = (p for p in (tmp_path / "out").iterdir() if p.name != "predictions.csv")
    assert taken.name == written.name
    assert taken.read_bytes() == written.read_bytes()


def test_what_is_no_download_is_refused(read_back, tmp_path):
    r = read_back("a.nii")
    with pytest.raises(OutputError, match="expected same, nifti"):
        write_download("exe", r, tmp_path)
    with pytest.raises(OutputError, match="a volume of"):
        write_download("png", r, tmp_path)
    assert not list(tmp_path.glob("*.png"))


def page(path: Path) -> str:
    text = path.read_text()
    assert len(text) < 400_000
    return text


def test_the_report_shows_three_planes_and_measures(read_back, tmp_path):
    text = page(write_download("report", read_back(), tmp_path / "taken"))
    assert len(re.findall("<img ", text)) == 6
    for title in ("Axial slice", "Coronal slice", "Sagittal slice"):
        assert title in text
    assert "not a medical device" in text
    assert "Corrected by hand" not in text
    assert "Review this result" not in text
    assert "of the part that was scanned" in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text  # a class is called so
    assert re.search(r"bone</th><td class=\"n strong\">0\.2\d", text)  # 36 voxels of 6.1 mm³
    sizes = {
        t: (int(w), int(h))
        for w, h, t in re.findall(r'width="(\d+)" height="(\d+)" alt="(\w+)', text)
    }
    assert sizes["Axial"] == (18 * 8, 12 * 8)  # mm, pixels of 1 mm drawn 8 times as large


def test_the_report_of_an_image_shows_it_once(read_back, tmp_path):
    text = page(write_download("report", read_back("a.png"), tmp_path / "taken"))
    assert len(re.findall("<img ", text)) == 2
    assert "no areas or volumes" in text
    assert "of the part that was scanned" not in text


def test_the_report_says_what_is_in_doubt_and_what_was_corrected(read_back, tmp_path):
    r = read_back(corrected_voxels=1234)
    r.outcome.status, r.outcome.reason = "review", f"unlike {HOSTILE}"
    r.outcome.warnings = (f"warned {HOSTILE}",)
    r.outcome.estimated_dice = 0.42
    text = page(write_download("report", r, tmp_path / "taken"))
    assert re.search(r"1.234 voxels differ from the model", text)
    assert "was to be reviewed" in text
    assert text.index("to be reviewed") < text.index("Pictures</h2>")
    assert "<dd>0.42</dd>" in text
    assert "before it was corrected" in text
    assert "<dt>Model&#39;s own estimated Dice</dt>" in text
    assert "a corrected size has none" in text
    assert "<script" not in text


def test_a_dicom_segmentation_says_that_it_was_corrected(read_back, tmp_path):
    """And is another object than the model's own, even of the same labels."""
    own, by_hand = (
        pydicom.dcmread(write_download("dicomseg", read_back("series", **how), tmp_path / name))
        for name, how in (("own", {}), ("hand", {"corrected_voxels": 3}))
    )
    assert own.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert {s.SegmentAlgorithmType for s in by_hand.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert by_hand.SeriesDescription == "segapp segmentation, corrected by hand"
    assert by_hand.ContentDescription == "Corrected by hand"
    assert "hand" not in own.SeriesDescription + (own.ContentDescription or "")
    assert by_hand.SOPInstanceUID != own.SOPInstanceUID


@pytest.mark.parametrize("turns", ["LPS", "RAS", "SRP", "AIL"])
def test_the_letters_on_the_reports_pictures_are_the_patients_sides(turns):
    """By the place in mm of the voxels at a picture's edges, whatever way the file lies."""
    shape = (4, 5, 6)
    start, end = nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(turns)
    image = nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4))
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    index = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"))
    mm = np.einsum("ab,b...->a...", image.affine[:3, :3], index)
    for axis, edges in _EDGES.items():
        for component, sides in zip(mm, ("RL", "AP", "SI"), strict=True):
            plane = to_slices(component[None], image.affine, axis)[0, 0]
            steps = (plane[0, 0] - plane[0, -1], plane[0, -1] - plane[0, 0])
            steps += (plane[0, 0] - plane[-1, 0], plane[-1, 0] - plane[0, 0])
            for letter, step in zip(edges, steps, strict=True):
                assert (letter in sides) == bool(step)
                assert not step or letter == sides[0 if step > 0 else 1]


def test_the_reports_pictures_have_letters_where_the_place_is_known():
    black = np.zeros((2, 60, 80, 3), np.uint8)
    assert (_lettered(black[0], "") == 0).all()
    found = _lettered(black[0], "RLAP").max(2) > 100
    middle = slice(24, 36)
    assert found[middle, :14].any()
    assert found[middle, -14:].any()
    assert found[:14, 34:46].any()
    assert found[-14:, 34:46].any()
    assert not found[16:44, 16:64].any()


def test_the_report_gives_ranges(read_back, tmp_path):
    r = read_back("a.png")
    ranges = (None, (4.0, 12.0), None)
    seg = r.segmentation
    judged = Assessment(0.9, 0.1, (), ranges, promised=0.8)
    seg = Segmentation(seg.labels, seg.scan, CLASSES, assessment=judged)
    r.outcome.range_coverage = 0.8
    text = page(write_download("report", Reading(r.entry, seg, r.outcome, "a", "m"), tmp_path))
    assert "<small>4–12</small>" in text
    assert "about 80 %" in text


def test_the_report_of_noise_stays_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 210, 190)).astype(np.uint8)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "noise.nii")
    (entry,) = list_inputs([tmp_path / "noise.nii"])
    segmentation, outcome = predict_entry(PREDICTOR, entry, tmp_path / "first.nii")
    page(write_download("report", Reading(entry, segmentation, outcome, "n", "m"), tmp_path))
