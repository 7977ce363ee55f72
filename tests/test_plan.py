"""The plan: every `auto` decided, the same plan from what was decided, no patient on both sides."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import yaml
from conftest import draw_case, write_png_dataset
from PIL import Image

from segapp.cases import Case
from segapp.config import load_settings
from segapp.errors import ConfigError, DataError
from segapp.plan import Plan, make_plan
from segapp.policies import POLICIES
from segapp.settings import Settings


def plan_of(root: Path, *words: str) -> Plan:
    return make_plan(load_settings(None, [f"data.root={root}", "train.epochs=1", *words]))


def refused(root: Path, *words: str) -> str:
    with pytest.raises(DataError) as error:
        plan_of(root, *words)
    return str(error.value)


def autos(settings: Settings) -> set[str]:
    tree = settings.model_dump()
    return {f"{s}.{k}" for s, keys in tree.items() for k, v in keys.items() if v == "auto"}


# What depends on the machine and on the number of slices is decided when training starts.
LEFT_TO_TRAINING = {
    "data.workers",
    "model.encoder_weights",
    "train.steps_per_epoch",
    "train.precision",
}


def write_msd(root: Path) -> Path:
    """CT volumes whose labels have other values than their order and one that never occurs."""
    labels = {"0": "background", "9": "liver", "4": "tumour"}
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    rng = np.random.default_rng(0)
    for n in range(4):
        voxels = rng.normal(-900, 20, (40, 36, 5)).astype(np.int16)
        mask = np.zeros(voxels.shape, np.uint8)
        mask[10:20, 10:20] = 9
        voxels[mask == 9] += 950
        affine = np.diag([1, 1, 4, 1.0])
        nib.save(nib.Nifti1Image(voxels, affine), root / "imagesTr" / f"liver_{n}.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), root / "labelsTr" / f"liver_{n}.nii.gz")
    return root


def test_every_auto_is_decided(png_dataset: Path) -> None:
    asked = load_settings(None, [f"data.root={png_dataset}"])
    plan = make_plan(asked)
    assert autos(plan.settings) == LEFT_TO_TRAINING
    assert autos(asked) > LEFT_TO_TRAINING  # what the user gave is left as it was
    s = plan.settings
    assert s.data.classes == ["background", "class_1", "class_2"]
    assert s.data.ignore is None
    assert s.data.slice_axis == "axial"
    assert s.preprocess.size == "native"
    assert s.preprocess.normalisation == "zscore"
    assert s.optim.batch_size == 8
    assert s.optim.patch == 64  # slices of 48 × 64


def test_what_is_set_stays(png_dataset: Path) -> None:
    words = ["data.classes=a,b,c", "data.slice_axis=coronal", "preprocess.size=64"]
    words += ["preprocess.normalisation=percentile", "optim.batch_size=3", "optim.patch=128"]
    s = plan_of(png_dataset, *words).settings
    assert s.data.classes == ["a", "b", "c"]
    assert (s.data.slice_axis, s.preprocess.size) == ("coronal", 64)
    assert (s.preprocess.normalisation, s.optim.batch_size, s.optim.patch) == ("percentile", 3, 128)


@pytest.mark.parametrize("kind", ["png", "0-255", "msd", "named", "spacing"])
def test_the_decided_settings_give_the_same_plan(tmp_path: Path, kind: str) -> None:
    """A resumed run plans from its own config.yaml."""
    root, words = tmp_path / "data", []
    if kind in ("msd", "spacing"):
        write_msd(root)
        words = ["preprocess.spacing_mm=auto"] if kind == "spacing" else []
    else:
        write_png_dataset(root, values=(0, 255, 255) if kind == "0-255" else (0, 1, 2))
    if kind == "named":
        (root / "classes.txt").write_text("nothing\ndisc\nsquare\nnever seen\n")
        words = ["data.ignore=2"]
    first = plan_of(root, *words)
    config = tmp_path / "config.yaml"
    config.write_text(first.settings.to_yaml(), encoding="utf-8")
    second = make_plan(load_settings(config, []))
    assert second.settings == first.settings
    assert second.classes == first.classes
    assert second.ignore == first.ignore
    assert second.preprocessing == first.preprocessing
    assert second.dataset == first.dataset
    assert second.record == first.record
    assert second.training == first.training


def test_a_spacing_is_decided_and_slices_are_planned_at_it(tmp_path: Path) -> None:
    plan = plan_of(write_msd(tmp_path), "preprocess.spacing_mm=0.25")  # 40 × 36 pixels of 1 mm
    assert plan.preprocessing.spacing_mm == plan.settings.preprocess.spacing_mm == 0.25
    assert (plan.preprocessing.size, plan.settings.preprocess.size) == (None, "native")
    assert plan.settings.optim.patch == 128  # three quarters of 152 are 114
    assert plan_of(tmp_path, "preprocess.spacing_mm=auto").settings.preprocess.spacing_mm == 1
    message = refused(tmp_path, "preprocess.spacing_mm=0.004")
    assert message.startswith(f"{tmp_path / 'imagesTr' / 'liver_0.nii.gz'}: has pixels of 1 × 1 mm")


def test_a_spacing_needs_that_of_every_training_scan(png_dataset: Path) -> None:
    message = refused(png_dataset, "preprocess.spacing_mm=auto")
    assert "case0.png: its spacing is unknown" in message or "case1.png" in message


def test_declared_values_stay_with_their_names(tmp_path: Path) -> None:
    plan = plan_of(write_msd(tmp_path))
    assert [(c.name, c.value) for c in plan.classes] == [
        ("background", 0),
        ("tumour", 4),
        ("liver", 9),
    ]
    assert plan.preprocessing.normalisation == "ct"
    assert plan.preprocessing.over == "scan"


def test_the_ignored_value_is_the_users_else_the_data_sets(tmp_path: Path) -> None:
    write_png_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {"bg": 0, "a": 1, "b": 2, "ignore": 7}}')
    assert plan_of(tmp_path).ignore == 7
    plan = plan_of(tmp_path, "data.ignore=0", "data.classes=")
    assert plan.ignore == plan.settings.data.ignore == 0


def test_no_training_foreground_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_png_dataset(tmp_path / split, 2)
    for mask in (tmp_path / "train" / "masks").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(mask)
    assert "no training mask holds any foreground" in refused(tmp_path)


def test_foreground_that_is_ignored_is_none(tmp_path: Path) -> None:
    write_png_dataset(tmp_path, values=(0, 255, 255))
    (tmp_path / "classes.txt").write_text("0 background\n1 lesion\n")
    assert "no training mask holds any foreground" in refused(tmp_path, "data.ignore=255")


def test_a_data_set_without_train_is_refused(tmp_path: Path) -> None:
    for split in ("val", "test"):
        write_png_dataset(tmp_path / split, 2)
    assert "no case is in the split train" in refused(tmp_path)


def test_a_value_outside_the_classes_names_the_mask(png_dataset: Path) -> None:
    mask = png_dataset / "masks" / "case4.png"
    values = np.array(Image.open(mask))
    values[5, 5] = 7
    Image.fromarray(values).save(mask)
    message = refused(png_dataset, "data.classes=background,disc,square")
    assert message.startswith(f"{mask}: mask value 7 is outside the classes")


def write_nnunet(root: Path, channels: dict[str, int]) -> Path:
    """One case a name below imagesTr/ or imagesTs/, with so many channel files."""
    info = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "d": 1, "s": 2}}
    for n, (name, count) in enumerate(channels.items()):
        image, mask = (a.T[..., None] for a in draw_case(n))
        for channel in range(count):
            number = f"_{channel:04}" if count > 1 else ""
            path = root / f"images{name}{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(image, np.eye(4)), path)
        path = root / f"labels{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(mask, np.eye(4)), path)
    (root / "dataset.json").write_text(json.dumps(info))
    return root


@pytest.mark.parametrize("name", ["Tr/odd", "Ts/odd"])
def test_other_channels_are_found_in_every_split(tmp_path: Path, name: str) -> None:
    """Training reads only train before its first validation; the other cases must fit as well."""
    write_nnunet(tmp_path, {"Tr/c0": 2, "Tr/c1": 2, "Tr/c2": 2, "Ts/c0": 2})
    assert plan_of(tmp_path).preprocessing.channels == 2
    write_nnunet(tmp_path, {name: 1})
    for seed in range(3):  # in train or in val
        path = tmp_path / f"images{name}.nii.gz"
        assert refused(tmp_path, f"train.seed={seed}").startswith(f"{path}: has 1 channel,")


def test_grey_among_rgb_is_no_error(png_dataset: Path) -> None:
    path = png_dataset / "images" / "case0.png"
    Image.open(path).convert("RGB").save(path)
    assert plan_of(png_dataset).preprocessing.channels == 1


def test_slices_of_a_patient_stay_on_one_side(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for n in range(12):
        image, mask = draw_case(n)
        name = f"pat{n % 4}_slice{n:03}.png"
        Image.fromarray(image).save(tmp_path / "images" / name)
        Image.fromarray(mask).save(tmp_path / "masks" / name)
    for seed in range(5):
        dataset = plan_of(tmp_path, f"train.seed={seed}", "data.val_share=0.5").dataset
        sides = {s: {c.patient for c in dataset.split(s)} for s in ("train", "val")}
        assert len(sides["train"]) == len(sides["val"]) == 2
        assert not sides["train"] & sides["val"]


def test_a_table_that_shares_a_patient_between_splits_is_warned_about(tmp_path: Path) -> None:
    write_png_dataset(tmp_path, 4)
    rows = [("p0", "train"), ("p1", "train"), ("p1", "val"), ("p1", "test")]
    lines = [f"images/case{n}.png,masks/case{n}.png,{p},{s}" for n, (p, s) in enumerate(rows)]
    (tmp_path / "cases.csv").write_text("\n".join(["image,mask,patient,split", *lines]))
    (warning,) = [w for w in plan_of(tmp_path).warnings if "patient" in w]
    assert "case3.png: patient p1 is in train (1) and in val (1) and in test (1)" in warning
    assert "too good" in warning


def test_the_record_knows_every_file_by_its_hash(png_dataset: Path) -> None:
    plan = plan_of(png_dataset)
    assert set(plan.record.images) == set(plan.record.masks) == {"train", "val"}
    for case in plan.dataset.cases:
        for record, path in ((plan.record.images, case.images[0]), (plan.record.masks, case.mask)):
            assert hashlib.sha256(path.read_bytes()).hexdigest() in record[case.split]
    assert "case" not in plan.record.model_dump_json(), "names may be patients', and it travels"


def test_reasons_say_what_was_decided(png_dataset: Path) -> None:
    text = "\n".join(plan_of(png_dataset).reasons)
    for word in ("cases: 5 train, 1 val, 0 test", "0 background, 1 class_1", "zscore", "patches"):
        assert word in text
    assert "1 of 6 training patients set aside (seed 0)" in text


def test_planning_needs_no_torch(png_dataset: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from segapp.config import load_settings; from segapp.plan import make_plan\n"
        f"make_plan(load_settings(None, ['data.root={png_dataset}']))"
    )
    here = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, check=True)


def test_a_limit_reads_no_more_than_it_takes(png_dataset: Path) -> None:
    read: list[str] = []

    def listed(cases: Iterable[Case]) -> Iterable[Case]:
        for case in cases:
            read.append(case.name)
            yield case

    settings = load_settings(None, [f"data.root={png_dataset}", "data.limit=2"])
    plan = make_plan(settings, listed)
    assert len(read) == 3, "two to train on, one to validate"
    assert {s: len(h) for s, h in plan.record.images.items()} == {"train": 2, "val": 1}


def test_a_limit_to_some_classes_turns_the_others_into_background(png_dataset: Path) -> None:
    plan = plan_of(png_dataset, "data.limit=class_2")
    assert [c.name for c in plan.classes] == ["background", "class_2"]
    assert [c.value for c in plan.classes] == [0, 2]
    assert plan.merged == (1,)
    again = make_plan(Settings.model_validate(yaml.safe_load(plan.settings.to_yaml())))
    assert (again.classes, again.merged) == (plan.classes, plan.merged)


def test_class_weights_follow_the_training_masks(png_dataset: Path) -> None:
    plan = plan_of(png_dataset, "loss.class_weights=auto")
    pixels = np.zeros(3)
    for case in plan.dataset.split("train"):
        pixels += np.bincount(np.array(Image.open(case.mask)).ravel(), minlength=3)
    expected = 1 / np.log(1.02 + pixels / pixels.sum())
    np.testing.assert_allclose(plan.settings.loss.class_weights, expected, rtol=1e-5)
    assert plan_of(png_dataset, "loss.class_weights=1,2,3").settings.loss.class_weights == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"got 2 numbers, and there are 3 classes: background, c"):
        plan_of(png_dataset, "loss.class_weights=1,2")


def test_neighbouring_slices_need_volumes(png_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.context_slices=1 needs volumes"):
        plan_of(png_dataset, "data.context_slices=1")
    plan = plan_of(write_msd(tmp_path / "msd"), "data.context_slices=1")
    assert plan.preprocessing.context == 1


def test_every_fold_has_the_preprocessing_of_all_and_patients_of_its_own(
    png_dataset: Path,
) -> None:
    whole = plan_of(png_dataset, "train.folds=3")
    folds = [plan_of(png_dataset, "train.folds=3", f"train.fold={n}") for n in (1, 2, 3)]
    assert len(whole.dataset.split("train")) == 6
    assert {c.name for f in folds for c in f.dataset.split("val")} == {
        c.name for c in whole.dataset.cases
    }
    assert all(f.preprocessing == whole.preprocessing for f in folds)
    assert all(f.training == whole.training for f in folds)


def test_averaging_over_flips_needs_flips_that_swap_nothing(tmp_path: Path) -> None:
    """draw_case has its square always on the right of its disc."""
    data = write_png_dataset(tmp_path / "data")
    assert plan_of(data).settings.augment.flip_p == 0
    with pytest.raises(ConfigError, match=r"model\.tta"):
        plan_of(data, "model.tta=true")
    assert plan_of(data, "model.tta=true", "augment.flip_p=0.5").flips == ("horizontal",)
    both = ("augment.flip_p=0.1", "augment.vertical_flip_p=0.1")
    assert plan_of(data, "model.tta=true", *both).flips == ("horizontal", "vertical")
    assert plan_of(data, *both).flips == ()


def test_residual_blocks_are_where_the_decoder_has_some(png_dataset: Path) -> None:
    for name, residual, full_resolution, depth in (
        ("unet", True, True, 3),
        ("unetplusplus", True, False, 5),
        ("fpn", False, False, 5),
    ):
        model = plan_of(png_dataset, f"model.architecture={name}").settings.model
        assert (model.residual, model.full_resolution) == (residual, full_resolution)
        assert model.encoder_depth == depth


@pytest.mark.parametrize("policy", ["none", "light", "moves", "strong", "randaugment"])
def test_a_policy_becomes_numbers(png_dataset: Path, policy: str) -> None:
    augment = plan_of(
        png_dataset, f"augment.policy={policy}", "augment.noise_p=0.77"
    ).settings.augment
    assert augment.noise_p == 0.77
    assert "auto" not in augment.model_dump().values()
    assert augment.affine_p == POLICIES[policy]["affine_p"]


def test_what_is_not_learned_weighs_as_background(png_dataset: Path) -> None:
    every = plan_of(png_dataset, "loss.class_weights=auto").settings.loss.class_weights
    one = plan_of(png_dataset, "loss.class_weights=auto", "data.limit=class_2")
    assert one.settings.loss.class_weights[1] == every[2]
    assert one.settings.loss.class_weights[0] < every[0]


def test_flips_that_swap_classes_are_warned_about_when_asked_for(png_dataset: Path) -> None:
    assert not any("flip" in w for w in plan_of(png_dataset).warnings)
    asked = plan_of(png_dataset, "augment.flip_p=0.5", "model.tta=true")
    assert any("flips swap them, in predictions too" in w for w in asked.warnings)


def test_classes_from_a_part_of_the_masks_are_warned_about(png_dataset: Path) -> None:
    assert any("data.limit" in w for w in plan_of(png_dataset, "data.limit=2").warnings)
    named = "data.classes=background,disc,square"
    (png_dataset / "classes.txt").write_text("background\ndisc\nsquare\n")
    assert not any("data.limit" in w for w in plan_of(png_dataset, "data.limit=2", named).warnings)


def test_a_val_image_whose_white_is_unknown_is_refused_before_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (tmp_path / split / part).mkdir(parents=True)
        for n in range(2):
            mask = np.zeros((32, 32), np.uint8)
            mask[8:20, 8:20] = 1
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{n}.png")
            image = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            if (split, n) == ("val", 1):
                tifffile.imwrite(tmp_path / split / "images" / "1.tif", image.astype(np.int16))
            else:
                Image.fromarray(image).save(tmp_path / split / "images" / f"{n}.png")
    assert "int16, whose white is unknown" in refused(tmp_path)
