"""Corrected results as training cases: what is kept, what is not, and that it can be trained on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import draw_case, write_png_dataset
from dicom_files import image, write_series
from PIL import Image
from test_checkpoint import WEIGHTS, make_info
from test_takeaway import AS_IT_IS, OBLIQUE, Bands, voxels

from segapp.batch import list_inputs
from segapp.cases import find_cases
from segapp.check import read_case
from segapp.checkpoint import INFO_NAME, MODEL_NAME, read_info, save_model
from segapp.corrections import changed_voxels, keep_case, with_labels
from segapp.errors import DataError
from segapp.files import sha256
from segapp.formats import Entry, read_scan
from segapp.further import training_command
from segapp.predict import Predictor
from segapp.scan import Segmentation, make_classes

CLASSES = make_classes(["background", "bone", "skin"], [0, 100, 200])
NAME = "Mueller^Hans"
REPO = Path(__file__).parents[1]


def segmented(entry: Entry) -> Segmentation:
    return Predictor(Bands(), AS_IT_IS, CLASSES)(read_scan(entry.paths))


def painted(segmentation: Segmentation) -> np.ndarray:
    labels = np.array(segmentation.labels, np.uint8)
    labels[:2, :3] = 2
    return labels


def keep(path: Path, folder: Path, name: str | None = None):
    """Keep a scan with some skin painted in: the case, and the corrected labels."""
    (entry,) = list_inputs([path])
    if name:
        entry = Entry(name, entry.paths, entry.folder)
    segmentation = segmented(entry)
    labels = painted(segmentation)
    return keep_case(segmentation, labels, entry, folder, model_name="hands"), labels


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = voxels((12, 9)).T + np.uint8(seed)
    Image.fromarray(pixels).save(path)
    return path


def series(folder: Path, **tags: object) -> Path:
    array = voxels((12, 9, 4)).transpose(2, 1, 0).astype(np.int16) - 50
    write_series(folder, array, **tags)
    return folder


def check(folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "segapp.cli", "check", str(folder), "--json"],
        capture_output=True,
        text=True,
        cwd=folder.parent,  # where it leaves what it found
        env=os.environ | {"PYTHONPATH": str(REPO)},
    )
    assert done.returncode in (0, 2), done.stderr
    return json.loads(done.stdout)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]


def test_changes_are_counted_from_class_to_class():
    before, after = np.array([[0, 0, 1, 2]], np.uint8), np.array([[0, 2, 2, 2]], np.uint8)
    found = changed_voxels(before, after, CLASSES)
    assert found == {"background → skin": 1, "bone → skin": 1}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("p.png", ".tif"),
        ("p.jpg", ".tif"),
        ("p.TIF", ".tif"),
        ("p.nii", ".nii.gz"),
        ("p.nii.gz", ".nii.gz"),
    ],
)
def test_a_scan_is_kept_without_its_header_and_read_back_as_painted(tmp_path, name, suffix):
    path = tmp_path / NAME / name
    if ".nii" in name:
        path.parent.mkdir()
        written = nib.Nifti1Image(voxels((12, 9, 4)), OBLIQUE)
        written.header["descrip"] = NAME.encode()
        nib.save(written, path)
    else:
        picture(path)
    folder = tmp_path / "kept"
    kept, labels = keep(path, folder)
    image = folder / "images" / f"{kept.case}{suffix}"
    assert kept.case == f"case-{sha256(image)[:12]}"
    assert (kept.cases, kept.replaced) == (1, False)
    assert kept.changed == (labels != segmented(list_inputs([path])[0]).labels).sum() > 0
    if suffix == ".nii.gz":
        assert not nib.load(image).header["descrip"].item()
    assert (folder / "masks" / f"{kept.case}{suffix}").is_file()
    assert folder.stat().st_mode & 0o777 == 0o700
    dataset = find_cases(folder)
    assert dataset.class_names == {"background": 0, "bone": 100, "skin": 200}
    scan, read = read_case(dataset.cases[0])
    given = read_scan(path)
    assert np.array_equal(scan.voxels, given.voxels)
    assert scan.voxels.dtype == given.voxels.dtype
    assert np.array_equal(read.voxels[0], np.array([0, 100, 200])[labels])
    (line,) = lines(folder)
    assert line["image_sha256"] == sha256(image)
    assert sum(line["changed"].values()) == kept.changed


def test_dicom_is_kept_without_its_patient(tmp_path):
    tags = {"PatientName": NAME, "PatientID": "MRN4711", "AccessionNumber": "ACC99"}
    path = series(tmp_path / "Mueller", **tags, SeriesDescription="of Mueller")
    folder = tmp_path / "kept"
    kept, labels = keep(path, folder)
    (case,) = find_cases(folder).cases
    scan, mask = read_case(case)
    given = read_scan(path)
    assert np.array_equal(scan.voxels, given.voxels)
    assert scan.voxels.min() == -50
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine, given.affine, atol=1e-4)
    assert np.array_equal(mask.voxels[0], np.array([0, 100, 200])[labels])
    assert re.fullmatch("patient-[0-9a-f]{12}", case.patient)
    guessed = hashlib.sha256(b"MRN4711" + bytes(1)).hexdigest()[:12]
    assert guessed not in case.patient
    for file in folder.rglob("*"):
        assert "Mueller" not in str(file.relative_to(folder))
        if file.is_file():
            content = (
                nib.load(file).header.binaryblock if ".nii" in file.name else file.read_bytes()
            )  # type: ignore
            for word in (b"Mueller", b"MRN4711", b"ACC99", str(tmp_path).encode()):
                assert word not in content, file
    assert kept.cases == 1


@pytest.mark.parametrize("colours", [False, True])
def test_a_picture_without_spacing_in_dicom_is_kept_as_it_is_shown(tmp_path, colours):
    pixels = voxels((12, 9)).T.astype(np.int16)
    if colours:
        pixels = np.dstack([pixels, pixels // 2, pixels]).astype(np.uint8)
    image(tmp_path / "x.dcm", pixels, modality="US" if colours else "CT")
    (entry,) = list_inputs([tmp_path / "x.dcm"])
    scan = read_scan(entry.paths)
    assert scan.affine is None
    labels = np.zeros(scan.shape, np.uint8)
    folder = tmp_path / "kept"
    keep_case(Segmentation(labels, scan, CLASSES), labels, entry, folder, model_name="m")
    (case,) = find_cases(folder).cases
    found, _ = read_case(case)
    assert found.affine is None
    assert np.array_equal(found.voxels, scan.voxels)


def test_scans_of_an_archive_are_kept(tmp_path):
    path = picture(tmp_path / "a.png")
    slices = write_series(
        tmp_path / "series", voxels((12, 9, 3)).transpose(2, 1, 0).astype(np.int16), PatientID="7"
    )
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(path, "a.png")
        for file in slices:
            archive.write(file, f"ct/{file.name}")
    folder = tmp_path / "kept"
    for entry in list_inputs([tmp_path / "all.zip"]):
        segmentation = segmented(entry)
        labels = painted(segmentation)
        keep_case(segmentation, labels, entry, folder, model_name="m")
    ct, png = sorted(find_cases(folder).cases, key=lambda case: case.images[0].suffix)
    assert np.array_equal(read_case(png)[0].voxels, read_scan(path).voxels)
    assert np.array_equal(read_case(ct)[0].voxels, read_scan(slices).voxels)
    assert ct.patient.startswith("patient-")


def test_names_of_files_stay_out_of_the_record(tmp_path):
    path = picture(tmp_path / "Mueller Hans.png")
    (entry,) = list_inputs([path])
    found = segmented(entry)
    warned = (f"{path}: odd", "Mueller Hans.png is odd", "Mueller Hans, too", "a plain one")
    found = replace(found, warnings=warned)
    keep_case(found, painted(found), entry, tmp_path / "kept", model_name="m")
    assert lines(tmp_path / "kept")[0]["warnings"] == [
        *("the scan: odd", "the scan is odd", "the scan, too", "a plain one")
    ]


def test_the_same_scan_again_replaces_its_mask_and_keeps_what_somebody_wrote(tmp_path):
    path, folder = picture(tmp_path / "p.png"), tmp_path / "kept"
    first, labels = keep(path, folder)
    table = folder / "cases.csv"
    edited = (
        table.read_text().replace(f",{first.case},", ",anna,train").replace("split", "split,by")
    )
    table.write_text(edited.rstrip(",\n") + ",me\n")
    (entry,) = list_inputs([path])
    labels[:] = 1
    kept = keep_case(segmented(entry), labels, entry, folder, model_name="hands")
    assert (kept.case, kept.cases, kept.replaced) == (first.case, 1, True)
    (case,) = find_cases(folder).cases
    assert (case.patient, case.split) == ("anna", "train")
    assert table.read_text().endswith(",me\n")
    assert (read_case(case)[1].voxels == 100).all()
    assert len(lines(folder)) == 2


def test_the_models_own_result_never_replaces_a_mask_by_hand(tmp_path):
    path, folder = picture(tmp_path / "p.png"), tmp_path / "kept"
    kept, labels = keep(path, folder)
    mask = next((folder / "masks").iterdir())
    before = mask.read_bytes()
    (entry,) = list_inputs([path])
    own = segmented(entry)
    with pytest.raises(DataError, match="nothing was corrected here; it stays as it is"):
        keep_case(own, np.array(own.labels, np.uint8), entry, folder, model_name="hands")
    assert mask.read_bytes() == before
    assert len(lines(folder)) == 1
    for value in (1, 2):
        labels[:] = value
        keep_case(own, labels, entry, folder, model_name="hands")
    aside = [folder / "replaced" / f"{kept.case}-{n}.tif" for n in (1, 2)]
    assert sorted((folder / "replaced").iterdir()) == aside
    assert aside[0].read_bytes() == before
    said = [line.get("replaced") for line in lines(folder)]
    assert said == [None, *(p.relative_to(folder).as_posix() for p in aside)]
    assert "replaced" not in json.dumps(check(folder))
    keep_case(own, labels, entry, folder, model_name="hands")  # the same once more
    assert len(list((folder / "replaced").iterdir())) == 2


def test_slices_of_one_patient_stay_together_and_others_apart(tmp_path):
    folder = tmp_path / "kept"
    for n, name in enumerate(("p7_slice012", "p7_slice013", "p8_slice012", "left", "right")):
        keep(picture(tmp_path / f"{n}" / f"{name}.png", seed=n), folder)
    keep(picture(tmp_path / "x" / "a.png", seed=8), folder, name="Anna/a")
    keep(picture(tmp_path / "x" / "b.png", seed=9), folder, name="Anna/b")
    p7, p7_too, p8, left, right, anna, anna_too = (c.patient for c in find_cases(folder).cases)
    assert p7 == p7_too
    assert anna == anna_too
    assert len({p7, p8, left, right, anna}) == 5
    text = (folder / "cases.csv").read_text() + (folder / "provenance.jsonl").read_text()
    assert "p7" not in text
    assert "Anna" not in text


def test_the_folder_is_sound(tmp_path):
    folder = tmp_path / "kept"
    for n in range(2):
        keep(picture(tmp_path / f"{n}" / "p.png", seed=n), folder)
    found = check(folder)
    assert not [f for f in found["findings"] if f["level"] == "error"], found


def test_voxels_that_are_not_finite_are_kept_as_they_were_read(tmp_path):
    array = voxels((12, 9, 4)).astype(np.float32)
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, OBLIQUE), tmp_path / "a.nii.gz")
    keep(tmp_path / "a.nii.gz", tmp_path / "kept")
    (case,) = find_cases(tmp_path / "kept").cases
    scan, _ = read_case(case)
    assert not scan.warnings
    assert np.array_equal(scan.voxels[0], np.nan_to_num(array))


def test_voxels_in_a_file_beside_the_header_are_kept(tmp_path):
    (tmp_path / "a.raw").write_bytes(voxels((12, 9, 4)).tobytes(order="F"))
    head = "ObjectType = Image\nNDims = 3\nDimSize = 12 9 4\nElementSpacing = 1 1 2\n"
    head += "ElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    (tmp_path / "a.mhd").write_text(head)
    kept, labels = keep(tmp_path / "a.mhd", tmp_path / "kept")
    (case,) = find_cases(tmp_path / "kept").cases
    scan, mask = read_case(case)
    assert case.images[0].name == f"{kept.case}.nii.gz"
    assert np.array_equal(scan.voxels[0], voxels((12, 9, 4)))
    assert np.array_equal(mask.voxels[0], np.array([0, 100, 200])[labels])


def test_what_the_data_set_cannot_hold_is_refused(tmp_path):
    path, folder = picture(tmp_path / "p.png"), tmp_path / "kept"
    (entry,) = list_inputs([path])
    segmentation = segmented(entry)
    good = painted(segmentation)

    def kept(labels=good, entry=entry, segmentation=segmentation):
        return keep_case(segmentation, labels, entry, folder, model_name="m")

    with pytest.raises(DataError, match="one a channel"):
        kept(entry=Entry("p", (path, path)))
    with pytest.raises(DataError, match="got class 3, expected 0…2"):
        kept(np.full_like(good, 3))
    with pytest.raises(DataError, match=r"expected \(12, 9, 1\) of uint8"):
        kept(good.astype(np.int64))
    assert not folder.exists()
    kept()
    other = make_classes(["background", "bone", "skin"], [0, 1, 2])
    with pytest.raises(DataError, match=r"declares .*100 bone.*, this model has .*1 bone.*another"):
        kept(segmentation=Segmentation(segmentation.labels, segmentation.scan, other))
    assert len(find_cases(folder).cases) == 1


def test_another_data_set_is_left_alone(tmp_path):
    data = write_png_dataset(tmp_path / "data", 2)
    before = sorted(data.rglob("*.png"))
    with pytest.raises(DataError, match="holds other files"):
        keep(picture(tmp_path / "p.png"), data)
    assert sorted(p for p in data.rglob("*") if p.is_file() and p.name != ".lock") == before


def test_a_crash_leaves_the_old_state(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    keep(picture(tmp_path / "0" / "p.png"), folder)
    before = {p: p.read_bytes() for p in folder.rglob("*.*") if p.suffix in (".png", ".csv")}

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("write_segmentation", "write_text", "write_table"):
        with monkeypatch.context() as patch:
            patch.setattr(f"segapp.corrections.{step}", crash)
            with pytest.raises(KeyboardInterrupt):
                keep(picture(tmp_path / "1" / "p.png", seed=1), folder)
        assert len(find_cases(folder).cases) == 1
        assert {p: p.read_bytes() for p in before} == before
        assert not list(folder.glob("*/.*"))
    assert keep(tmp_path / "1" / "p.png", folder)[0].cases == 2


def test_two_that_keep_at_once_lose_nothing(tmp_path):
    paths = [picture(tmp_path / f"{n}" / "p.png", seed=n) for n in range(8)]
    folder = tmp_path / "kept"
    threads = [threading.Thread(target=keep, args=(path, folder)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(find_cases(folder).cases) == 8
    assert len(lines(folder)) == 8


def test_corrected_labels_carry_no_figures_of_the_model(tmp_path):
    (entry,) = list_inputs([picture(tmp_path / "p.png")])
    segmentation = segmented(entry)
    assert segmentation.confidence is not None
    corrected = with_labels(segmentation, painted(segmentation))
    assert (corrected.confidence, corrected.assessment, corrected.soft) == (None, None, None)


def test_the_command_waits_for_a_second_patient_and_a_model(tmp_path):
    folder = tmp_path / "kept"
    command, note = training_command(folder, tmp_path)
    assert command is None
    assert "so far there are 0" in note
    keep(picture(tmp_path / "0" / "p1_slice1.png"), folder)
    keep(picture(tmp_path / "1" / "p1_slice2.png", seed=1), folder)
    command, note = training_command(folder, tmp_path)
    assert command is None
    assert "so far there are 1. Keep more" in note
    keep(picture(tmp_path / "2" / "p2_slice2.png", seed=2), folder)
    assert "not known" in training_command(folder, None)[1]
    (tmp_path / "export").mkdir()
    assert "is an export" in training_command(folder, tmp_path / "export")[1]


def test_an_export_is_trained_from_its_run_and_an_ensemble_not_at_all(tmp_path):
    folder, run = tmp_path / "kept", tmp_path / "run"
    for n in range(2):
        keep(picture(tmp_path / f"{n}" / "p.png", seed=n), folder)
    info = make_info()
    save_model(run / MODEL_NAME, WEIGHTS, info)
    (run / "openvino").mkdir()
    (run / "openvino" / INFO_NAME).write_text(read_info(run).model_dump_json())
    command, _ = training_command(folder, run / "openvino")
    assert f"model.init_from={run}" in shlex.split(command or "")
    moved = (run / "openvino").rename(tmp_path / "alone")
    assert training_command(folder, moved)[0] is None
    many = info.model_copy(deep=True)
    many.architecture.members = 2
    save_model(run / MODEL_NAME, WEIGHTS, many)
    command, note = training_command(folder, run)
    assert command is None
    assert "an ensemble of 2" in note


SMALL = ("model.encoder=resnet18", "optim.patch=64", "optim.batch_size=2", "train.precision=fp32")


def train(words: list[str], cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "segapp.cli", *words, "train.epochs=1", "train.steps_per_epoch=1"],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_command_trains_the_model_further_on_what_was_painted(tmp_path):
    data = write_png_dataset(tmp_path / "data", 4, values=(0, 100, 200))
    (data / "classes.txt").write_text("0 background\n100 bone\n200 skin\n")
    model, folder = tmp_path / "a model's run", tmp_path / "my corrections"
    words = [f"data.root={data}", f"train.out={model}", "model.encoder_weights=none", *SMALL]
    train(["train", *words], tmp_path)
    predictor = Predictor.load(model)
    expected = {}
    for n in range(3):
        path = tmp_path / f"{n}" / "scan.png"
        path.parent.mkdir()
        Image.fromarray(draw_case(n + 10)[0]).save(path)
        (entry,) = list_inputs([path])
        segmentation = predictor(read_scan(entry.paths))
        labels = painted(segmentation)
        kept = keep_case(segmentation, labels, entry, folder, model_name="a", model=model)
        expected[kept.case] = np.array([0, 100, 200])[labels]
    assert lines(folder)[0]["model_sha256"] == sha256(model / "model.safetensors")
    command, note = training_command(folder, model)
    assert command is not None, note
    program, *words = shlex.split(command)
    assert program == "segapp"
    train([*words, "optim.batch_size=2", "train.precision=fp32"], tmp_path)
    out = tmp_path / next(w for w in words if w.startswith("train.out=")).removeprefix("train.out=")
    assert (out / "model.safetensors").is_file()
    cases = find_cases(folder).cases
    assert {c.images[0].stem for c in cases} == set(expected)
    for c in cases:
        assert np.array_equal(read_case(c)[1].voxels[0], expected[c.images[0].stem])
