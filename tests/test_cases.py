"""Which image belongs to which mask, patient and split, in every layout; which value is what."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_png_dataset
from dicom_files import write_series

from segapp.cases import (
    IGNORE_INDEX,
    Case,
    Dataset,
    choose_classes,
    find_cases,
    image_hash,
    labels_to_indices,
    list_cases,
    with_val_split,
)
from segapp.errors import DataError
from segapp.scan import Scan, Segmentation, make_classes


def touch(root: Path, *names: str) -> Path:
    """Empty files: finding cases opens no image."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pairs(dataset: Dataset) -> dict[str, tuple[list[str], str]]:
    """Name → (images, mask), relative to the root."""
    return {
        c.name: (
            [p.relative_to(dataset.root).as_posix() for p in c.images],
            c.mask.relative_to(dataset.root).as_posix(),
        )
        for c in dataset.cases
    }


def refused(root: Path) -> str:
    with pytest.raises(DataError) as error:
        find_cases(root)
    return str(error.value)


# images/ + masks/


def test_images_and_masks_are_paired_by_stem(tmp_path: Path) -> None:
    touch(tmp_path, "images/b.JPG", "images/a.nii.gz", "images/sub/c.d.tif", "images/.hidden.png")
    touch(tmp_path, "masks/b.png", "masks/a.nii", "masks/sub/c.d.tiff", "masks/unused.png")
    touch(tmp_path, "images/notes.txt", "images/Thumbs.db", "images/._b.JPG")
    dataset = find_cases(tmp_path)
    assert pairs(dataset) == {
        "a": (["images/a.nii.gz"], "masks/a.nii"),
        "b": (["images/b.JPG"], "masks/b.png"),
        "sub/c.d": (["images/sub/c.d.tif"], "masks/sub/c.d.tiff"),
    }
    assert {c.split for c in dataset.cases} == {""}
    assert dataset.class_names is dataset.ignore is None
    assert dataset.channel_files == 1


def test_order_is_by_name_whatever_the_file_system_says(tmp_path: Path) -> None:
    names = ["x10", "x1", "a/z", "B", "x2"]
    touch(tmp_path, *(f"{part}/{n}.png" for n in names for part in ("images", "masks")))
    assert [c.name for c in find_cases(tmp_path).cases] == sorted(names)


@pytest.mark.parametrize("mask", ["masks/c1_mask.png", "masks/sub/c1.png", "masks/C1.png"])
def test_a_missing_mask_names_its_image(tmp_path: Path, mask: str) -> None:
    touch(tmp_path, "images/c0.png", "images/c1.jpg", "masks/c0.png", mask)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'images' / 'c1.jpg'}: its mask is missing")
    assert str(tmp_path / "masks" / "c1") in message


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "one", "images/a.png", "images/a.tif", "masks/a.png")
    assert "a.png" in refused(tmp_path / "one")
    touch(tmp_path / "two", "images/a.png", "masks/a.png", "masks/a.tif")
    message = refused(tmp_path / "two")
    assert "masks/a.png" in message
    assert "masks/a.tif" in message


def test_folders_that_are_no_data_set_say_what_was_expected(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    touch(tmp_path, "file", "empty/images/x.txt", "empty/masks/x.txt", "half/images/a.png")
    assert "no such folder" in refused(tmp_path / "file")
    assert "holds no images" in refused(tmp_path / "empty")
    assert "masks/ is missing" in refused(tmp_path / "half")
    (tmp_path / "nothing").mkdir()
    message = refused(tmp_path / "nothing")
    assert "images/ is missing" in message
    assert all(word in message for word in ("masks/", "imagesTr/", "dataset.json", "cases.csv"))
    touch(tmp_path / "other", "us/a.png", "us/b.png", "annot/a.png", "notes/x.txt")
    message = refused(tmp_path / "other")
    assert "images/ is missing; found annot/ (1 file) and us/ (2 files); rename what" in message
    assert "stems" not in message


def test_a_folder_that_can_not_be_listed_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list everything")
    touch(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "masks").chmod(0)
    assert str(tmp_path / "masks") in refused(tmp_path)
    (tmp_path / "masks").chmod(0o700)


def listed(root: Path) -> set[tuple[str, str]]:
    """(kind, path below the root) of every problem."""
    return {(p.kind, p.path.relative_to(root).as_posix()) for p in list_cases(root).problems}


def test_every_problem_of_pairing_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.png", "images/c.png", "images/c.tif", "classes.txt")
    touch(tmp_path, "masks/a.png", "masks/c.png", "masks/x.png", "masks/y.png")
    (tmp_path / "classes.txt").write_text("1 a\n2 a\n")
    assert listed(tmp_path) == {
        *(("mask-missing", "images/b.png"), ("duplicate-name", "images/c.tif")),
        *(("image-missing", "masks/x.png"), ("image-missing", "masks/y.png")),
        ("classes", "classes.txt"),
    }
    assert set(pairs(list_cases(tmp_path))) == {"a", "c"}
    assert refused(tmp_path).endswith("(and 2 more problems)")  # x and y sink no training


def test_masks_without_images_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png", "masks/x.png", "masks/y.png")
    assert find_cases(tmp_path).notes == (
        f"2 masks have no image, such as {tmp_path / 'masks' / 'x.png'}",
    )


def test_every_bad_line_of_a_table_is_listed(tmp_path: Path) -> None:
    lines = ["i/a.png,m/a.png,train", "i/x.png,m/b.png,train", "i/b.png,m/x.png,train"]
    lines += ["i/a.png,m/a.png,test", "i/c.png,m/c.png,training"]
    table(tmp_path, "\n".join(["image,mask,split", *lines]))
    assert listed(tmp_path) == {
        *(("image-missing", "i/x.png"), ("mask-missing", "i/b.png")),
        *(("duplicate-name", "i/a.png"), ("split", "cases.csv")),
    }
    assert set(pairs(list_cases(tmp_path))) == {"i/a", "i/c"}


def test_a_table_may_name_the_folder_of_a_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", np.zeros((3, 8, 8), np.int16))
    touch(tmp_path, "m.png")
    (tmp_path / "cases.csv").write_text("image,mask\nscan,m.png\n")
    assert find_cases(tmp_path).cases[0].images == tuple(paths)
    assert re.fullmatch("[0-9a-f]{64}", image_hash(find_cases(tmp_path).cases[0]))


# train/ val/ test/


def test_splits_stand_above_the_layout(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        touch(tmp_path, f"{split}/images/a.png", f"{split}/masks/a.tif")
    dataset = find_cases(tmp_path)
    assert pairs(dataset) == {
        f"{s}/a": ([f"{s}/images/a.png"], f"{s}/masks/a.tif") for s in ("train", "val", "test")
    }
    assert [c.split for c in dataset.cases] == ["train", "val", "test"]
    assert [c.name for c in dataset.split("val")] == ["val/a"]
    assert dataset.split("all") == dataset.cases


def test_a_test_folder_without_masks_is_left_out_and_said_so(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.png", "train/masks/a.png", "test/images/b.png")
    dataset = find_cases(tmp_path)
    assert list(pairs(dataset)) == ["train/a"]
    assert any(str(tmp_path / "test") in note for note in dataset.notes)
    (tmp_path / "test/masks").mkdir()  # masks are meant to be there: then each must be
    assert "its mask is missing" in refused(tmp_path)


def test_a_val_folder_without_masks_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.png", "train/masks/a.png", "val/images/b.png")
    assert refused(tmp_path).startswith(f"{tmp_path / 'val'}: masks/ is missing")


def test_splits_may_stand_above_nnunet_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for channel in ("0000", "0001"):
            touch(tmp_path, f"{split}/imagesTr/{split}1_{channel}.nii.gz")
        touch(tmp_path, f"{split}/labelsTr/{split}1.nii.gz")
    info = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "liver": 3}}
    for place in (tmp_path / "train", tmp_path):  # beside the splits, or in train/ alone
        (place / "dataset.json").write_text(json.dumps(info))
        dataset = find_cases(tmp_path)
        assert [(c.name, c.split, len(c.images)) for c in dataset.cases] == [
            ("train1", "train", 2),
            ("val1", "val", 2),
        ]
        assert dataset.class_names == info["labels"]
        assert dataset.channel_files == 2
        (place / "dataset.json").unlink()


# nnU-Net and MSD


def nnunet(root: Path, info: dict, *names: str) -> Path:
    touch(root, *names)
    (root / "dataset.json").write_text(json.dumps(info), encoding="utf-8-sig")
    return root


def test_nnunet_with_two_channels_and_an_ignore_label(tmp_path: Path) -> None:
    info = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "edema": 2, "core": 1, "ignore": 3},
        "file_ending": ".nii.gz",
    }
    nnunet(tmp_path, info, *(f"imagesTr/c{n}_000{c}.nii.gz" for n in (1, 2) for c in (0, 1)))
    touch(tmp_path, "labelsTr/c1.nii.gz", "labelsTr/c2.nii.gz")
    touch(tmp_path, "imagesTs/c1_0000.nii.gz", "imagesTs/c1_0001.nii.gz", "labelsTs/c1.nii.gz")
    dataset = find_cases(tmp_path)
    assert [(c.name, c.split) for c in dataset.cases] == [
        *(("imagesTr/c1", ""), ("imagesTr/c2", ""), ("imagesTs/c1", "test"))
    ]
    first = dataset.cases[0]
    assert [p.name for p in first.images] == ["c1_0000.nii.gz", "c1_0001.nii.gz"]
    assert first.mask == tmp_path / "labelsTr" / "c1.nii.gz"
    assert dataset.class_names == {"background": 0, "edema": 2, "core": 1}
    assert dataset.ignore == 3
    assert dataset.channel_files == 2


def test_nnunet_with_one_channel_has_numbers_too(tmp_path: Path) -> None:
    info = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    nnunet(tmp_path, info, "imagesTr/c_01_0000.nii.gz", "labelsTr/c_01.nii.gz")
    touch(tmp_path, "imagesTs/c_02_0000.nii.gz")  # without labelsTs/ there is nothing to test
    dataset = find_cases(tmp_path)
    assert pairs(dataset) == {"c_01": (["imagesTr/c_01_0000.nii.gz"], "labelsTr/c_01.nii.gz")}
    assert dataset.channel_files == 1


def test_nnunet_files_that_lack_a_mask_or_a_channel(tmp_path: Path) -> None:
    info = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}}
    nnunet(tmp_path, info, "imagesTr/c_0000.png", "imagesTr/c_0001.png", "labelsTr/d.png")
    assert refused(tmp_path).startswith(f"{tmp_path / 'imagesTr' / 'c_0000.png'}: its mask")
    touch(tmp_path, "imagesTr/d_0001.png", "labelsTr/c.png")
    # Reading an incomplete group says what is missing; finding it keeps all names.
    assert [p.name for p in find_cases(tmp_path).cases[1].images] == ["d_0000.png", "d_0001.png"]


def test_msd_has_no_numbers_and_hidden_files(tmp_path: Path) -> None:
    info = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}}
    nnunet(tmp_path, info, "imagesTr/liver_1.nii.gz", "labelsTr/liver_1.nii.gz")
    touch(tmp_path, "imagesTr/._liver_1.nii.gz", "labelsTr/._liver_1.nii.gz", "imagesTs/x.nii.gz")
    dataset = find_cases(tmp_path)
    assert pairs(dataset) == {"liver_1": (["imagesTr/liver_1.nii.gz"], "labelsTr/liver_1.nii.gz")}
    assert dataset.class_names == {"background": 0, "liver": 1, "tumour": 2}
    assert dataset.channel_files == 1


def test_msd_case_numbers_of_four_digits_are_no_channels(tmp_path: Path) -> None:
    info = {"modality": {"0": "FLAIR", "1": "T1"}, "labels": {"0": "background", "1": "tumour"}}
    names = ("imagesTr/brain_0000.nii.gz", "imagesTr/brain_0001.nii.gz")
    nnunet(tmp_path, info, *names, *(n.replace("images", "labels") for n in names))
    dataset = find_cases(tmp_path)
    assert [c.name for c in dataset.cases] == ["brain_0000", "brain_0001"]
    assert dataset.channel_files == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ("[1]", "JSON"),
        ("\xff", "UTF-8"),
        ('{"labels": {"background": 0, "whole": [1, 2]}}', "region-based labels (whole)"),
        ('{"labels": ["background", "liver"]}', "labels should be like"),
        ('{"labels": {"background": 0, "liver": "one"}}', "labels should be like"),
        ('{"labels": {"background": 0, "liver": 1.5}}', "labels should be like"),
        ('{"labels": {"background": 0, "liver": Infinity}}', "labels should be like"),
        ('{"labels": {"0": "background", "1": "liver", "2": "liver"}}', "names 'liver' twice"),
        ('{"channel_names": 5}', "channel_names should be like"),
        ("[]", "holds no JSON object"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"labels": {"background": ' + "9" * 5000 + "}}", "not readable as JSON"),
    ],
)
def test_an_unusable_dataset_json_is_named(tmp_path: Path, text: str, said: str) -> None:
    touch(tmp_path, "imagesTr/a.png", "labelsTr/a.png")
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'dataset.json'}: ")
    assert said in message


def test_nnunet_without_masks_folder_or_dataset_json(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.png")
    assert str(tmp_path / "labelsTr") in refused(tmp_path)
    touch(tmp_path, "labelsTr/a.png")
    assert find_cases(tmp_path).class_names is None


# cases.csv


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    touch(root, "i/a.png", "i/b.png", "i/c.png", "m/a.png", "m/b.png", "m/c.png")
    (root / "cases.csv").write_text(text, encoding=encoding)
    return root


def test_a_table_gives_patients_and_splits(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "z.png") / "z.png"
    table(
        tmp_path / "d",
        "image, mask, patient, split, note\n"
        "i/a.png,m/a.png,p1,train,\n"
        "i/b.png , m/b.png, p1,test,x,y,z\n"
        "\n"
        f"{elsewhere},m/c.png,,\n",
        "utf-8-sig",  # Excel's UTF-8
    )
    a, b, z = find_cases(tmp_path / "d").cases
    assert (a.name, a.patient, a.split) == ("i/a", "p1", "train")
    assert (b.name, b.patient, b.split) == ("i/b", "p1", "test")
    assert (a.declared, z.declared) == ("p1", "")
    assert b.mask == tmp_path / "d" / "m" / "b.png"
    assert (z.images, z.split) == ((elsewhere,), "")
    assert z.patient == z.name


def test_a_table_needs_no_patients_and_splits(tmp_path: Path) -> None:
    cases = find_cases(table(tmp_path, "mask,image\r\nm/a.png,i/a.png\r\nm/b.png,i/b.png")).cases
    assert [(c.name, c.patient, c.split) for c in cases] == [("i/a", "i/a", ""), ("i/b", "i/b", "")]


def test_a_table_goes_before_the_folders(tmp_path: Path) -> None:
    write_png_dataset(tmp_path, 3)
    table(tmp_path, "image,mask\nimages/case1.png,masks/case1.png\n")
    assert [c.name for c in find_cases(tmp_path).cases] == ["images/case1"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("i/b.png,m/b.png,p,validation", "'validation' is not train, val or test"),
        ("i/x.png,m/b.png,p,val", "i/x.png: image is missing"),
        ("i/b.png,m/x.png,p,val", "i/b.png: its mask is missing; looked for"),
        ("i/b.png", "i/b.png: its mask is missing"),
        ("i/b.png,,p,val", "i/b.png: its mask is missing"),
        (",m/b.png,p,val", "image is missing"),
        ("i/a.png,m/a.png,p,val", "its name stands in line 2 already"),  # in two splits
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    table(tmp_path, f"image,mask,patient,split\ni/a.png,m/a.png,p,train\n{line}\n")
    message = refused(tmp_path)
    assert said in message
    assert "line 3" in message


@pytest.mark.parametrize(
    "text", ["", "image,mask\n", "image;mask\ni/a.png;m/a.png\n", "i/a.png,m/a.png\n", "\n\n"]
)
def test_a_table_without_header_or_lines_says_what_is_expected(tmp_path: Path, text: str) -> None:
    assert "expected a header image,mask" in refused(table(tmp_path, text))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_of_other_separators_is_named(tmp_path: Path, mark: str) -> None:
    message = refused(table(tmp_path, "image,mask\ni/a.png,m/a.png\n".replace(",", mark)))
    assert message.startswith(f"{tmp_path / 'cases.csv'}: its columns are separated by ")
    assert message.endswith("separate the columns by commas")


def test_a_table_that_is_no_table_is_refused_in_words(tmp_path: Path) -> None:
    lines = "i/b.png,m/b.png\n" * 20_000
    message = refused(table(tmp_path, f'image,mask\n"i/a.png,m/a.png\n{lines}'))
    assert message.startswith(f"{tmp_path / 'cases.csv'}: is no sound table")
    assert "several lines" in refused(table(tmp_path, 'image,mask\n"i/a.png,m/a.png\n"i,m\n'))
    assert "image is missing" in refused(table(tmp_path, f"image,mask\n{'x' * 400},m/a.png\n"))


def test_names_of_columns_and_empty_lines_are_forgiven(tmp_path: Path) -> None:
    text = " Image , MASK ,Patient, split\ni/a.png,m/a.png,p,train\n\n,,,\n , ,,\n"
    (case,) = find_cases(table(tmp_path, text)).cases
    assert (case.name, case.patient, case.split) == ("i/a", "p", "train")


def test_a_wrong_word_for_a_split_is_told_once(tmp_path: Path) -> None:
    lines = "".join(f"i/{n}.png,m/{n}.png,valid\n" for n in "abc")
    (problem,) = list_cases(table(tmp_path, f"image,mask,split\n{lines}")).problems
    assert "split 'valid' is not train, val or test (line 2 and 2 more)" in str(problem)


def test_an_empty_cell_is_no_place_that_was_looked_for(tmp_path: Path) -> None:
    one, two = list_cases(table(tmp_path, "image,mask\n,m/a.png\ni/b.png,\n")).problems
    assert (one.path, two.path) == (tmp_path / "cases.csv", tmp_path / "i/b.png")
    assert f"looked for {tmp_path}" not in f"{one} {two}"


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.webp", "images/c.png")
    touch(tmp_path, "masks/a.gif", "masks/b.png", "masks/c.png")
    image, mask = list_cases(tmp_path).problems
    assert "masks/a.gif is of a format that is not read; save it as" in str(image)
    assert "images/b.webp is of a format that is not read; save it as" in str(mask)


def test_a_table_in_another_encoding_is_refused_in_words(tmp_path: Path) -> None:
    assert "UTF-8" in refused(table(tmp_path, "image,mask\ni/a.png,m/ä.png\n", "latin-1"))


# Patients


def patients(*names: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = touch(
            Path(folder), *(f"{part}/{n}.png" for n in names for part in ("images", "masks"))
        )
        return [c.patient for c in find_cases(root).cases]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pat01_slice003", "pat01_slice104"),
        ("pat01-Slice-3", "pat01-Slice-4"),
        ("pat01_slice_3", "pat01_slice_4"),
        ("pat01_z003", "pat01_z4"),
        ("pat01_frame7", "pat01_frame8"),
        ("pat01_slc7", "pat01_slc8"),
        ("pat01_frame01_slice_3", "pat01_frame12_slice_3"),
        ("pat01/x", "pat01/y"),
        ("site/pat01/x", "site/pat01/y"),
        ("all/pat01_slice1", "all/pat01_slice2"),
    ],
)
def test_slices_of_one_patient_are_recognised(one: str, other: str) -> None:
    stranger = one.replace("pat01", "pat02")
    first, second, third = patients(one, other, stranger)
    assert first == second != third
    assert "pat01" in first


@pytest.mark.parametrize(
    "names", [("case1", "case2"), ("viz1", "viz2"), ("slice1", "slice2"), ("z1", "z2")]
)
def test_other_names_are_patients_of_their_own(names: tuple[str, ...]) -> None:
    assert patients(*names) == list(names)


def test_one_patient_alone_is_divided_by_image() -> None:
    assert patients("p_slice1", "p_slice2") == ["p_slice1", "p_slice2"]


def test_nnunet_slices_have_patients_too(tmp_path: Path) -> None:
    names = ["p1_slice1", "p1_slice2", "p2_slice1"]
    touch(
        tmp_path, *(f"imagesTr/{n}_0000.png" for n in names), *(f"labelsTr/{n}.png" for n in names)
    )
    assert [c.patient for c in find_cases(tmp_path).cases] == ["p1", "p1", "p2"]


def test_patients_are_guessed_over_all_parts(tmp_path: Path) -> None:
    """One patient alone in a split must not look like a patient for each slice."""
    for split, names in (("train", ["p1_slice1", "p2_slice1"]), ("test", ["p2_slice2"])):
        for part in ("images", "masks"):
            touch(tmp_path, *(f"{split}/{part}/{n}.png" for n in names))
    assert [c.patient for c in find_cases(tmp_path).cases] == ["p1", "p2", "p2"]


@pytest.mark.parametrize(
    ("ids", "patients", "declared"),
    [
        (["A", "B", "A", ""], ["patient1", "patient2", "patient1", "s3"], [1, 1, 1, 0]),
        (["A", "A", "A", "A"], ["s0", "s1", "s2", "s3"], [0, 0, 0, 0]),  # an anonymiser's
    ],
)
def test_whom_a_dicom_header_names_has_a_number(tmp_path: Path, ids, patients, declared) -> None:
    for n, name in enumerate(ids):
        volume = np.full((2, 8, 8), n, np.int16)
        write_series(tmp_path / f"images/s{n}", volume, seed=f"{n}", PatientID=name)
        touch(tmp_path, f"masks/s{n}.nii.gz")
    dataset = find_cases(tmp_path)
    assert [c.patient for c in dataset.cases] == patients
    assert [bool(c.declared) for c in dataset.cases] == [bool(d) for d in declared]
    for seed in range(8):
        splits = splits_of_patients(with_val_split(dataset, 0.4, seed))
        assert all(len(found) == 1 for found in splits.values())


# A val split carved out of train


def dataset_of(*cases: tuple[str, str]) -> Dataset:
    """(patient, split) of each case."""
    return Dataset(
        Path("root"),
        tuple(
            Case(f"c{n}", (Path(f"c{n}"),), Path(f"m{n}"), patient, split)
            for n, (patient, split) in enumerate(cases)
        ),
    )


def splits_of_patients(dataset: Dataset) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for case in dataset.cases:
        found.setdefault(case.patient, set()).add(case.split)
    return found


@pytest.mark.parametrize(("count", "share", "n_val"), [(10, 0.2, 2), (2, 0.2, 1), (3, 0.99, 2)])
def test_val_is_carved_out_by_patient(count: int, share: float, n_val: int) -> None:
    dataset = dataset_of(*((f"p{n % count}", "") for n in range(4 * count)))
    for seed in range(20):
        splits = splits_of_patients(with_val_split(dataset, share, seed))
        assert all(len(found) == 1 for found in splits.values())  # no patient in two splits
        assert sum(found == {"val"} for found in splits.values()) == n_val


def test_carving_depends_on_the_seed_alone() -> None:
    dataset = dataset_of(*((f"p{n}", "") for n in range(20)))
    turned = Dataset(Path("root"), dataset.cases[::-1])
    first = splits_of_patients(with_val_split(dataset, 0.3, 7))
    assert splits_of_patients(with_val_split(turned, 0.3, 7)) == first
    assert splits_of_patients(with_val_split(dataset, 0.3, 8)) != first
    assert any("seed 7" in note for note in with_val_split(dataset, 0.3, 7).notes)


def test_carving_leaves_test_alone_and_counts_the_rest_as_train() -> None:
    dataset = dataset_of(("a", ""), ("b", "train"), ("c", "test"), ("d", "test"))
    splits = [c.split for c in with_val_split(dataset, 0.5, 0).cases]
    assert splits[2:] == ["test", "test"]
    assert sorted(splits[:2]) == ["train", "val"]


def test_a_val_split_that_is_there_stays() -> None:
    dataset = dataset_of(("a", ""), ("a", "val"), ("b", "train"))
    assert [c.split for c in with_val_split(dataset, 0.5, 0).cases] == ["train", "val", "train"]
    assert with_val_split(dataset, 0.5, 0).notes == ()


@pytest.mark.parametrize("cases", [[("a", ""), ("a", "train")], [("a", "test"), ("b", "test")]])
def test_fewer_than_two_patients_can_not_be_divided(cases: list[tuple[str, str]]) -> None:
    with pytest.raises(DataError, match="at least 2"):
        with_val_split(dataset_of(*cases), 0.5, 0)


# Classes


def classes_of(
    values: list[int],
    names: list[str] | None = None,
    declared: dict[str, int | None] | None = None,
    ignore: int | None = None,
) -> dict[str, int]:
    dataset = Dataset(Path("root"), (), declared)
    found = choose_classes(dataset, sorted(set(values) - {ignore}), names)
    assert list(found) == sorted(found, key=lambda c: c.value)
    assert found[0].colour == (0, 0, 0)
    assert len({c.colour for c in found}) == len(found)
    return {c.name: c.value for c in found}


def test_values_without_names_are_the_classes() -> None:
    assert classes_of([255, 0]) == {"background": 0, "class_255": 255}
    assert classes_of([1, 2]) == {"class_1": 1, "class_2": 2}
    assert classes_of([0, 1, 255], ignore=255) == {"background": 0, "class_1": 1}


def test_names_without_values_are_numbered_or_take_the_values_found() -> None:
    assert classes_of([0, 1, 2], ["bg", "a", "b"]) == {"bg": 0, "a": 1, "b": 2}
    assert classes_of([0, 2], ["bg", "a", "b"]) == {"bg": 0, "a": 1, "b": 2}  # a isn't there
    assert classes_of([0, 255], ["bg", "a"]) == {"bg": 0, "a": 255}
    assert classes_of([0, 85, 170, 255], ["bg", "a", "b"], ignore=255) == {
        "bg": 0,
        "a": 85,
        "b": 170,
    }
    assert classes_of([0, 255], None, {"bg": None, "a": None}) == {"bg": 0, "a": 255}


def test_declared_values_hold_even_where_no_mask_has_them() -> None:
    declared: dict[str, int | None] = {"bg": 0, "b": 9, "a": 4}
    assert classes_of([0, 9], None, declared) == {"bg": 0, "a": 4, "b": 9}


def test_the_users_names_win() -> None:
    assert classes_of([0, 1], ["x", "y"], {"bg": 0, "a": 1}) == {"x": 0, "y": 1}


def test_the_data_sets_own_names_keep_their_values() -> None:
    """As when a run is resumed: its config.yaml holds the names that the data set declared."""
    declared: dict[str, int | None] = {"bg": 0, "b": 9, "a": 4}
    resolved = list(classes_of([0, 9], None, declared))
    assert classes_of([0, 9], resolved, declared) == {"bg": 0, "a": 4, "b": 9}
    assert classes_of([0, 9], ["a", "b", "bg"], declared) == {"bg": 0, "a": 4, "b": 9}
    found = classes_of([3, 7, 255])
    assert classes_of([3, 7, 255], list(found)) == found


def test_more_classes_than_fit_are_refused() -> None:
    with pytest.raises(DataError, match="at most 250"):
        classes_of(list(range(251)))


@pytest.mark.parametrize(("values", "ignore"), [([0], None), ([], None), ([0, 255], 255)])
def test_one_value_is_nothing_to_learn(values: list[int], ignore: int | None) -> None:
    with pytest.raises(DataError, match="one value only"):
        classes_of(values, None, None, ignore)


def test_two_names_for_one_value_are_refused() -> None:
    with pytest.raises(DataError, match="same mask value"):
        classes_of([0, 1], None, {"bg": 0, "a": 1, "b": 1})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("background\nlesion\n", {"background": None, "lesion": None}),
        ("0 background\n255 big lesion\n", {"background": 0, "big lesion": 255}),
        ("\ufeff0: bg\r\n\r\n  7,a \r\n", {"bg": 0, "a": 7}),
        ("background\n3rd ventricle\n", {"background": None, "3rd ventricle": None}),
    ],
)
def test_classes_txt_has_names_with_or_without_values(
    tmp_path: Path, text: str, names: dict[str, int | None]
) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert find_cases(tmp_path).class_names == names


def test_a_confusing_classes_txt_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png")
    long = f"0 bg\n{'9' * 5000} lesion\n"
    texts = [("0 bg\nlesion\n", "every line"), ("1 a\n2 a\n", "'a' twice"), (long, "every line")]
    for text, said in texts:
        (tmp_path / "classes.txt").write_text(text)
        assert said in refused(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(tmp_path)


def test_dataset_json_names_the_classes_of_any_layout(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "classes.txt").write_text("x\ny\n")
    (tmp_path / "dataset.json").write_text('{"labels": {"bg": 0, "ignore": 255, "a": 5}}')
    dataset = find_cases(tmp_path)
    assert dataset.class_names == {"bg": 0, "a": 5}
    assert dataset.ignore == 255


# Mask values and class indices


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 255, 256), (3, 1000, 65535)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_values_to_indices_and_back(values: tuple[int, ...], dtype: type) -> None:
    classes = make_classes(["a", "b", "c"], list(values))
    mask = np.array(values, dtype)[np.random.default_rng(0).integers(0, 3, (1, 5, 4, 2))]
    indices = labels_to_indices(mask, classes, None)
    assert indices.dtype == np.uint8
    back = Segmentation(indices[0], Scan(mask, None, Path("x")), classes).mask_values()
    assert np.array_equal(back, mask[0])
    assert back.dtype == (np.uint8 if values[-1] < 256 else np.uint16)


def test_the_ignored_value_gets_an_index_of_its_own() -> None:
    classes = make_classes(["bg", "a"], [0, 1])
    mask = np.array([[0, 1, 255]], np.uint8)
    assert labels_to_indices(mask, classes, 255).tolist() == [[0, 1, IGNORE_INDEX]]
    assert labels_to_indices(mask[:, :2], classes, -1).tolist() == [[0, 1]]
    # 250 classes and the ignored value do not meet
    many = make_classes([str(n) for n in range(250)], list(range(250)))
    every = np.append(np.arange(250), 9999)
    assert labels_to_indices(every, many, 9999).tolist() == [*range(250), IGNORE_INDEX]


def test_a_value_of_no_class_is_an_error_and_never_background() -> None:
    with pytest.raises(ValueError, match="mask value 254 is outside"):
        labels_to_indices(np.array([0, 254], np.uint8), make_classes(["bg", "a"], [0, 1]), 255)
