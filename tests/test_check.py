"""What can sink a run is found before it: size, place, unreadable files; and nothing else."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_png_dataset
from PIL import Image

from segapp.cases import Case, Dataset, find_cases
from segapp.check import read_case, survey
from segapp.errors import DataError, ScanError
from segapp.finding import refuse
from segapp.fingerprint import CaseFacts, measure
from segapp.formats import NOT_FINITE
from segapp.scan import Scan
from segapp.verdicts import judge_classes, odd_masks

SHAPE = (12, 10, 6)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, qform: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    if not qform:
        image.set_qform(None)
    nib.save(image, path)
    return path


def volume_case(
    root: Path,
    image_affine: np.ndarray,
    mask_affine: np.ndarray,
    shape: tuple[int, ...] = SHAPE,
    mask_shape: tuple[int, ...] | None = None,
    name: str = "c",
) -> Case:
    mask = np.zeros(mask_shape or shape, np.uint8)
    mask.flat[0] = 1
    image = write_nifti(root / "images" / f"{name}.nii.gz", np.ones(shape, np.int16), image_affine)
    mask_path = write_nifti(root / "masks" / f"{name}.nii.gz", mask, mask_affine)
    return Case(name, (image,), mask_path, name)


def spacing(x: float, y: float, z: float, offset: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    affine = np.diag([x, y, z, 1.0])
    affine[:3, 3] = offset
    return affine


def rotated(degrees: float, offset: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    affine[:3, 3] = offset
    return affine


def test_a_sound_data_set_gives_its_facts(tmp_path: Path) -> None:
    dataset = find_cases(write_png_dataset(tmp_path, 3, values=(0, 128, 255)))
    facts, findings = survey(dataset)
    assert [f.case for f in facts] == list(dataset.cases)
    assert {value for f in facts for value in f.mask_counts} == {0, 128, 255}
    assert findings == []


def test_progress_sees_every_case(tmp_path: Path) -> None:
    dataset = find_cases(write_png_dataset(tmp_path, 3))
    seen = []
    survey(dataset, lambda cases: (seen.append(c) or c for c in cases))
    assert seen == list(dataset.cases)


def test_a_mask_of_another_size_names_both_sizes(tmp_path: Path) -> None:
    write_png_dataset(tmp_path, 2)
    mask = tmp_path / "masks" / "case1.png"
    Image.fromarray(np.zeros((64, 48), np.uint8)).save(mask)  # the image is 64 wide, 48 high
    (finding,) = survey(find_cases(tmp_path))[1]
    assert str(finding).startswith(f"{mask}: is 48×64 but its image case1.png is 64×48; ")


def test_a_volume_of_another_size_names_both_sizes(tmp_path: Path) -> None:
    case = volume_case(tmp_path, np.eye(4), np.eye(4), mask_shape=(12, 10, 5))
    with pytest.raises(ScanError, match=r"is 12×10×5 but its image c\.nii\.gz is 12×10×6"):
        read_case(case)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_mask_of_the_right_size_is_found(tmp_path: Path, axis: int) -> None:
    image = spacing(0.5, 0.5, 3, (-80, 30, 12))
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, SHAPE[axis] - 1
    case = volume_case(tmp_path, image, image @ flip)
    with pytest.raises(ScanError, match="lies elsewhere in space") as error:
        read_case(case)
    assert error.value.path == case.mask


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (spacing(1, 1, 1), False),
        (spacing(1, 1, 1, (0.09, 0, 0)), False),  # less than a tenth of a voxel
        (spacing(1, 1, 1, (0.11, 0, 0)), True),
        (spacing(1, 1, 1, (0, 0, -1)), True),
        (spacing(1, 1, 1.1), True),  # 5 slices on, half a voxel
        (rotated(0.2), True),
        (np.diag([-1, -1, 1, 1.0]), True),  # LPS taken for RAS
    ],
)
def test_a_mask_elsewhere_is_found(tmp_path: Path, mask: np.ndarray, found: bool) -> None:
    case = volume_case(tmp_path, spacing(1, 1, 1), mask)
    if found:
        with pytest.raises(ScanError, match="lies elsewhere in space"):
            read_case(case)
    else:
        read_case(case)


def test_a_flip_is_found_at_micrometres_too(tmp_path: Path) -> None:
    """A tolerance in mm would swallow the whole field of view."""
    image = spacing(0.0005, 0.0005, 0.001)
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, SHAPE[0] - 1
    with pytest.raises(ScanError, match="lies elsewhere in space"):
        read_case(volume_case(tmp_path, image, image @ flip))
    read_case(volume_case(tmp_path, image, image))


@pytest.mark.parametrize("offset", [1e-4, -1e-4])
def test_rounding_is_no_other_place(tmp_path: Path, offset: float) -> None:
    image = rotated(33, (-253.7, 181.123456, -1024.9))
    mask = image.astype(np.float32).astype(float)
    mask[:3, 3] += offset
    read_case(volume_case(tmp_path, image, mask, shape=(512, 512, 2)))


@pytest.mark.parametrize("degrees", [0, 7, 90, 179.9, 180])
def test_sform_and_qform_of_one_place_agree(tmp_path: Path, degrees: float) -> None:
    """A quaternion stores a rotation with fewer digits than a matrix."""
    affine = rotated(degrees, (-200, 150, -900))
    shape = (400, 400, 2)
    case = volume_case(tmp_path, affine, affine, shape)
    mask = nib.Nifti1Image(np.zeros(shape, np.uint8), affine)
    mask.set_sform(None)
    mask.set_qform(affine, code=1)
    nib.save(mask, case.mask)
    read_case(case)


def test_files_without_geometry_are_compared_by_size_alone(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "i.nii", np.ones((8, 6, 1), np.int16), spacing(2, 2, 2))
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "m.png")
    scan, mask = read_case(Case("c", (image,), tmp_path / "m.png", "c"))
    assert scan.shape == mask.shape == (8, 6, 1)


def test_all_unusable_cases_are_counted(tmp_path: Path) -> None:
    write_png_dataset(tmp_path, 4)
    (tmp_path / "images" / "case1.png").write_bytes(b"no picture")
    mask = (tmp_path / "masks" / "case2.png").read_bytes()
    (tmp_path / "masks" / "case2.png").write_bytes(mask[: len(mask) // 2])
    with pytest.raises(DataError) as error:
        refuse(survey(find_cases(tmp_path))[1], "more that can't be used")
    assert str(error.value).startswith(f"{tmp_path / 'images' / 'case1.png'}: ")
    assert str(error.value).endswith(" (and 1 more that can't be used)")
    (tmp_path / "images" / "case1.png").write_bytes((tmp_path / "images/case0.png").read_bytes())
    with pytest.raises(DataError) as error:
        refuse(survey(find_cases(tmp_path))[1], "more that can't be used")
    assert str(error.value).startswith(f"{tmp_path / 'masks' / 'case2.png'}: ")
    assert " more " not in str(error.value)


def test_a_colour_mask_and_a_jpeg_mask_are_refused(tmp_path: Path) -> None:
    for name, mode in (("m.png", "RGB"), ("m.jpg", "L")):
        colours = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
        Image.fromarray(colours).convert(mode).save(tmp_path / name)
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "i.png")
        with pytest.raises(ScanError, match=name):
            read_case(Case("c", (tmp_path / "i.png",), tmp_path / name, "c"))


def test_channel_files_are_one_scan(tmp_path: Path) -> None:
    images = tuple(
        write_nifti(tmp_path / f"c_000{n}.nii.gz", np.full(SHAPE, n, np.int16), np.eye(4))
        for n in (0, 1)
    )
    mask = write_nifti(tmp_path / "m.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    assert read_case(Case("c", images, mask, "c"))[0].voxels.shape == (2, *SHAPE)
    images[1].unlink()
    with pytest.raises(ScanError, match=r"missing: c_0001\.nii\.gz"):
        read_case(Case("c", images, mask, "c"))


def test_what_the_readers_assumed_is_told_with_the_file(tmp_path: Path) -> None:
    case = volume_case(tmp_path, np.eye(4), np.eye(4))
    labels = np.zeros(SHAPE, np.float32)
    labels[0, 0, 0] = 1.0005
    write_nifti(case.mask, labels, np.eye(4))
    image = nib.Nifti1Image(np.arange(720, dtype=np.int16).reshape(SHAPE), np.eye(4))
    image.set_qform(np.diag([2, 2, 2, 1]), code=1)
    nib.save(image, case.images[0])
    one, two = survey(find_cases(tmp_path))[1]
    assert (one.level, one.path, two.path) == ("warning", case.images[0], case.mask)
    assert "sform" in one.message
    assert "rounded" in two.message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    """Prediction reads them as 0 and says so; training must not learn from invented values."""
    voxels = np.ones(SHAPE, np.float32)
    voxels[0, 0, :2] = bad
    case = volume_case(tmp_path, np.eye(4), np.eye(4))
    write_nifti(case.images[0], voxels, np.eye(4))
    pair = (tmp_path / "d_0000.nii.gz", tmp_path / "d_0001.nii.gz")  # one channel of two
    write_nifti(pair[0], np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), np.eye(4))
    write_nifti(pair[1], voxels, np.eye(4))
    cases = (case, Case("d", pair, case.mask, "d"))
    one, two = survey(Dataset(tmp_path, cases))[1]
    assert (one.kind, one.path, one.sinks) == ("not-finite", case.images[0], True)
    assert str(two).startswith(f"{tmp_path}/d_0000.nii.gz: d_0001.nii.gz: 2 voxels are not finite;")
    assert str(one).startswith(f"{case.images[0]}: 2 voxels are not finite;")
    assert NOT_FINITE in read_case(case)[0].warnings[0]  # evaluation goes the way of prediction


@pytest.mark.parametrize(
    ("mask", "kind", "said"),
    [
        (
            np.diag([-1, -1, 1, 1.0]),
            "orientation-differs",
            "its axes run to LPS, the image's to RAS",
        ),
        (spacing(1, 1, 1.1), "spacing-differs", "its voxels are 1×1×1.1 mm, the image's 1×1×1 mm"),
        (spacing(1, 1, 1, (0, 2, 0)), "affine-differs", "moved or rotated (corners up to 2 mm"),
        (rotated(3) @ np.diag([1, 1, 0.5, 1]), "affine-differs", "moved or rotated"),
    ],
)
def test_the_kind_of_misplacement(tmp_path: Path, mask: np.ndarray, kind: str, said: str) -> None:
    with pytest.raises(ScanError) as error:
        read_case(volume_case(tmp_path, spacing(1, 1, 1), mask))
    assert error.value.kind == kind
    assert said in str(error.value)


def facts_of(root: Path, *masks: tuple[int, ...]) -> list[CaseFacts]:
    """One case for each mask that holds 0 and these values."""
    facts = []
    for n, values in enumerate(masks):
        mask = np.zeros((8, 8, 1), np.int32)
        mask.flat[: len(values)] = values
        scan = Scan(np.ones((1, 8, 8, 1), np.uint8), None, root)
        facts.append(
            measure(Case(f"c{n}", (root / f"i{n}",), root / f"m{n}", ""), scan, mask[None])
        )
    return facts


@pytest.mark.parametrize(
    ("masks", "allowed", "odd"),
    [
        ([(1,), (1,), (255,)], None, {2}),  # one was saved as a picture
        ([(255,), (255,), (1,)], None, {2}),
        ([(1, 2), (2,), (1,), (128, 255)], None, {3}),
        ([(1,), (255,)], None, {1}),
        ([(1,), (2,), (1, 2), (50,)], None, {3}),
        ([(255,), (255,), ()], None, set()),  # all are 0 and 255, one is empty
        ([(1,), (1,), (2,)], None, set()),  # a class that only one mask has
        ([(128, 255), (128,), (255,)], None, set()),
        ([(1, 255), (1,), (255,)], None, set()),  # linked by the first
        ([(2, 41), (41,), (77,)], None, set()),  # atlas numbers
        ([(1,), (1,), (5,)], {1, 5}, set()),  # declared
        ([(1,), (1,), (5,)], {1, 2}, {2}),
        ([(1,), (1,), (2, 7)], {1, 2}, set()),  # one wrong value: another finding
    ],
)
def test_masks_written_in_other_values(tmp_path: Path, masks, allowed, odd) -> None:
    found = odd_masks(facts_of(tmp_path, *masks), allowed, None)
    assert {f.path for f in found} == {tmp_path / f"m{n}" for n in odd}
    assert {(f.level, f.kind) for f in found} <= {("error", "mask-values-differ")}


def test_the_ignored_value_links_no_masks(tmp_path: Path) -> None:
    masks = facts_of(tmp_path, (1, 9), (1, 9), (255, 9))
    assert [f.path.name for f in odd_masks(masks, None, 9)] == ["m2"]


@pytest.mark.parametrize(
    ("masks", "declared", "found"),
    [
        # Names alone: the largest group says what they stand for
        ([(255,), (255,), (1,)], {"bg": None, "a": None}, {"mask-values-differ": [2]}),
        ([(1,), (1,), (255,)], {"bg": None, "a": None}, {"mask-values-differ": [2]}),
        ([(255,), (255,)], {"bg": None, "a": None}, {}),
        ([(1, 7), (1,), (1,)], {"bg": None, "a": None}, {"mask-value": [0]}),
        ([(1,), (1,), (255,)], {"bg": 0, "a": 1}, {"mask-values-differ": [2]}),
        ([(1, 2), (2, 1), (1, 2, 9)], {"bg": 0, "a": 1}, {"mask-value": ["classes.txt", 2]}),
        ([(1,), (2,), (1, 2)], {"a": 1, "b": 2}, {"mask-value": ["classes.txt"]}),
        ([(1,), (-1,), (70000,)], None, {"mask-value": [1, 2]}),
        ([(1,), (1,)], {}, {"classes": ["classes.txt"]}),
        ([(1,), (1,)], {"a": 0}, {"classes": ["classes.txt"]}),
        ([(1,), (1,)], {"a": 0, "b": 99999}, {"classes": ["classes.txt"]}),
        ([(), ()], None, {"classes": ["."]}),
    ],
)
def test_masks_that_declared_classes_do_not_explain(tmp_path: Path, masks, declared, found) -> None:
    facts = facts_of(tmp_path, *masks)
    cases = tuple(f.case for f in facts)
    place = tmp_path if declared is None else tmp_path / "classes.txt"
    dataset = Dataset(tmp_path, cases, declared, declared_in=place)
    judged = judge_classes(dataset, facts, None, None)[2]
    by_kind: dict[str, list] = {}
    for f in judged:
        name = f.path.relative_to(tmp_path).as_posix()
        by_kind.setdefault(f.kind, []).append(int(name[1:]) if name[1:].isdigit() else name)
        assert f.sinks
        assert f.remedy
    assert by_kind == found


def test_other_values_that_nothing_declares_are_classes_of_their_own(tmp_path: Path) -> None:
    """Training warns of them; the doctor must not say that it refuses them."""
    facts = facts_of(tmp_path, (1,), (1,), (255,))
    dataset = Dataset(tmp_path, tuple(f.case for f in facts))
    classes, in_code, found = judge_classes(dataset, facts, None, None)
    assert [c.value for c in classes] == [0, 1, 255]
    assert len(in_code) == 3
    assert [(f.level, f.kind, f.sinks) for f in found] == [("error", "mask-values-differ", False)]
    resumed = judge_classes(dataset, facts, [c.name for c in classes], None)
    assert (resumed[0], [f.sinks for f in resumed[2]]) == (classes, [False])
