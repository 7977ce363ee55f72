"""`segapp check`: each fault that is planted is named, with its file and kind, and nothing else."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
import tifffile
from conftest import draw_case, write_png_dataset
from dicom_files import CANARY, write_series
from PIL import Image

from segapp.doctor import diagnose, report_on
from segapp.errors import DataError, OutputError
from segapp.finding import Finding
from segapp.formats import read_labels
from segapp.layout import Dataset, list_cases
from segapp.plan import make_plan
from segapp.report.board import headed_page
from segapp.report.findings import facts_text
from segapp.report.sheet import write_sheet
from segapp.settings import Settings

BRAIN = Path(__file__).parents[1] / "data" / "brain"


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes a while."""
    monkeypatch.setattr("segapp.estimate.matmul_flops", lambda: 1e11)
    monkeypatch.setattr("segapp.estimate.has_bf16", lambda: False)


def found(root: Path, level: str = "error") -> set[tuple[str, str]]:
    """(kind, path below the root) of the findings of one level."""
    return {
        (f.kind, f.path.relative_to(root).as_posix())
        for f in diagnose(root).findings
        if f.level == level
    }


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray], suffix: str = "") -> Path:
    """Write an image again, changed; in another format where a suffix is given."""
    array = change(np.array(Image.open(path)))
    new = path.with_suffix(suffix) if suffix else path
    path.unlink()
    if new.suffix == ".tif":
        tifffile.imwrite(new, array)
    else:
        save(new, array)
    return new


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32) if value % 1 or value != value else array.copy()
        array[30, 20] = value
        return array

    return change


# The brain data: clean as it is, every planted fault named


def test_the_brain_data_are_clean() -> None:
    diagnosis = diagnose(BRAIN)
    assert diagnosis.findings == ()
    facts = diagnosis.facts
    few, always = facts["notes"]
    assert few.startswith("test holds 3 patients: evaluate gives no intervals for fewer than 5")
    assert always.startswith("every training image holds csf, grey_matter, white_matter: ")
    assert facts["cases"] == {"train": 70, "val": 14, "test": 24}
    assert (facts["patients"], facts["patients_declared"]) == (13, True)
    assert [c["cases"] for c in facts["classes"]] == [108] * 4
    shares = [round(c["share"], 3) for c in facts["classes"]]  # the table of data/brain/README.md
    assert shares == [0.728, 0.014, 0.159, 0.099]
    assert (facts["sizes"], facts["dtypes"], facts["channels"]) == (
        *({"197×233": 108}, {"uint8": 108}),
        {"1": 108},
    )
    assert any("zscore" in reason for reason in facts["preprocessing"])
    cost = facts["training"]
    assert cost["slices"] == 70
    assert cost["disk_mb"] == pytest.approx(150 + 70 * 197 * 233 * 3 / 1e6)
    patch = (160**2 * 0.72e6 + 0.3e9) / 1e11
    assert cost["seconds_per_pass"] == pytest.approx(70 * patch)
    assert cost["seconds_per_epoch"] == pytest.approx(40 * 8 * patch)
    assert any("; an epoch (40 steps) takes about 60 s on" in line for line in facts_text(facts))


def plant_faults(root: Path) -> set[tuple[str, str]]:
    with (root / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test"]
    wanted = set()

    def plant(kind: str, row: dict[str, str], part: str, change=None, suffix: str = "") -> None:
        path = root / row[part]
        if change is not None:
            path = edit(path, change, suffix)
            row[part] = path.relative_to(root).as_posix()
        wanted.add((kind, row[part]))

    (root / train[3]["mask"]).unlink()
    plant("mask-missing", train[3], "image")
    (root / train[6]["image"]).unlink()
    plant("image-missing", train[6], "image")
    plant("size-differs", train[9], "mask", lambda m: m[:150, :150])
    plant("flipped-mask", train[12], "mask", lambda m: m[::-1])
    plant("mask-not-integer", train[15], "mask", with_value(2.5), ".tif")
    plant("mask-value", train[18], "mask", with_value(9))
    plant("mask-jpeg", train[21], "mask", lambda m: m, ".jpg")
    plant("mask-colours", train[24], "mask", lambda m: np.eye(4, 3, dtype=np.uint8)[m] * 255)
    damaged = root / train[27]["image"]
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    plant("unreadable", train[27], "image")
    plant("constant-image", train[30], "image", lambda i: i * 0 + 7)
    plant("mask-values-differ", train[33], "mask", lambda m: (m > 0) * np.uint8(255))
    plant("not-finite", train[36], "image", with_value(np.nan), ".tif")
    for part in ("image", "mask"):
        shutil.copy(root / train[39][part], root / test[5][part])
    plant("duplicate-image", test[5], "image")
    test[9]["patient"] = train[0]["patient"]
    plant("leakage", test[9], "image")
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return wanted


def test_planted_faults_are_all_named_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "brain"
    shutil.copytree(BRAIN, root)
    wanted = plant_faults(root)
    assert len(wanted) == 14
    lines, code = report_on(root, tmp_path / "out", as_json=True)
    report = json.loads("\n".join(lines))
    errors = [f for f in report["findings"] if f["level"] == "error"]
    below = {(f["kind"], Path(f["path"]).relative_to(root).as_posix()) for f in errors}
    assert below == wanted
    assert (code, report["errors"], len(errors)) == (2, 14, 14)
    assert all(f["message"] and f["remedy"] for f in report["findings"])
    sinking = {f["kind"] for f in errors if f["sinks"]}
    assert {"mask-missing", "size-differs", "not-finite", "mask-value"} < sinking
    assert not sinking & {"leakage", "duplicate-image", "flipped-mask", "constant-image"}
    with (tmp_path / "out" / "findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["kind"], r["path"]) for r in rows] == [
        (f["kind"], f["path"]) for f in report["findings"]
    ]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    with Image.open(report["sheet"]) as sheet:
        assert sheet.size[0] == 1558  # six columns
        reds = (np.asarray(sheet.convert("RGB")) == (200, 20, 30)).all(-1)
    assert reds.sum() > 13 * 4 * 240 * 3 * 0.9  # a frame around each case that is there


# One kind of finding at a time, on tiny data sets


def png_fault(part: str, change: Callable[[np.ndarray], np.ndarray], suffix: str = ""):
    def plant(root: Path) -> None:
        edit(root / part / "case2.png", change, suffix)

    return plant


def extra_copy(root: Path) -> None:
    shutil.copy(root / "images/case0.png", root / "images/twin.png")
    shutil.copy(root / "masks/case0.png", root / "masks/twin.png")


def declare(names: str) -> Callable[[Path], object]:
    return lambda root: (root / "classes.txt").write_text(names)


@pytest.mark.parametrize(
    ("plant", "level", "kind", "path"),
    [
        (lambda root: (root / "masks/case2.png").unlink(), "error", "mask-missing", "images"),
        (lambda root: (root / "images/case2.png").unlink(), "error", "image-missing", "masks"),
        (png_fault("masks", lambda m: m[::-1]), "error", "flipped-mask", "masks"),
        (png_fault("masks", lambda m: m[:, ::-1]), "error", "flipped-mask", "masks"),
        (png_fault("masks", lambda m: m.T), "error", "size-differs", "masks"),
        (png_fault("masks", lambda m: (m > 0) * np.uint8(255)), "error", "mask-values-differ", ""),
        (png_fault("masks", with_value(2.5), ".tif"), "error", "mask-not-integer", ".tif"),
        (png_fault("masks", with_value(np.nan), ".tif"), "error", "mask-not-integer", ".tif"),
        (png_fault("masks", with_value(1.9995), ".tif"), "warning", "reader", ".tif"),
        (png_fault("masks", lambda m: m * 0), "warning", "empty-mask", "masks"),
        (png_fault("images", lambda i: i * 0 + 3), "error", "constant-image", "images"),
        (png_fault("images", with_value(np.inf), ".tif"), "error", "not-finite", ".tif"),
        (
            png_fault("images", lambda i: np.stack([i, i // 2], -1), ".png"),
            *("warning", "reader", "images"),
        ),
        (
            png_fault("images", lambda i: i.astype(np.uint16) * 257),
            *("warning", "bit-depth-mixed", "images"),
        ),
        (
            png_fault("images", lambda i: i.astype(np.float32), ".tif"),
            *("warning", "dtype-mixed", ".tif"),
        ),
        (extra_copy, "warning", "duplicate-image", "images/twin.png"),
        (declare("0 bg\n1 a\n2 b\n3 c\n"), "warning", "class-missing", "root"),
        (declare("0 bg\n1 a\n1 b\n"), "error", "classes", "classes.txt"),
        (declare("0 bg\nlesion\n"), "error", "classes", "classes.txt"),
        (png_fault("masks", with_value(3)), "warning", "class-rare", "root"),
    ],
)
def test_one_fault_is_one_finding(
    tmp_path: Path, plant: Callable[[Path], object], level: str, kind: str, path: str
) -> None:
    root = write_png_dataset(tmp_path / "data", 25)
    assert diagnose(root).findings == ()
    plant(root)
    findings = [f for f in diagnose(root).findings if f.level == level]
    assert [f.kind for f in findings] == [kind]
    where = findings[0].path
    if path == "root":
        assert where == root
    else:
        assert path in where.as_posix()
        assert where.stem in ("case2", "twin", "classes")


def test_files_that_may_not_be_read_are_named_and_the_others_checked(
    tmp_path: Path, forbid: Callable[..., None]
) -> None:
    root = write_png_dataset(tmp_path / "data", 25)
    forbid(root / "images" / "case2.png", root / "masks" / "case4.png")
    result = diagnose(root)
    assert {(f.path.relative_to(root).as_posix(), f.message) for f in result.findings} == {
        (name, "can't be read (Permission denied)")
        for name in ("images/case2.png", "masks/case4.png")
    }
    assert result.facts["sizes"] == {"64×48": 23}


def test_a_file_that_is_gone_before_its_checksum_is_taken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_png_dataset(tmp_path / "data", 25)

    def gone(path: Path) -> str:
        if path.name == "case3.png":
            raise OSError(5, "Input/output error", str(path))
        return path.name

    monkeypatch.setattr("segapp.cases.sha256", gone)
    assert [str(f) for f in diagnose(root).findings] == [
        f"{root / 'images' / 'case3.png'}: can't be read (Input/output error); replace the file "
        "with a sound copy, or remove the case"
    ]


def test_a_series_folder_that_can_not_be_listed_is_one_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_png_dataset(tmp_path / "data", 25)
    (root / "images" / "series").mkdir()
    pairs = [(f"images/case{n}.png", f"masks/case{n}.png") for n in range(12)]
    lines = [f"{image},{mask}\n" for image, mask in [*pairs, ("images/series", pairs[0][1])]]
    (root / "cases.csv").write_text("image,mask\n" + "".join(lines))
    look = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self.name == "series":
            raise PermissionError(13, "Permission denied", str(self))
        return look(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert [f.message for f in diagnose(root).findings if f.level == "error"] == [
        "can't be listed (Permission denied)"
    ]


def test_a_mask_value_outside_declared_classes_names_every_mask(tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path, 8)
    (root / "classes.txt").write_text("bg\ndisc\nsquare\n")
    for n in (1, 5):
        edit(root / f"masks/case{n}.png", with_value(40 + n))
    assert found(root) == {("mask-value", f"masks/case{n}.png") for n in (1, 5)}


def test_values_beyond_what_masks_hold(tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path, 8)
    change = with_value(-1)
    edit(root / "masks/case1.png", lambda m: change(m.astype(np.int16)), ".tif")
    assert found(root) == {("mask-value", "masks/case1.tif")}


def test_masks_of_grey_levels_are_doubted(tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path, 6)
    levels = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) // 2
    for n in range(6):
        save(root / f"masks/case{n}.png", levels)
    assert ("many-classes", ".") in found(root, "warning")


def test_masks_of_0_and_255_are_fine(tmp_path: Path) -> None:
    assert diagnose(write_png_dataset(tmp_path, 25, values=(0, 255, 255))).findings == ()


def write_splits(root: Path, **cases: int) -> Path:
    seed = 0
    for split, count in cases.items():
        for n in range(count):
            image, mask = draw_case(seed)
            save(root / split / "images" / f"{split}{n}.png", image)
            save(root / split / "masks" / f"{split}{n}.png", mask)
            seed += 1
    return root


def test_the_same_image_in_two_splits(tmp_path: Path) -> None:
    root = write_splits(tmp_path, train=6, val=5, test=2)
    assert diagnose(root).findings == ()
    for part in ("images", "masks"):
        shutil.copy(root / "train" / part / "train3.png", root / "test" / part / "test1.png")
    assert found(root) == {("duplicate-image", "test/images/test1.png")}
    assert found(root, "warning") == set()  # not a near duplicate as well


def test_a_copied_case_of_one_patient_is_one_error(tmp_path: Path) -> None:
    root = write_splits(tmp_path, train=6, val=5, test=2)
    lines = [
        f"{image},{image.replace('images', 'masks')},{Path(image).stem},{image.split('/')[0]}"
        for path in sorted(root.rglob("images/*.png"))
        if (image := path.relative_to(root).as_posix())
    ]
    for part in ("images", "masks"):
        shutil.copy(root / "train" / part / "train3.png", root / "test" / part / "x.png")
    lines.append("test/images/x.png,test/masks/x.png,train3,test")
    (root / "cases.csv").write_text("\n".join(["image,mask,patient,split", *lines]))
    assert found(root) == {("duplicate-image", "test/images/x.png")}
    lines.append("test/images/test0.png,test/masks/test0.png,train3,test")
    del lines[[line[:17] for line in lines].index("test/images/test0")]
    (root / "cases.csv").write_text("\n".join(["image,mask,patient,split", *lines]))
    assert found(root) == {  # a leak of its own
        ("duplicate-image", "test/images/x.png"),
        ("leakage", "test/images/test0.png"),
    }


def test_the_same_picture_saved_again(tmp_path: Path) -> None:
    root = write_splits(tmp_path, train=6, val=5)
    for path in root.rglob("images/*.png"):  # smooth pictures, which JPEG changes little
        edit(path, lambda i: cv2.GaussianBlur(cv2.equalizeHist(i), (0, 0), 3))
    assert found(root, "warning") == set()
    image = Image.open(root / "train/images/train2.png")
    (root / "val/images/val0.png").unlink()
    image.save(root / "val/images/val0.jpg", quality=90)
    assert found(root, "warning") == {("near-duplicate", "val/images/val0.jpg")}
    assert found(root) == set()


def test_black_slices_are_no_duplicates(tmp_path: Path) -> None:
    root = write_splits(tmp_path, train=6, val=5)
    for path in ("train/images/train0.png", "val/images/val0.png"):
        edit(root / path, lambda i: i * 0)
        edit(root / path.replace("images", "masks"), lambda m: m * 0)
    assert found(root) == set()
    kinds = [f.kind for f in diagnose(root).findings]
    assert kinds == ["constant-image"] * 2 + ["empty-mask"] * 2


def test_a_declared_patient_in_two_splits_is_an_error_a_guessed_one_a_warning(
    tmp_path: Path,
) -> None:
    root = write_splits(tmp_path, train=6, val=5)
    for part in ("images", "masks"):
        for n in (0, 1):
            name = root / "train" / part
            (name / f"train{n}.png").rename(name / f"pat7_slice{n}.png")
        name = root / "val" / part
        (name / "val0.png").rename(name / "pat7_slice9.png")
    assert (found(root), found(root, "warning")) == (set(), {("leakage-guessed", ".")})
    (finding,) = diagnose(root).findings
    assert finding.message == "1 name that may mean a patient is in train and in val (pat7)"
    lines = ["image,mask,patient,split"]
    for n, path in enumerate(sorted(root.rglob("images/*.png"))):
        image = path.relative_to(root).as_posix()
        patient = "seven" if "pat7" in image else f"p{n}"
        lines.append(f"{image},{image.replace('images', 'masks')},{patient},{image.split('/')[0]}")
    (root / "cases.csv").write_text("\n".join(lines))
    assert found(root) == {("leakage", "val/images/pat7_slice9.png")}
    assert found(root, "warning") == set()


def test_one_warning_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    page = "segapp.report.sheet.headed_page"
    monkeypatch.setattr(page, lambda *args: (said.append(args[2]), headed_page(*args))[1])
    odd = Finding("warning", "x", tmp_path, "odd")
    write_sheet(Dataset(tmp_path, ()), [odd], (), (), tmp_path / "sheet.png")
    assert said == [f"{tmp_path.name}: 0 cases, 0 errors, 1 warning"]


def test_the_sheet_says_which_cases_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    page = "segapp.report.sheet.headed_page"
    monkeypatch.setattr(page, lambda *args: (said.append(args[2]), headed_page(*args))[1])
    drawn: list[str] = []
    read = "segapp.report.sheet.read_labels"
    monkeypatch.setattr(read, lambda path: (drawn.append(path.stem), read_labels(path))[1])
    dataset = list_cases(write_splits(tmp_path / "d", train=24, val=2))
    odd = Finding("warning", "x", dataset.cases[-1].mask, "odd")
    for findings in ([], [odd]):
        write_sheet(dataset, findings, (), (), tmp_path / "sheet.png")
    assert said == [
        "d: 24 of 26 cases (evenly spread over each split), 0 errors, 0 warnings",
        "d: 24 of 26 cases (those with findings first, then evenly spread over each split), "
        "0 errors, 1 warning",
    ]
    assert len(drawn) == 48
    assert drawn[0] == "train0"
    assert drawn[21:25] == ["train9", "val0", "val1", "val1"]


@pytest.mark.parametrize(
    ("names", "patients", "like"),
    [
        (["012_a", "012_b", "013_a", "013_b", "014_a"], 5, "3 patients (012_a, 012_b, …)"),
        (["001_01", "001_02", "002_01"], 3, "2 patients (001_01, 001_02, …)"),
        (["patient1_1", "patient1_2", "patient2_1", "patient2_2"], 4, "2 patients (patient1_1, "),
        (["case_1", "case_2", "case_3"], 3, ""),  # no number before the last one
        (["2023_1", "2023_2", "2023_3"], 3, ""),  # one prefix for all says nothing
        (["p1", "p2", "p3_a"], 3, ""),
        (["p1_slice1", "p1_slice2", "p2_slice1", "p2_slice2"], 2, ""),  # grouped already
    ],
)
def test_names_that_look_like_fewer_patients(tmp_path, names, patients, like) -> None:
    for n, name in enumerate(names):
        image, mask = draw_case(n)
        save(tmp_path / "images" / f"{name}.png", image)
        save(tmp_path / "masks" / f"{name}.png", mask)
    result = diagnose(tmp_path)
    told = [f.message for f in result.findings if f.kind == "patients-alike"]
    assert len(told) == bool(like)
    assert all(f"look like {like}" in text for text in told)
    origin = "guessed from names" if patients == 2 else "each image counted as a patient of its own"
    origin += f", but the names look like {like[0]}: see patients-alike below" if like else ""
    assert f"patients:     {patients}, {origin}" in facts_text(result.facts)
    assert any(note.startswith("no test split: ") for note in result.facts["notes"])
    settings = Settings(data={"root": tmp_path}, train={"out": tmp_path / "run"})
    assert any("look like" in w for w in make_plan(settings).warnings) == bool(like)


def test_a_case_of_nnunet_in_two_splits(tmp_path: Path) -> None:
    for n, name in enumerate(["Tr/a", "Tr/b", "Tr/c", "Tr/d", "Tr/e", "Tr/f", "Ts/b"]):
        image, mask = draw_case(n)
        folder, case = name.split("/")
        save(tmp_path / f"images{folder}" / f"{case}_0000.png", image)
        save(tmp_path / f"labels{folder}" / f"{case}.png", mask)
    info = {"channel_names": {"0": "x"}, "labels": {"bg": 0, "a": 1, "b": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    assert found(tmp_path) == {("leakage", "imagesTs/b_0000.png")}


def write_dicom_splits(root: Path, patients: list[str]) -> Path:
    splits = ["train"] * 6 + ["val"] * 2
    for n, (split, patient) in enumerate(zip(splits, patients, strict=True)):
        image, mask = draw_case(n)
        volume = np.stack([image.astype(np.int16) + k for k in range(3)])
        write_series(root / split / "images" / f"s{n}", volume, seed=f"{n}", PatientID=patient)
        labels = np.repeat(mask.T[..., None], 3, 2)
        affine = np.diag([-1, -1, 1, 1.0])
        (root / split / "masks").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels, affine), root / split / "masks" / f"s{n}.nii.gz")
    return root


def test_a_dicom_patient_in_two_splits_is_found_and_not_named(tmp_path: Path) -> None:
    names = [f"{CANARY}{n}" for n in range(7)]
    root = write_dicom_splits(tmp_path / "a", [*names, names[2]])
    assert found(root) == {("leakage", "val/images/s7/0000.dcm")}
    lines, _ = report_on(root, tmp_path / "out")
    written = "".join(p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix != ".png")
    assert CANARY not in "".join(lines) + written
    anonymous = write_dicom_splits(tmp_path / "b", [f"{CANARY}X"] * 8)
    assert found(anonymous) == set()  # one name for all says nothing


def test_spacings_that_differ_widely(tmp_path: Path) -> None:
    for n in range(25):
        image, mask = draw_case(n)
        mm = 0.4 if n == 5 else 1
        for part, array in (("images", image), ("masks", mask)):
            (tmp_path / part).mkdir(exist_ok=True)
            volume = nib.Nifti1Image(array.T[..., None], np.diag([mm, mm, 3, 1]))
            nib.save(volume, tmp_path / part / f"{n}.nii.gz")
    findings = diagnose(tmp_path).findings
    assert [(f.level, f.kind) for f in findings] == [("warning", "spacing-mixed")]
    assert "0.4 to 1 mm" in findings[0].message


def test_channels_that_do_not_go_together(tmp_path: Path) -> None:
    for n in range(8):
        image, mask = draw_case(n)
        for channel in range(1 if n == 3 else 2):
            name = f"{n}.png" if n == 3 else f"{n}_{channel:04}.png"
            save(tmp_path / "imagesTr" / name, np.roll(image, channel, 0))
        save(tmp_path / "labelsTr" / f"{n}.png", mask)
    info = {"channel_names": {"0": "x", "1": "y"}, "labels": {"bg": 0, "a": 1, "b": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    assert found(tmp_path) == {("channels-differ", "imagesTr/3.png")}
    (tmp_path / "imagesTr/5_0001.png").unlink()
    assert ("channel-missing", "imagesTr/5_0000.png") in found(tmp_path)


@pytest.mark.parametrize(("val", "told"), [(4, True), (5, False)])
def test_too_small_a_val_split_for_the_model_to_judge_by(
    tmp_path: Path, val: int, told: bool
) -> None:
    root = write_splits(tmp_path, train=6, val=val, test=5)
    assert (found(root, "warning") == {("few-patients", ".")}) == told
    assert not any("intervals" in note for note in diagnose(root).facts["notes"])


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"val": 5, "test": 1}, "test holds 1 patient: evaluate gives no intervals for fewer than"),
        ({"val": 5, "test": 4}, "test holds 4 patients: "),
        ({"val": 4}, "val holds 4 patients: "),
    ],
)
def test_too_few_patients_for_intervals(tmp_path: Path, splits: dict[str, int], said: str) -> None:
    notes = diagnose(write_splits(tmp_path, train=6, **splits)).facts["notes"]
    assert [note.startswith(said) for note in notes if "intervals" in note] == [True]


def test_what_every_training_image_holds(tmp_path: Path) -> None:
    root = write_splits(tmp_path, train=6, val=5, test=5)
    named, note = diagnose(root).facts["notes"]
    assert named.endswith('lines in a classes.txt name them: "0 background" and "1 NAME", …')
    (root / "classes.txt").write_text("0 background\n1 class_1\n2 class_2\n")
    (note,) = diagnose(root).facts["notes"]
    assert note.startswith("every training image holds class_1, class_2: results on images without")
    edit(root / "train/masks/train2.png", lambda m: m * (m == 2))
    (note,) = diagnose(root).facts["notes"]
    assert note.startswith("every training image holds class_2: results on images without it")
    edit(root / "train/masks/train3.png", lambda m: m * (m == 1))
    assert diagnose(root).facts["notes"] == []


@pytest.mark.parametrize(
    ("count", "level", "kind"),
    [(1, "error", "val-split"), (3, "warning", "few-patients")],
)
def test_too_few_patients(tmp_path: Path, count: int, level: str, kind: str) -> None:
    assert (kind, ".") in found(write_png_dataset(tmp_path, count), level)


def test_no_foreground_at_all(tmp_path: Path) -> None:
    root = write_splits(tmp_path, train=6, val=5)
    for path in root.rglob("train/masks/*.png"):
        edit(path, lambda m: m * 0)
    assert found(root) == {("class-missing", ".")}


@pytest.mark.parametrize("splits", [{"val": 6, "test": 2}, {"test": 3}])
def test_nothing_to_train_on(tmp_path: Path, splits: dict[str, int]) -> None:
    assert found(write_splits(tmp_path, **splits)) == {("no-training-cases", ".")}


def test_training_images_that_can_not_be_read_are_all_there_is_to_say(tmp_path: Path) -> None:
    root = write_splits(tmp_path, train=6, val=5)
    for path in root.glob("train/images/*"):
        path.write_bytes(path.read_bytes()[:40])
    assert {kind for kind, _ in found(root)} == {"unreadable"}
    assert found(root, "warning") == set()


def test_a_wrong_word_for_a_split_has_no_consequences(tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path, 8)
    words = ["train", "train", "Train", "Train", "Val", "Val", "test", "test"]
    lines = [f"images/case{n}.png,masks/case{n}.png,{w}" for n, w in enumerate(words)]
    (root / "cases.csv").write_text("\n".join(["image,mask,split", *lines]))
    assert [f.kind for f in diagnose(root).findings if f.level == "error"] == ["split"] * 2
    (root / "cases.csv").write_text("\n".join(["image,mask,split", *lines[2:6]]))
    assert [f.kind for f in diagnose(root).findings] == ["split"] * 2


def test_some_masks_flipped_and_no_majority(tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path, 25)
    for n in range(0, 24, 3):
        edit(root / f"masks/case{n}.png", lambda m: m[::-1])
    (finding,) = diagnose(root).findings
    assert (finding.level, finding.kind, finding.path) == ("warning", "flipped-mask", root)
    assert finding.message.startswith("8 of 25 masks fit their images better when flipped (8 top")
    assert "case0.png), the others do not" in finding.message


def test_a_dicom_series_with_gaps_is_not_sent_to_an_option_of_predict(tmp_path: Path) -> None:
    root = write_dicom_splits(tmp_path, ["A", "B", "C", "D", "E", "F", "G", "H"])
    write_series(root / "train/images/s1", np.zeros((6, 48, 64), np.int16), seed="1")
    for n in (2, 3):
        (root / f"train/images/s1/{n:04}.dcm").unlink()
    (finding,) = [f for f in diagnose(root).findings if f.level == "error"]
    assert finding.kind == "slices-missing"
    assert finding.remedy == "export the whole series, or remove the case"


# The command


def test_a_data_set_without_any_usable_case_is_still_described(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / "d/images" / f"{n}.png", np.zeros((9, 9), np.uint8))
    (tmp_path / "d/masks").mkdir()
    lines, code = report_on(tmp_path / "d", tmp_path / "out")
    assert code == 2
    assert sum("mask-missing" in line for line in lines) == 3
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_the_screen_shows_ten_of_a_kind(tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path / "d", 16)
    for n in range(13):
        (root / f"masks/case{n}.png").unlink()
    lines, _ = report_on(root, tmp_path / "out")
    assert sum(line.startswith("error    mask-missing  ") for line in lines) == 11
    assert any(line.endswith(f"and 3 more; all in {tmp_path}/out/findings.csv") for line in lines)
    assert len((tmp_path / "out" / "findings.csv").read_text().splitlines()) >= 14


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_data_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        report_on(tmp_path / name, tmp_path / "out")
    lines, code = report_on(tmp_path / name, tmp_path / "out", as_json=True)
    report = json.loads(lines[0])
    assert (code, report["errors"], report["sheet"]) == (2, 1, None)
    assert (report["findings"][0]["kind"], report["findings"][0]["path"]) == (
        *("layout", str(tmp_path / name)),
    )
    assert not (tmp_path / "out").exists()


def test_the_folder_for_results_is_tried_before_the_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        report_on(tmp_path / "nowhere", tmp_path / "file")


def test_the_command_prints_one_object_and_needs_no_torch(tmp_path: Path) -> None:
    data = write_png_dataset(tmp_path / "d", 8)
    code = (
        "import sys; sys.modules['torch'] = None; from segapp.cli import main\n"
        f"sys.argv = ['segapp', 'check', {str(data)!r}, '--json']; main()"
    )
    here = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": here, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["errors"] == 0
    written = sorted(p.name for p in (tmp_path / "runs" / "check-d").iterdir())
    assert written == ["findings.csv", "report.json", "sheet.png"]
