"""What took a scan: how a data set tells it, and that a scan of another kind is for review."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from batches import outcomes_of
from dicom_files import write_series
from test_batch import save_png
from test_checkpoint import KNOWN, make_info
from test_predict import CLASSES, BrightnessEngine

from segapp.batch import list_inputs
from segapp.cases import files_hash
from segapp.checkpoint import Architecture, DataRecord
from segapp.config import load_settings
from segapp.errors import ConfigError, ScanError
from segapp.formats import read_scan
from segapp.modality import common, mismatch, of_channels
from segapp.plan import make_plan
from segapp.predict import Predictor
from segapp.preprocess import Preprocessing, colour_doubt
from segapp.scan import Scan

STRANGE = "its header says CT, and the model was trained on MR"


def predictor(modality="unknown", learned=()):
    """Of a model that judges no results."""
    network = Architecture(name="unet", encoder="resnet18", in_channels=1, classes=3, residual=True)
    info = make_info(
        architecture=network,
        preprocessing=Preprocessing(channels=1),
        classes=CLASSES,
        training=KNOWN.model_copy(update={"modality": modality}),
        data=DataRecord(root="d", images={"train": list(learned)}),
        temperature=1.0,
    )
    return Predictor.of(BrightnessEngine(), info)


@pytest.mark.parametrize(
    ("names", "modality"),
    [
        (["CT"], "CT"),
        (["T1", "T2-FLAIR"], ""),
        (["T1", "FLAIR"], "MR"),
        (["t1_ce"], "MR"),
        (["CT", "PET"], ""),
        (["image"], ""),
        ([3], ""),
        ([], ""),
    ],
)
def test_names_of_channels(names, modality):
    assert of_channels(names) == modality


def test_a_data_set_has_the_modality_of_all_its_scans():
    assert common(["MR", "MR"]) == "MR"
    assert common(["CR", "DX"]) == "DX", "both are X-ray images"
    assert common(["MR", "CT"]) == common(["MR", ""]) == common(["OT"]) == common([]) == ""


def test_only_what_is_known_of_both_can_differ():
    assert mismatch("CT", "MR") == STRANGE
    for own, known in (("MR", "MR"), ("", "MR"), ("CT", "unknown"), ("OT", "MR"), ("CR", "DX")):
        assert mismatch(own, known) == ""


def plan_of(root: Path, *words: str):
    return make_plan(load_settings(None, [f"data.root={root}", *words]))


def write_msd(root: Path, lowest: int, **dataset):
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps({"labels": {"b": 0, "x": 1}, **dataset}))
    for n in range(4):
        voxels = np.random.default_rng(n).integers(lowest, 300, (36, 32, 4)).astype(np.int16)
        mask = np.zeros(voxels.shape, np.uint8)
        mask[10:20, 10:20] = 1
        affine = np.diag([1, 1, 4, 1.0])
        nib.save(nib.Nifti1Image(voxels, affine), root / "imagesTr" / f"c_{n}.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), root / "labelsTr" / f"c_{n}.nii.gz")
    return root


@pytest.mark.parametrize(
    ("dataset", "lowest", "words", "modality"),
    [
        ({"channel_names": {"0": "T1"}}, 0, [], "MR"),
        ({"modality": {"0": "MRI"}}, 0, [], "MR"),
        ({}, -1000, [], "CT"),
        ({}, 0, [], "unknown"),
        ({"channel_names": {"0": "T1"}}, 0, ["data.modality=US"], "US"),
        ({"channel_names": {"0": "T1"}}, 0, ["data.modality=unknown"], "unknown"),
    ],
)
def test_what_took_the_training_scans(tmp_path, dataset, lowest, words, modality):
    plan = plan_of(write_msd(tmp_path / "d", lowest, **dataset), *words)
    assert plan.settings.data.modality == plan.training.modality == modality
    said = [reason for reason in plan.reasons if reason.startswith("modality: ")]
    assert len(said) == (not words and modality != "unknown")
    assert str(plan.training).startswith(f"{modality}; ") == (modality != "unknown")


def test_headers_tell_what_took_the_training_scans(tmp_path):
    root = tmp_path / "d"
    for n in range(4):
        pixels = np.random.default_rng(n).integers(0, 300, (1, 36, 32)).astype(np.int16)
        write_series(root / "images" / f"c{n}", pixels, seed=f"s{n}", modality="MR")
        (root / "images" / f"c{n}" / "0000.dcm").rename(root / "images" / f"c{n}.dcm")
        (root / "images" / f"c{n}").rmdir()
        mask = np.zeros((32, 36, 1), np.uint8)
        mask[10:20, 10:20] = 1
        (root / "masks").mkdir(exist_ok=True)
        affine = read_scan(root / "images" / f"c{n}.dcm").affine
        nib.save(nib.Nifti1Image(mask, affine), root / "masks" / f"c{n}.nii.gz")
    assert plan_of(root).training.modality == "MR"


def test_a_modality_is_dicoms_word():
    with pytest.raises(ConfigError, match=r"data\.modality"):
        load_settings(None, ["data.root=d", "data.modality=mri"])


def test_a_dataset_json_that_lists_no_channels(tmp_path):
    root = write_msd(tmp_path / "d", 0, channel_names="CT")
    with pytest.raises(ScanError, match="channel_names should be like"):
        plan_of(root)


# -- prediction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [1, 3])
def test_a_scan_of_another_modality_is_for_review(tmp_path, files):
    pixels = np.random.default_rng(0).integers(0, 300, (files, 40, 40)).astype(np.int16)
    write_series(tmp_path / "ct", pixels)
    write_series(tmp_path / "mr", pixels, modality="MR")
    assert read_scan(tmp_path / "ct").modality == "CT"
    for modality, status in (("MR", "review"), ("CT", "ok"), ("unknown", "ok")):
        entries = list_inputs([tmp_path / "ct"])
        (outcome,) = outcomes_of(predictor(modality), entries, tmp_path / f"out-{modality}")
        assert outcome.status == status
        assert outcome.reason == (STRANGE if status == "review" else "")
    (outcome,) = outcomes_of(predictor("MR"), list_inputs([tmp_path / "mr"]), tmp_path / "out")
    assert outcome.status == "ok"


def test_grey_saved_as_colour_is_no_doubt_but_colours_are():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (1, 50, 50, 1)).astype(np.uint8).repeat(3, axis=0)
    assert colour_doubt(grey) == ()
    lossy = np.clip(grey + rng.integers(-9, 10, grey.shape), 0, 255).astype(np.uint8)
    assert colour_doubt(lossy) == (), "as JPEG leaves it"
    marked = grey.copy()
    marked[:, :5, :5] = np.array([255, 0, 0], np.uint8).reshape(3, 1, 1, 1)  # 25 of 2,500
    assert colour_doubt(marked) == ()
    marked[:, :5, :6] = marked[:, :1, :1]
    said = "1% of its pixels are coloured, and the model was trained on grey images"
    assert colour_doubt(marked) == (said,)
    assert colour_doubt(marked.astype(np.float32) / 255) == (said,)
    assert colour_doubt(grey[:1]) == ()
    assert Preprocessing(channels=3).prepare(scan_of(marked)).doubts == ()
    assert Preprocessing(channels=1).prepare(scan_of(marked)).doubts == (said,)


def scan_of(voxels):
    return Scan(voxels, None, Path("a.png"))


def test_a_scan_that_was_trained_on_is_said_to_be(tmp_path):
    for n in range(2):
        save_png(tmp_path / "in" / f"{n}.png", n, (40, 40))
    known = files_hash([tmp_path / "in" / "0.png"])
    entries = list_inputs([tmp_path / "in"])
    told = [o.warnings for o in outcomes_of(predictor(learned=[known]), entries, tmp_path / "out")]
    said = "the model was trained on this very scan; the result says little about new ones"
    assert [said in warnings for warnings in told] == [True, False]
