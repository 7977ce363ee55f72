import csv
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from batches import outcomes_of
from dicom_files import image, write_series
from PIL import Image
from test_predict import BrightnessEngine, brightness, by_brightness, load, make_volume

from segapp.batch import list_inputs, predict_batch
from segapp.errors import DataError, OutputError, ScanError
from segapp.predict import Predictor
from segapp.preprocess import Preprocessing
from segapp.scan import make_classes

NAMES = ("background", "grey", "bright")
EDITED = "changed since it was written; left as it is, the figures here are of before"


def save_png(path, seed=0, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def save_volume(path, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(make_volume(**kwargs), path)


def run(inputs, out, **kwargs):
    outcomes = outcomes_of(brightness(), list_inputs(inputs, exclude=out), out, **kwargs)
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["status"] for r in rows] == [o.status for o in outcomes]
    return rows


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def values(path):
    return np.asarray(Image.open(path))


def expected(pixels):
    return np.array([0, 100, 255], np.uint8)[by_brightness(pixels)]


def test_a_folder_is_mirrored(tmp_path):
    pixels = save_png(tmp_path / "in" / "a.png")
    save_png(tmp_path / "in" / "sub" / "a.png", 1)
    save_png(tmp_path / "in" / "sub" / "b.jpg", 2)
    save_png(tmp_path / "in" / "sub" / "c.tiff", 3)
    save_volume(tmp_path / "in" / "deep" / "er" / "v.nii.gz")
    save_volume(tmp_path / "in" / "w.nii")
    save_png(tmp_path / "in" / ".hidden.png")
    out = tmp_path / "out"
    rows = run([tmp_path / "in"], out)
    outputs = ["a.png", "deep/er/v.nii.gz", "sub/a.png", "sub/b.png", "sub/c.tif", "w.nii"]
    assert files(out) == sorted([*outputs, "predictions.csv"])
    assert sorted(r["output"] for r in rows) == sorted(str(out / name) for name in outputs)
    assert np.array_equal(values(out / "a.png"), expected(pixels))


def test_the_columns_are_the_contracts(tmp_path):
    save_png(tmp_path / "a.png", size=(4, 5))
    save_volume(tmp_path / "v.nii", shape=(4, 5, 6))
    image = nib.Nifti1Image(np.full((4, 5, 1), 200, np.uint8), np.diag([2.0, 3.0, 1.0, 1.0]))
    nib.save(image, tmp_path / "slice.nii")
    rows = run([tmp_path], tmp_path / "out")
    assert list(rows[0]) == [
        *("file", "output", "status", "reason", "seconds", "mean_confidence", "warnings"),
        *(f"{name}_{unit}" for unit in ("voxels", "ml", "mm2") for name in NAMES),
        *("model", "scan_sha256", "output_sha256"),
    ]
    by_name = {os.path.basename(r["file"]): r for r in rows}  # noqa: PTH119
    png, volume, single = by_name["a.png"], by_name["v.nii"], by_name["slice.nii"]
    assert sum(int(png[f"{n}_voxels"]) for n in NAMES) == 20
    assert {png[f"{n}_{unit}"] for unit in ("ml", "mm2") for n in NAMES} == {""}
    for n in NAMES:
        assert float(volume[f"{n}_ml"]) == pytest.approx(int(volume[f"{n}_voxels"]) * 0.02)
        assert volume[f"{n}_mm2"] == ""
        assert single[f"{n}_ml"] == ""
    assert (single["bright_voxels"], single["bright_mm2"], single["grey_mm2"]) == ("20", "120", "0")
    assert float(single["mean_confidence"]) == pytest.approx(1, abs=1e-3)
    assert float(png["seconds"]) >= 0
    assert png["reason"] == png["warnings"] == ""


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    save_png(tmp_path / "a.png")
    save_png(tmp_path / "d.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.nii.gz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no scan")
    Image.fromarray(np.zeros((5, 5, 2), np.uint8), "LA").save(tmp_path / "e.png")
    given = [tmp_path / n for n in ("notes.txt", "a.png", "b.png", "c.nii.gz", "d.png")]
    rows = run(given, tmp_path / "out")
    assert [r["status"] for r in rows] == ["failed", "ok", "failed", "failed", "ok"]
    assert "is no scan of a known format (suffix .txt)" in rows[0]["reason"]
    assert "is not a PNG, JPEG" in rows[2]["reason"]
    assert rows[3]["reason"] == "the file is empty"
    assert [r["output"] != "" for r in rows] == [False, True, False, False, True]
    assert files(tmp_path / "out") == ["a.png", "d.png", "predictions.csv"]


def test_channels_that_do_not_fit_fail_for_that_file(tmp_path):
    for name, channels in (("a.nii", 1), ("a_0000.nii", 1), ("a_0001.nii", 1)):
        save_volume(tmp_path / "in" / name, seed=channels)
    entries = list_inputs([tmp_path / "in"], channel_files=2)
    assert [len(e.paths) for e in entries] == [1, 2]
    outcomes = outcomes_of(brightness(), entries, tmp_path / "out")
    assert [o.status for o in outcomes] == ["ok", "failed"]
    assert outcomes[1].reason == "has 2 channel(s); the model was trained on 1"


class FailingEngine(BrightnessEngine):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def __call__(self, batch):
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "not enough memory for this scan"),
        (RuntimeError("odd\nthing"), "unexpected RuntimeError: odd\nthing"),
    ],
)
def test_even_a_bug_is_one_files_failure(tmp_path, error, reason):
    save_png(tmp_path / "a.png")
    predictor = brightness()
    predictor.engine = FailingEngine(error)
    outcomes = outcomes_of(predictor, list_inputs([tmp_path / "a.png"]), tmp_path / "out")
    assert (outcomes[0].status, outcomes[0].reason) == ("failed", reason)


def test_an_interrupted_batch_keeps_its_record(tmp_path):
    for n in range(3):
        save_png(tmp_path / "in" / f"{n}.png", n)

    def stop(outcome):
        if outcome.file.name == "1.png":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_batch(
            brightness(), list_inputs([tmp_path / "in"]), tmp_path / "out", on_outcome=stop
        )
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 3
    assert files(tmp_path / "out") == ["0.png", "1.png", "predictions.csv"]


def test_a_clash_gets_a_number_and_a_warning(tmp_path):
    first = save_png(tmp_path / "x" / "a.png", 1)
    second = save_png(tmp_path / "y" / "a.png", 2)
    save_png(tmp_path / "x" / "a.bmp", 3)
    given = [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png", tmp_path / "x" / "a.bmp"]
    rows = run(given, tmp_path / "out")
    assert files(tmp_path / "out") == ["a.png", "a_2.png", "a_3.png", "predictions.csv"]
    warnings = [r["warnings"] for r in rows]
    assert warnings == ["", *(f"a.png is taken; written as a_{n}.png" for n in (2, 3))]
    assert np.array_equal(values(tmp_path / "out" / "a.png"), expected(first))
    assert np.array_equal(values(tmp_path / "out" / "a_2.png"), expected(second))


def test_a_png_and_a_jpeg_of_one_name(tmp_path):
    save_png(tmp_path / "in" / "s" / "a.png", 1)
    save_png(tmp_path / "in" / "s" / "a.jpg", 2)
    save_png(tmp_path / "in" / "s" / "a_2.png", 3)
    rows = run([tmp_path / "in"], tmp_path / "out")
    assert len({r["output"] for r in rows}) == 3
    assert len(files(tmp_path / "out")) == 4
    assert sum("is taken" in r["warnings"] for r in rows) >= 1


@pytest.mark.parametrize("named", ["folder", "file", "link"])
def test_an_input_is_never_written_over(tmp_path, named):
    folder = tmp_path / "in"
    pixels = save_png(folder / "a.png")
    out = folder
    if named == "link":
        out = tmp_path / "link"
        out.symlink_to(folder)
    rows = run([folder / "a.png" if named == "file" else folder], out)
    assert [r["status"] for r in rows] == ["ok"]
    assert np.array_equal(values(folder / "a.png"), pixels)
    assert np.array_equal(values(folder / "a_2.png"), expected(pixels))
    assert rows[0]["warnings"] == "a.png is taken; written as a_2.png"


def test_an_output_folder_above_the_inputs(tmp_path):
    save_png(tmp_path / "in" / "a.png")
    assert [r["status"] for r in run([tmp_path / "in"], tmp_path)] == ["ok"]
    assert files(tmp_path) == ["a.png", "in/a.png", "predictions.csv"]


def test_an_output_folder_inside_the_inputs_is_not_read_again(tmp_path):
    save_png(tmp_path / "a.png")
    for _ in range(2):
        rows = run([tmp_path], tmp_path / "out", overlay=True)
        assert [r["file"] for r in rows] == [str(tmp_path / "a.png")]


def test_overlays_stand_beside_the_results(tmp_path):
    save_png(tmp_path / "in" / "s" / "a.png", size=(20, 30))
    save_volume(tmp_path / "in" / "v.nii.gz")
    run([tmp_path / "in"], tmp_path / "out", overlay=True)
    assert files(tmp_path / "out") == [
        *("predictions.csv", "s/a.png", "s/a_overlay.png", "v.nii.gz", "v_overlay.png")
    ]
    assert values(tmp_path / "out" / "s" / "a_overlay.png").shape == (20, 30, 3)


@pytest.mark.parametrize("inside", [True, False])
def test_an_overlay_takes_nobodys_name(tmp_path, inside):
    save_png(tmp_path / "in" / "a.png", 1)
    pixels = save_png(tmp_path / "in" / "a_overlay.png", 2)
    save_png(tmp_path / "in" / "a_2_overlay.png", 3)
    out = tmp_path / "in" if inside else tmp_path / "out"
    before = {name: (tmp_path / "in" / name).read_bytes() for name in files(tmp_path / "in")}
    rows = run([tmp_path / "in"], out, overlay=True)
    assert {r["status"] for r in rows} == {"ok"}
    for name, content in before.items():
        assert (tmp_path / "in" / name).read_bytes() == content
    result = next(r["output"] for r in rows if r["file"].endswith("/a_overlay.png"))
    assert np.array_equal(values(result), expected(pixels))
    assert len(files(out)) == 6 + 1 + 3 * inside


def test_existing_results_are_skipped(tmp_path):
    save_png(tmp_path / "in" / "a.png", 1)
    save_png(tmp_path / "in" / "b.png", 2)
    out = tmp_path / "out"
    run([tmp_path / "in" / "a.png"], out)
    content = (out / "a.png").read_bytes()
    (out / "a.png").write_bytes(content + b"touched")
    rows = run([tmp_path / "in"], out, skip_existing=True)
    assert [(r["status"], r["reason"]) for r in rows] == [("skipped", "output exists"), ("ok", "")]
    assert rows[0]["warnings"] == EDITED
    measured = ("mean_confidence", "background_voxels", "seconds")
    assert all(rows[0][key] for key in measured), "a skipped scan keeps its figures"
    assert (out / "a.png").read_bytes() == content + b"touched"
    run([tmp_path / "in"], out)
    assert (out / "a.png").read_bytes() == content


def test_a_mask_of_0_and_255_in_gives_0_and_255_out(tmp_path):
    pixels = np.tile(np.array([0, 100], np.uint8), (8, 4))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    nib.save(nib.Nifti1Image(pixels[..., None].repeat(3, 2), np.eye(4)), tmp_path / "v.nii")
    classes = make_classes(["background", "lesion", "none"], [0, 255, 7])
    predictor = Predictor(BrightnessEngine(), brightness().preprocessing, classes)
    given = [tmp_path / "a.png", tmp_path / "v.nii"]
    predict_batch(predictor, list_inputs(given), tmp_path / "out")
    assert np.array_equal(values(tmp_path / "out" / "a.png"), pixels // 100 * 255)
    volume = np.asarray(load(tmp_path / "out" / "v.nii").dataobj)
    assert np.array_equal(volume[..., 1], pixels // 100 * 255)


def test_warnings_of_reader_and_model_reach_the_table(tmp_path):
    Image.fromarray(np.full((6, 6, 3), 90, np.uint8)).save(tmp_path / "a.png")
    rows = run([tmp_path / "a.png"], tmp_path / "out")
    said = "all voxels have the same value (90); colour image turned grey by luminance"
    assert rows[0]["warnings"] == said


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"sc\xe4n.png")
    try:
        save_png(tmp_path / "in" / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    outcomes = outcomes_of(brightness(), list_inputs([tmp_path / "in"]), tmp_path / "out")
    assert [o.status for o in outcomes] == ["ok"]
    table = tmp_path / "out" / "predictions.csv"
    assert b"sc\xe4n.png" in table.read_bytes()
    with table.open(encoding="utf-8", errors="surrogateescape") as file:  # as documented
        assert Path(next(csv.DictReader(file))["output"]).is_file()


def test_inputs_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        list_inputs([tmp_path / "nothing.png"])
    with pytest.raises(DataError, match="holds no scans"):
        list_inputs([tmp_path])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="one: holds no scans"):
        list_inputs([tmp_path / "one", tmp_path / "two"])


def test_one_empty_folder_among_several_is_a_warning(tmp_path, caplog):
    save_png(tmp_path / "in" / "a.png")
    (tmp_path / "empty").mkdir()
    rows = run([tmp_path / "empty", tmp_path / "in"], tmp_path / "out")
    assert [r["status"] for r in rows] == ["ok"]
    assert f"{tmp_path / 'empty'}: holds no scans" in caplog.text


@pytest.mark.parametrize("place", ["in/closed", "closed"], ids=["below an input", "an input"])
def test_a_folder_that_can_not_be_listed_fails_for_itself(tmp_path, monkeypatch, place):
    save_png(tmp_path / "in" / "a.png")
    save_png(tmp_path / place / "b.png")
    look = Path.iterdir

    def iterdir(self):
        if self == tmp_path / place:
            raise PermissionError(13, "Permission denied", str(self))
        return look(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    given = [tmp_path / "in", *([tmp_path / place] if place == "closed" else [])]
    rows = run(given, tmp_path / "out")
    assert {r["file"]: (r["status"], r["reason"]) for r in rows} == {
        str(tmp_path / "in" / "a.png"): ("ok", ""),
        str(tmp_path / place): ("failed", "can't be listed (Permission denied)"),
    }
    with pytest.raises(ScanError, match="closed: can't be listed"):
        list_inputs([tmp_path / place])


def test_an_output_folder_that_is_a_file(tmp_path):
    save_png(tmp_path / "a.png")
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="can't be written"):
        predict_batch(brightness(), list_inputs([tmp_path / "a.png"]), tmp_path / "out")


def test_a_blocked_subfolder_fails_that_file_only(tmp_path):
    save_png(tmp_path / "in" / "sub" / "a.png")
    save_png(tmp_path / "in" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("in the way")
    rows = run([tmp_path / "in"], tmp_path / "out")
    assert {r["file"].rsplit("/", 1)[1]: r["status"] for r in rows} == {
        "b.png": "ok",
        "a.png": "failed",
    }


def test_preprocessing_that_serves_colour(tmp_path):
    save_png(tmp_path / "a.png")
    prep = Preprocessing(channels=3, normalisation="imagenet", shift=(0,) * 3, scale=(1,) * 3)
    predictor = Predictor(BrightnessEngine(), prep, brightness().classes)
    outcomes = outcomes_of(predictor, list_inputs([tmp_path / "a.png"]), tmp_path / "out")
    assert [o.status for o in outcomes] == ["ok"]


def test_a_result_of_another_scan_is_not_taken_for_its_own(tmp_path):
    save_png(tmp_path / "one" / "a.png", 1)
    save_png(tmp_path / "two" / "a.png", 2)
    out = tmp_path / "out"
    first = run([tmp_path / "one"], out)
    rows = run([tmp_path / "one", tmp_path / "two"], out, skip_existing=True)
    assert [r["status"] for r in rows] == ["skipped", "ok"]
    assert rows[1]["output"] == str(out / "a_2.png")
    assert rows[1]["warnings"] == "a.png is taken; written as a_2.png"
    assert rows[0]["bright_voxels"] == first[0]["bright_voxels"] != rows[1]["bright_voxels"]
    again = run([tmp_path / "two"], out)  # without the option results are made anew, in their place
    assert again[0]["output"] == str(out / "a_2.png")


@pytest.mark.parametrize("archive", [False, True])
def test_a_second_folder_does_not_replace_the_results_of_the_first(tmp_path, archive):
    save_png(tmp_path / "one" / "a.png", 1)
    save_png(tmp_path / "two" / "a.png", 2)
    out, first = tmp_path / "out", tmp_path / "one"
    if archive:
        first = Path(shutil.make_archive(str(tmp_path / "one"), "zip", tmp_path / "one"))
    run([first], out)
    before = (out / "a.png").read_bytes()
    for _ in range(2):
        (row,) = run([tmp_path / "two"], out)
        assert row["output"] == str(out / "a_2.png")
        assert row["warnings"] == "a.png is taken; written as a_2.png"
        assert (out / "a.png").read_bytes() == before
    first.unlink() if archive else shutil.rmtree(first)
    (row,) = run([tmp_path / "two"], out)
    assert (row["output"], row["warnings"]) == (str(out / "a.png"), "")


def test_what_was_left_out_of_the_inputs_is_not_written_over(tmp_path):
    volume = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5)
    write_series(tmp_path / "in" / "ct", volume)
    report = tmp_path / "in" / "ct.dcm"
    image(report, volume[0], seed="report", Modality="SR", PixelData=None)
    before = report.read_bytes()
    for _ in range(2):
        rows = run([tmp_path / "in" / "ct"], tmp_path / "in", output_format="dicomseg")
        assert report.read_bytes() == before
        assert [r["output"] for r in rows] == [str(tmp_path / "in" / "ct_2.dcm")]


def test_a_pipe_among_the_scans_fails_for_itself(tmp_path):
    save_png(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "b.nii")
    os.mkfifo(tmp_path / "in" / "c")
    rows = run([tmp_path / "in"], tmp_path / "out")
    assert [r["status"] for r in rows] == ["ok", "failed", "failed"]
    assert rows[1]["reason"] == rows[2]["reason"] == "is not a regular file"


def test_a_class_may_be_called_like_a_unit(tmp_path):
    save_volume(tmp_path / "v.nii", shape=(4, 5, 6))
    odd = Predictor(
        BrightnessEngine(),
        brightness().preprocessing,
        make_classes(["background", "grey_voxels", "ml"], [0, 100, 255]),
    )
    (outcome,) = outcomes_of(odd, list_inputs([tmp_path / "v.nii"]), tmp_path / "out")
    assert outcome.status == "ok"
    assert {"grey_voxels_voxels", "grey_voxels_ml", "ml_voxels", "ml_ml"} <= set(outcome.sizes)


@pytest.mark.parametrize("skip_existing", [False, True])
@pytest.mark.parametrize("overlay", [False, True])
def test_a_folder_of_inputs_and_outputs_does_not_grow(tmp_path, skip_existing, overlay):
    for n in range(2):
        save_png(tmp_path / f"{n}.png", n)
    save_png(tmp_path / "x_overlay.png", 3)  # a scan, whatever it is called
    first = run([tmp_path], tmp_path, overlay=overlay)
    after = files(tmp_path)
    assert len(after) == 3 + 3 * (1 + overlay) + 1
    for given in ([tmp_path], sorted(tmp_path.glob("*.png"))):
        rows = run(given, tmp_path, overlay=overlay, skip_existing=skip_existing)
        assert files(tmp_path) == after
        assert [r["output"] for r in rows] == [r["output"] for r in first]
        assert {r["status"] for r in rows} == {"skipped" if skip_existing else "ok"}


def test_a_folder_of_nothing_but_results_holds_no_scans(tmp_path):
    save_png(tmp_path / "in" / "a.png")
    run([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(DataError, match="only results of an earlier batch"):
        list_inputs([tmp_path / "out"], exclude=tmp_path / "out")
