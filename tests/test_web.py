"""The web app's handlers and sessions, without a server."""

from __future__ import annotations

import csv
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from web import CLASSES, Bands, bands, last, request, write_scans

from segapp.checkpoint import Architecture, DataRecord, ModelInfo
from segapp.errors import ConfigError, ScanError
from segapp.formats import Entry, read_scan
from segapp.likeness import TrainingRange
from segapp.predict import Predictor
from segapp.web.app import _sweep, launch, start
from segapp.web.folders import FolderHandlers
from segapp.web.handlers import Handlers
from segapp.web.inputs import find_examples, group_uploads
from segapp.web.page import build_page
from segapp.web.reader import _compared, _written, reader_routes
from segapp.web.session import Session, Sessions, Stopped, private_root
from segapp.web.view import choices, draw, duration, picture_size, progress_html, reader_html
from segapp.web.work import one_worker, watched


def quiet(*_: object) -> None:
    pass


@pytest.fixture
def sessions(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    found = Sessions(root)
    yield found
    found.close_all()


@pytest.fixture
def handlers(sessions) -> Handlers:
    return Handlers({"hands": bands()}, [], sessions)


def read(paths, root: Path, predictor=None, channel_files: int = 1) -> Session:
    """A session in which `paths` are segmented."""
    session = Session(root)
    entries = session.gather(list(paths), channel_files)
    session.segment(predictor or bands(), "hands", entries, quiet, threading.Event())
    return session


def test_exactly_the_documented_endpoints_are_public(handlers):
    page = build_page(handlers, FolderHandlers(handlers, []))
    info = page.get_api_info()["named_endpoints"]
    assert set(info) == {"/segment", "/slice", "/batch"}
    names = {n: [p["parameter_name"] for p in e["parameters"]] for n, e in info.items()}
    assert names["/segment"] == ["files", "model"]
    assert names["/slice"] == ["result", "slice", "opacity"]
    assert names["/batch"] == ["files", "folder", "model"]


def test_a_bad_file_is_named_and_the_others_go_on(handlers, tmp_path):
    files = [str(path) for path in write_scans(tmp_path)]
    outputs, summary = last(handlers.segment(files, "hands", request("tab")))

    assert [Path(o).name for o in outputs] == ["hand.png", "head.nii.gz"]
    hand, head, notes = summary["results"]
    assert (hand["status"], hand["slices"], hand["spacing_mm"]) == ("ok", 1, None)
    assert hand["sizes"] == {"background_voxels": 42, "bone_voxels": 4, "skin_voxels": 2}
    assert np.array_equal(np.unique(Image.open(outputs[0])), [0, 100, 200])
    assert (head["slices"], head["busiest_slice"]) == (5, 4)
    assert head["sizes"]["skin_ml"] == pytest.approx(14)
    assert notes["status"] == "failed"
    assert str(tmp_path) not in str(summary)

    session = handlers.sessions.of_tab("tab", "")
    assert [text for text, _ in choices(session)] == [
        "✓ hand.png",
        "✓ head.nii.gz",
        "✗ notes.png – failed",
    ]
    assert "is not a PNG" in reader_html(session, 2)
    assert f"/reader/{session.token}/1/" in reader_html(session, 1)


def test_names_are_escaped_wherever_they_stand(tmp_path):
    path = write_scans(tmp_path)[0]
    evil = path.rename(tmp_path / '"><img src=x onerror=alert(1)>.png')
    (tmp_path / "<b>.png").write_text("no")
    session = read([evil, tmp_path / "<b>.png"], tmp_path)
    assert "<img" not in reader_html(session, 0)
    assert "<b>" not in reader_html(session, 1)
    assert "<b>" not in progress_html(0.5, "<b>", 10)


def test_the_grid_of_the_reader_leads_back_to_the_files_voxels(tmp_path):
    """Display (k, h, w) goes to head, back and left, whatever way the file lies."""
    import nibabel as nib

    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)  # i: P, j: S, k: R
    affine = np.array([[0, 0, 5.0, 1], [-3, 0, 0, 2], [0, 4, 0, 3], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "turned.nii")
    session = read([tmp_path / "turned.nii"], tmp_path)
    result = session.results[0]
    grid = result.grid
    assert (grid.shape, grid.spacing_mm) == ((3, 2, 4), (4, 3, 5))
    image = np.fromfile(result.folder / "image.bin", "<i2").reshape(grid.shape)
    for k, h, w in np.ndindex(grid.shape):
        i, j, m, _ = (grid.to_voxel @ (k, h, w, 1)).astype(int)
        assert image[k, h, w] == voxels[i, j, m]
    head, back, left = (affine @ grid.to_voxel @ step for step in np.eye(4)[:3])
    assert head.tolist() == [0, 0, 4, 0]
    assert back.tolist() == [0, -3, 0, 0]
    assert left.tolist() == [-5, 0, 0, 0]
    assert np.array_equal(result.labels(), read_scan(tmp_path / "turned.nii").voxels[0] > 50)


@pytest.mark.parametrize(
    ("dtype", "sent"),
    [("uint8", "u1"), ("int16", "<i2"), ("uint16", "<u2"), ("float32", "<f4"), ("int32", "<f8")],
)
def test_the_reader_gets_the_values_as_they_are(dtype, sent, tmp_path):
    import nibabel as nib

    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    voxels[0, 0, 0] = 2**30 + 1 if dtype == "int32" else 100
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1, 1, 1])), tmp_path / "a.nii")
    result = read([tmp_path / "a.nii"], tmp_path).results[0]
    found = np.fromfile(result.folder / "image.bin", sent)
    assert found[0] == voxels[0, 0, 0]
    assert np.dtype(sent) == np.dtype(result.facts["dtype"])
    assert sorted(found) == sorted(voxels.ravel())


def test_colour_images_keep_their_colours(tmp_path):
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[1, 2] = (200, 100, 50)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    result = read([tmp_path / "rgb.png"], tmp_path).results[0]
    sent = np.fromfile(result.folder / "image.bin", np.uint8).reshape(1, 4, 5, 3)
    assert np.array_equal(sent[0], pixels)


def test_a_picture_has_square_pixels_and_shows_the_image_at_opacity_0(tmp_path):
    result = read([write_scans(tmp_path)[1]], tmp_path).results[0]
    plain, half, whole = (draw(result, 4, opacity) for opacity in (0, 0.5, 1))
    assert plain.shape == (576, 768, 3)  # 6 × 8 voxels
    assert (plain == plain[..., :1]).all()  # grey
    colours = {tuple(colour) for colour in whole.reshape(-1, 3)[::7]}
    assert CLASSES[2].colour in colours
    assert not np.array_equal(half, plain)
    assert not draw(result, 3, 1).any()  # nothing on slice 3


@pytest.mark.parametrize(
    ("rows", "columns", "aspect", "size"),
    [
        (100, 50, 1.0, (768, 384)),
        (100, 100, 3.0, (768, 256)),  # thick slices, seen from the side
        (100, 100, 0.5, (384, 768)),
        (1000, 800, 1.0, (1000, 800)),
        (5000, 2500, 1.0, (1536, 768)),
    ],
)
def test_picture_size(rows, columns, aspect, size):
    assert picture_size(rows, columns, aspect) == size


def test_times_for_people():
    said = [duration(s) for s in (0.2, 8, 100, 3600, 4800)]
    assert said == ["1 s", "8 s", "2 min", "1 h 0 min", "1 h 20 min"]
    assert "about 30 s left" in progress_html(0.25, "x", 10)
    assert "left" not in progress_html(0, "x", 10)


def test_scans_join_the_worklist_and_clearing_deletes_them(handlers, tmp_path):
    hand, head, notes = write_scans(tmp_path / "in")
    updates = list(handlers.read([str(hand)], "hands", request("a")))
    assert any("iframe" in str(u[-1]) for u in updates)
    last(handlers.read([str(head), str(notes)], "hands", request("a")))
    session = handlers.sessions.of_tab("a", "")
    assert [r.name for r in session.results] == ["hand.png", "head.nii.gz", "notes.png"]
    assert "1 ready, 1 failed" in str(
        list(handlers.read([str(hand), str(notes)], "hands", request("b")))
    )
    handlers.clear(request("a"))
    assert not session.folder.exists()
    assert handlers.sessions.of_tab("a", "") is None
    assert handlers.sessions.of_tab("b", "") is not None
    with pytest.raises(gr.Error, match="no longer kept"):
        handlers.show(0, request("a"))


def test_a_failed_drop_takes_no_view_away_and_the_list_is_counted_whole(handlers, tmp_path):
    hand, head, notes = write_scans(tmp_path / "in")
    letter = tmp_path / "letter.docx"
    with zipfile.ZipFile(letter, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    first = list(handlers.read([str(letter)], "hands", request("a")))
    assert any("letter.docx" in str(update[-1]) for update in first)
    list(handlers.read([str(hand)], "hands", request("a")))
    updates = list(handlers.read([str(notes)], "hands", request("a")))
    assert not any("iframe" in str(u[-1]) or "notes.png" in str(u[-1]) for u in updates)
    assert {u[-2].value for u in updates if isinstance(u[-2], gr.Radio)} == {1}
    assert "1 ready, 2 failed in the list. notes.png: " in updates[-1][2]
    assert isinstance(updates[-1][-2], gr.Radio), "the whole list comes last"
    updates = list(handlers.read([str(notes), str(head)], "hands", request("a")))
    (view,) = {str(u[-1]) for u in updates if "iframe" in str(u[-1])}
    assert "head.nii.gz" in view
    assert "2 ready, 3 failed in the list. notes.png (2): " in updates[-1][2]
    empty = [tmp_path / f"{n}.png" for n in range(3)]
    for path in empty:
        path.touch()
    last = list(handlers.read([str(path) for path in empty], "hands", request("a")))[-1]
    assert last[2].count("the file is empty") == 2
    assert "and 1 more" in last[2]


def test_a_session_is_private_and_goes_with_its_tab(handlers, tmp_path):
    hand, head, _ = write_scans(tmp_path / "in")
    sessions = handlers.sessions
    last(handlers.segment([str(hand)], "hands", request("a")))
    last(handlers.segment([str(head)], "hands", request("b")))
    first, other = sessions.of_tab("a", ""), sessions.of_tab("b", "")
    for folder in (private_root(), first.folder, other.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    last(handlers.segment([str(head)], "hands", request("a")))
    second = sessions.of_tab("a", "")
    assert not first.folder.exists()  # programs get the results of their last call
    handlers.sessions.leave("a", "")
    assert not second.folder.exists()
    assert other.folder.exists()
    with pytest.raises(gr.Error, match="no longer kept"):
        handlers.slice(0, 1, 0.5, request("a"))
    assert hand.exists()


def test_a_session_belongs_to_one_browser(sessions):
    mine = sessions.open("tab", "anna")
    assert sessions.of_tab("tab", "anna") is mine
    assert sessions.of_tab("tab", "bert") is None
    assert sessions.of_token(mine.token, "bert") is None
    assert sessions.of_token(mine.token, "anna") is mine
    theirs = sessions.open("tab", "bert")  # the same tab's name, by chance or by guessing
    sessions.leave("tab", "bert")
    assert (mine.closed, theirs.closed) == (False, True)
    (mine.folder / "out").mkdir()
    for name in ("out/a.nii.gz", "scan1/image.bin"):
        path = mine.folder / name
        assert sessions.may_read(path, "anna") == name.startswith("out")
        assert not sessions.may_read(path, "bert")
    assert not sessions.may_read(Path("/etc/passwd"), "anna")


def test_what_nobody_uses_any_more_is_closed(sessions):
    old, new = sessions.open("a", "", kept_s=50), sessions.open("b", "", kept_s=150)
    old.used -= 100
    new.used -= 100
    sessions.sweep()
    assert (old.closed, new.closed) == (True, False)
    assert not old.folder.exists()
    assert sessions.all() == [new]


def test_what_is_done_for_a_tab_that_has_gone_is_not_kept_long(sessions):
    sessions.leave("a", "")
    late = sessions.open("a", "")
    assert late.kept_s == 60
    sessions.arrive("a", "")  # the network was away for a moment
    assert late.kept_s == 3600
    sessions.arrive("a", "")  # again, before the first connection was given up
    sessions.depart("a", "")
    sessions.leave("a", "")
    assert not late.closed
    sessions.depart("a", "")
    sessions.leave("a", "")
    assert late.closed


def test_what_was_being_written_when_a_session_closed_is_swept(sessions):
    session, other = sessions.open("a", ""), sessions.open("b", "")
    session.close()
    (session.folder / "out").mkdir(parents=True)  # a writer that came too late
    (sessions.root / "lock").touch()
    sessions.sweep()
    assert not session.folder.exists()
    assert other.folder.exists()
    assert (sessions.root / "lock").exists()


def test_jobs_of_one_tab_are_stopped_apart(sessions):
    session = sessions.open("a", "")
    read, batch = session.begin("read"), session.begin("batch")
    session.stop("batch")
    assert (read.is_set(), batch.is_set()) == (False, True)
    session.close()
    assert read.is_set()
    with pytest.raises(Stopped):
        session.begin("read")


def test_closing_the_tab_stops_its_prediction(tmp_path):
    session = Session(tmp_path)
    entries = session.gather([write_scans(tmp_path / "in")[1]], 1)
    stop = session.begin("read")
    with pytest.raises(Stopped):
        session.segment(bands(), "hands", entries, lambda *_: session.close(), stop)
    assert not session.folder.exists()


class Slow(Bands):
    """Takes 50 ms a slice, and counts."""

    batch_size = 1

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.calls += 1
        time.sleep(0.05)
        return super().__call__(batch)


def test_who_goes_away_frees_the_engine(sessions, tmp_path):
    """Gradio closes the generator of an event whose visitor cancels or is gone."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros((8, 8, 100), np.uint8), np.eye(4)), tmp_path / "long.nii")
    engine = Slow()
    handlers = Handlers({"hands": bands(engine)}, [], sessions)
    events = handlers.segment([str(tmp_path / "long.nii")], "hands", request("a"))
    next(events)
    session = sessions.of_tab("a", "")
    began = time.perf_counter()
    events.close()
    assert time.perf_counter() - began < 0.5  # nobody waits for it
    assert not session.folder.exists()
    time.sleep(0.2)  # a batch that was being computed
    count = engine.calls
    assert 0 < count < 20
    time.sleep(0.2)
    assert engine.calls == count


def test_work_that_fails_fails_where_it_is_watched():
    def broken(report, stop) -> None:
        report(0.5, "half")
        raise OSError(28, "No space left")

    with pytest.raises(OSError, match="No space"):
        last(watched(broken, threading.Event(), one_worker()))


def test_a_full_disk_is_told_without_places(handlers, tmp_path, monkeypatch):
    hand = write_scans(tmp_path / "in")[0]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(Session, "segment", full)
    with pytest.raises(gr.Error, match="can't store results") as raised:
        last(handlers.segment([str(hand)], "hands", request("a")))
    assert str(tmp_path) not in str(raised.value)
    _, _, status, stop, *_ = last(handlers.read([str(hand)], "hands", request("a")))
    assert "store results at the moment" in status
    assert not stop.visible


def test_a_bug_fails_one_file_and_logs_no_names(tmp_path, caplog):
    hand = write_scans(tmp_path / "in")[0]

    class Broken(Bands):
        def __call__(self, batch):
            raise KeyError(hand.name)

    session = read([hand], tmp_path, bands(Broken()))
    assert "unexpected KeyError" in session.results[0].outcome.reason
    assert "KeyError" in caplog.text
    assert "hand.png" not in caplog.text


def test_without_a_model_scans_are_only_shown(sessions, tmp_path):
    handlers = Handlers({}, [], sessions)
    hand, head, _ = write_scans(tmp_path / "in")
    last(handlers.read([str(hand), str(head)], "", request("a")))
    results = sessions.of_tab("a", "").results
    assert [r.ok for r in results] == [True, True]
    assert not (results[0].folder / "labels.bin").exists()
    assert results[1].summary(1)["output"] is None
    with pytest.raises(gr.Error, match="without a model"):
        last(handlers.segment([str(hand)], "", request("a")))
    page = build_page(handlers, FolderHandlers(handlers, []))
    assert "segapp train data.root=DIR" in str(page.get_config_file())


def trained_on(predictor, training: TrainingRange | None, **prepared) -> Predictor:
    """The same with a record of its training."""
    preprocessing = predictor.preprocessing.model_copy(update=prepared)
    known = {"training": training, "preprocessing": preprocessing}
    predictor.info = SimpleNamespace(**known)  # type: ignore[assignment]
    return predictor


CT = TrainingRange(
    dtypes=("int16",),
    pixel_mm=(0.6, 0.9),
    slice_mm=(5, 5),
    thickest=("axial",),
    intensities=((-1000, 1500),),
    narrowest=(900,),
    highest_low=(-900,),
    modality="CT",
)


def test_the_page_says_what_the_model_was_trained_on(sessions):
    def shown(**models: Predictor) -> str:
        handlers = Handlers(models, [], sessions)
        return str(build_page(handlers, FolderHandlers(handlers, [])).get_config_file())

    ct = trained_on(bands(), CT, normalisation="ct")
    said = "Trained on axial CT slices, pixels of 0.6–0.9 mm, slices 5 mm apart, "
    said += "intensities -1000 to 1500 HU"
    assert f"<p>Finds bone, skin</p><p>{said}</p>" in shown(hands=ct)
    assert f"<p>hands finds bone, skin. {said}</p><p>feet finds" in shown(hands=ct, feet=bands())
    for unknown in (bands(), trained_on(bands(), None)):
        assert "Trained on" not in shown(hands=unknown)
    images = CT.model_copy(
        update={"pixel_mm": None, "slice_mm": None, "intensities": ((0, 9),) * 3}
        | {"modality": "unknown"}
    )
    mr = trained_on(bands(), CT.model_copy(update={"modality": "MR"}))
    assert "<p>Trained on axial MR slices, " in shown(hands=mr)
    assert "HU" not in shown(hands=mr)
    photos = trained_on(bands(), images, channels=3)
    assert "<p>Trained on images, 3 channels</p>" in shown(hands=photos)
    split = trained_on(bands(), images, channels=3, channel_files=3, context=1)
    assert "Trained on axial slices, 3 files to a scan, one a channel</p>" in shown(hands=split)


def test_examples_are_spoken_of_where_there_are_some(sessions, tmp_path):
    entry = Entry("hand", (write_scans(tmp_path)[0],))
    for examples in ([], [("hands", entry)]):
        handlers = Handlers({"hands": bands()}, examples, sessions)
        page = build_page(handlers, FolderHandlers(handlers, []))
        for said in (str(page.get_config_file()), handlers.clear(request("a"))[-1]):
            assert "Drop scans on the left" in said
            assert ("choose an example" in said) == bool(examples)


def test_two_models_are_told_apart(sessions, tmp_path):
    class Nothing(Bands):
        def __call__(self, batch):
            return super().__call__(np.zeros_like(batch))

    handlers = Handlers({"hands": bands(), "nothing": bands(Nothing())}, [], sessions)
    hand = str(write_scans(tmp_path / "in")[0])
    _, summary = last(handlers.segment([hand], "nothing", request("a")))
    assert summary["results"][0]["sizes"]["bone_voxels"] == 0
    _, summary = last(handlers.segment([hand], "hands", request("a")))
    assert summary["results"][0]["sizes"]["bone_voxels"] == 4
    with pytest.raises(gr.Error, match="no model 'feet'; there are hands, nothing"):
        last(handlers.segment([hand], "feet", request("a")))


def test_corrections_are_checked_and_can_be_undone(tmp_path):
    result = read([write_scans(tmp_path / "in")[0]], tmp_path).results[0]
    found = result.labels()
    with pytest.raises(ScanError, match="got 5 labels, the scan has 48 voxels"):
        result.correct(bytes(5))
    with pytest.raises(ScanError, match="got class 3, the last is 2"):
        result.correct(bytes([3] * 48))
    assert not result.corrected
    result.correct(bytes([1] * 48))
    assert result.corrected
    assert (result.labels() == 1).all()
    said = result.outcome_of(result.segmentation())
    assert said.sizes["bone_voxels"] == 48
    assert said.mean_confidence == result.outcome.mean_confidence  # the model's, and named so
    result.correct(result.on_grid(found))  # painted, and taken back
    assert not result.corrected
    result.correct(bytes([1] * 48))
    result.restore()
    assert np.array_equal(result.labels(), found)


def test_a_mask_is_compared_as_the_model_reads_masks(sessions, tmp_path):
    hand, _, _ = write_scans(tmp_path)
    predictor = bands()
    how = {"training": None, "quality": None, "ignore": 9, "merged": (30,)}
    predictor.info = SimpleNamespace(**how)  # type: ignore[assignment]
    session = sessions.open("tab", "")
    session.segment(predictor, "hands", [Entry("hand", (hand,))], quiet, threading.Event())
    mask = np.asarray(Image.open(hand)).copy()
    mask[0, 0], mask[1, 0], mask[4, 2] = 30, 9, 0  # background, uncounted, one of skin is missed
    Image.fromarray(mask).save(tmp_path / "mask.png")
    app = FastAPI()
    app.include_router(reader_routes(sessions, {}))
    address = f"/reader/{session.token}/0/reference?name=mask.png"
    answer = TestClient(app).post(address, content=(tmp_path / "mask.png").read_bytes())
    assert answer.json()["dice"] == {"bone": 1.0, "skin": pytest.approx(2 / 3)}
    laid_beside = np.fromfile(session.results[0].folder / "reference.bin", np.uint8).reshape(6, 8)
    assert laid_beside[1].tolist() == [255, 1, 1, 1, 0, 0, 0, 0]


def test_uploads_of_one_name_do_not_overwrite_each_other(tmp_path):
    one, two = write_scans(tmp_path / "1")[0], write_scans(tmp_path / "2")[0]
    session = read([one, two], tmp_path)
    outputs = [r.outcome.output.name for r in session.results]
    assert outputs == ["hand.png", "hand_2.png"]


def test_uploads_become_scans(tmp_path):
    names = ["x/p_0001.png", "y/p_0000.png", "z/q_0000.png", "r.png", "notes.txt"]
    paths = [tmp_path / "up" / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path) if path.suffix == ".png" else path.write_text("hello")
    one = group_uploads(paths, tmp_path / "1", 1)
    assert [entry.name for entry in one] == ["p_0001", "p_0000", "q_0000", "r", "notes.txt"]
    two = group_uploads(paths, tmp_path / "2", 2)
    found = [(entry.name, [path.name for path in entry.paths]) for entry in two]
    assert found == [
        ("p", ["p_0000.png", "p_0001.png"]),
        ("q", ["q_0000.png", "q_0001.png"]),
        ("r", ["r.png"]),
        ("notes.txt", ["notes.txt"]),
    ]
    with pytest.raises(ScanError, match="is no scan of a known format"):
        read_scan(two[3].paths)


def test_voxels_of_a_header_are_no_upload_of_their_own(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(24))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\n"
    (tmp_path / "a.mhd").write_text(header + "ElementDataFile = a.raw\n")
    (entry,) = group_uploads([tmp_path / "a.raw", tmp_path / "a.mhd"], tmp_path / "1", 1)
    assert read_scan(entry.paths).shape == (2, 3, 4)


def test_dicom_uploads_are_grouped_into_series(tmp_path):
    volume = np.full((3, 6, 8), 100, np.int16)
    slices = write_series(tmp_path / "a", volume, seed="a")
    for n, path in enumerate(write_series(tmp_path / "b", volume, seed="b", SeriesNumber=8)):
        slices.append(path.rename(tmp_path / "b" / f"{n}"))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for path in write_series(tmp_path / "c", volume, seed="c"):
            archive.write(path, f"study/{path.name}")
    session = read([*slices, tmp_path / "c.zip"], tmp_path)
    names = ["series3", "series8", "c_study"]
    assert [result.name for result in session.results] == [
        "DICOM slices (CT CANARY series, series 3, 3 slices)",
        "DICOM slices (CT CANARY series, series 8, 3 slices)",
        "c/study (CT CANARY series, series 3, 3 slices)",
    ]
    assert [result.shape for result in session.results] == [(8, 6, 3)] * 3
    outputs = [result.outcome.output.name for result in session.results]
    assert outputs == [f"{name}.nii.gz" for name in names]


def test_scans_are_told_apart_whatever_their_folders_are_called(tmp_path):
    """Two patients' archives with a folder SE3 each, a dropped folder, and the same file twice."""
    volume = np.full((3, 6, 8), 100, np.int16)
    uploads = []
    for name in ("first", "second"):
        slices = write_series(tmp_path / name, volume, seed=name, SeriesDescription="T1\n axial")
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for path in slices:
                archive.write(path, f"SE3/{path.name}")
        uploads.append(tmp_path / f"{name}.zip")
    for n in range(2):
        (tmp_path / f"up{n}").mkdir()
        dropped = write_scans(tmp_path / f"in{n}")[0]
        uploads.append(dropped.rename(tmp_path / f"up{n}" / "ward∕p1∕hand.png"))
    uploads.append(tmp_path / "Thumbs.db")
    uploads.append(tmp_path / "ward∕p1∕letter.docx")
    for path in uploads[-2:]:
        path.write_text("no scan")
    session = read(uploads, tmp_path)
    assert [result.name for result in session.results] == [
        "first/SE3 (CT T1 axial, series 3, 3 slices)",
        "second/SE3 (CT T1 axial, series 3, 3 slices)",
        "ward/p1/hand.png",
        "ward/p1/hand.png (2)",
    ]
    names = ["first_SE3.nii.gz", "second_SE3.nii.gz", "hand.png", "hand_2.png"]
    assert [result.outcome.output.name for result in session.results] == names
    for result in session.results[:2]:
        written = _written(session, result, "csv")
        (line, *_) = csv.DictReader(written.open())
        assert line["scan"] == result.name
        assert written.name == f"{result.entry.name}_measures.csv"
        assert result.name in _written(session, result, "report").read_text()


def test_the_page_offers_no_option_of_the_command_line(tmp_path):
    write_series(tmp_path / "s", np.zeros((5, 6, 8), np.int16))[2].unlink()
    session = read((tmp_path / "s").iterdir(), tmp_path)
    reason = session.results[0].outcome.reason
    assert "between 0001.dcm and 0003.dcm" in reason
    assert "--" not in reason
    assert reason.endswith("drop the whole series, with the images that are missing here")


def test_a_scan_like_a_mask_is_warned_about(tmp_path):
    for name, values in (("mask", [0, 1, 2]), ("scan", range(90)), ("flat", [7])):
        pixels = np.resize(np.array(values, np.uint8), (40, 50))
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in ("mask", "scan", "flat")]
    mask, *others = read(paths, tmp_path).results
    assert (
        "looks like a mask, not a scan: it holds only the values 0, 1, 2" in mask.outcome.warnings
    )
    assert not any("mask" in said for r in others for said in r.outcome.warnings)


def test_an_archive_cannot_reach_out_of_its_place(tmp_path):
    """Archives are read where they are; the names in them are names, not places."""
    hand = write_scans(tmp_path / "in")[0]
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.write(hand, "../../../outside.png")
        archive.write(hand, "/absolute.png")
    before = set(tmp_path.rglob("*"))
    session = read([evil], tmp_path / "in")
    made = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(session.folder) for path in made)
    (outcome,) = (result.outcome for result in session.results)
    assert outcome.output is None
    assert "leads out of it" in outcome.reason


def test_a_folder_on_the_server_becomes_one_archive(handlers, tmp_path):
    root = tmp_path / "archive"
    write_scans(root / "study")
    folders = FolderHandlers(handlers, [root])
    assert folders.choices() == [str(root), str(root / "study")]
    (path,), summary = last(folders.batch(None, str(root), "hands", request("a")))
    assert summary == {"scans": 3, "ok": 2, "failed": 1}
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())
        table = archive.read("predictions.csv").decode()
    assert names == ["predictions.csv", "study/hand.png", "study/head.nii.gz"]
    assert str(tmp_path) not in table
    rows = {row["file"]: row for row in csv.DictReader(table.splitlines())}
    assert rows["study/hand.png"]["output"] == "study/hand.png"
    assert rows["study/notes.png"]["status"] == "failed"
    assert rows["study/head.nii.gz"]["skin_ml"] == "14"
    (again,), _ = last(folders.batch(None, "study", "hands", request("a")))  # below a root
    assert Path(again).exists()


@pytest.mark.parametrize(
    "place",
    ["/etc", "..", "study/../../other", "nowhere", "link", "corrections", "a\0b", "x" * 5000],
)
def test_no_other_folder_is_read(handlers, tmp_path, place):
    root = tmp_path / "archive"
    write_scans(root / "study")
    write_scans(tmp_path / "other")
    write_scans(root / "corrections")  # what others kept is theirs
    (root / "link").symlink_to(tmp_path / "other")
    folders = FolderHandlers(handlers, [root])
    with pytest.raises(gr.Error, match="is not below"):
        last(folders.batch(None, place, "hands", request("a")))
    with pytest.raises(gr.Error, match="is not below"):
        last(FolderHandlers(handlers, []).batch(None, str(root), "hands", request("a")))


def test_many_uploads_become_a_table_and_an_archive(handlers, tmp_path):
    folders = FolderHandlers(handlers, [])
    files = [str(path) for path in write_scans(tmp_path / "in")]
    _, status, _, table, download = last(folders.run(None, files, "hands", request("a")))
    assert "2 ok, 1 failed" in status
    assert table.index("notes.png") < table.index("hand.png")  # what needs a look comes first
    assert str(handlers.sessions.root) not in table
    assert download.value
    *_, problem, _, _, _ = list(folders.run(None, None, "hands", request("a")))[-1]
    assert "Choose a folder or drop scans" in problem


def test_a_stopped_batch_keeps_what_is_done(sessions, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(40):
        Image.new("L", (8, 8), 100).save(folder / f"{n:02}.png")
    handlers = Handlers({"hands": bands(Slow())}, [], sessions)
    folders = FolderHandlers(handlers, [folder])
    events = folders.run(str(folder), None, "hands", request("a"))
    while " of 40" not in str(update := next(events)) or "0 of 40" in str(update):
        pass
    closing = threading.Thread(target=events.close)
    closing.start()
    status, stopped, _, _, download = folders.stop(request("a"))
    closing.join()
    assert not status.visible
    assert "Stopped with" in stopped.value
    with zipfile.ZipFile(download.value["path"]) as archive:
        done = [name for name in archive.namelist() if name.endswith(".png")]
    assert 0 < len(done) < 40


def test_examples_come_from_the_models_own_data(tmp_path, monkeypatch):
    predictor = bands()
    monkeypatch.chdir(tmp_path)
    assert find_examples(predictor) == []
    predictor.info = SimpleNamespace(data=SimpleNamespace(root=str(tmp_path / "set")))
    for n in range(12):
        path = tmp_path / f"set/test/images/{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    shutil.copy(write_scans(tmp_path / "scans")[1], tmp_path / "set")
    assert [e.name for e in find_examples(predictor)] == ["02", "06", "10", "head"]
    assert find_examples(predictor, own_data=False) == []


def test_examples_of_a_table_are_its_test_images_wherever_they_lie(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    Image.new("L", (4, 4)).save(root / "mask.png")
    predictor = bands()
    predictor.info = SimpleNamespace(data=SimpleNamespace(root=str(root)))
    (root / "cases.csv").write_text("image,mask\n../scans/a.png,mask.png\n../b.nii.gz,mask.png\n")
    assert [e.paths for e in find_examples(predictor)] == [
        (root / "../scans/a.png",),
        (root / "../b.nii.gz",),
    ]
    (root / "cases.csv").write_text("image,mask,split\na.png,m.png,train\nb.png,m.png,test\n")
    assert [e.name for e in find_examples(predictor)] == ["b"]
    (root / "cases.csv").write_text("image,mask\n")
    assert find_examples(predictor) == []


def test_a_folder_of_images_that_is_empty_by_now_gives_no_examples(tmp_path):
    (tmp_path / "images").mkdir()
    predictor = bands()
    predictor.info = SimpleNamespace(data=SimpleNamespace(root=str(tmp_path)))
    assert find_examples(predictor) == []


def test_data_that_can_not_be_looked_at_give_no_examples():
    predictor = bands()
    predictor.info = SimpleNamespace(data=SimpleNamespace(root="a" * 300))
    assert find_examples(predictor) == []


def test_an_example_is_read_by_its_model(sessions, tmp_path):
    entry = Entry("hand", (write_scans(tmp_path)[0],))
    handlers = Handlers({"hands": bands()}, [("hands", entry)], sessions)
    last(handlers.read_example(0, request("a")))
    assert sessions.of_tab("a", "").results[0].outcome.status == "ok"


@pytest.mark.parametrize("which", ["slice", "volume"])
def test_a_mask_is_compared_as_training_read_its_values(tmp_path, which):
    """data.ignore and classes that were merged into the background: masks of the training data
    hold values that are no class's."""
    predictor = bands()
    predictor.info = ModelInfo(
        architecture=Architecture(
            name="unet", encoder="x", in_channels=1, classes=3, residual=True
        ),
        preprocessing=predictor.preprocessing,
        classes=CLASSES,
        ignore=9,
        merged=(3, 4),
        settings={},
        metrics={},
        starting_weights="none",
        data=DataRecord(root="none"),
    )
    image, volume, _ = write_scans(tmp_path / "scans")
    session = read([image if which == "slice" else volume], tmp_path, predictor)
    (result,) = session.results
    mask = np.array([c.value for c in CLASSES], np.uint8)[result.labels()]
    skin = np.argwhere(mask == 200)
    mask[0, -1, 0], mask[tuple(skin[0])] = 3, 9
    path = tmp_path / "mask.nii.gz"
    affine = np.eye(4) if result.affine is None else result.affine
    nib.save(nib.Nifti1Image(mask, affine), path)
    found = _compared(session, result, "mask.nii.gz", path.read_bytes())
    assert found["dice"]["skin"] == 1
    what = "pixels" if which == "slice" else "voxels"
    said = f"1 {what} have the value 9, which training ignored; they are not compared"
    assert said in found["warnings"]
    mask[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(mask, affine), path)
    with pytest.raises(ScanError, match="mask value 7 is outside the classes"):
        _compared(session, result, "mask.nii.gz", path.read_bytes())


def test_others_get_in_only_with_a_password():
    with pytest.raises(ConfigError, match="--auth-file"):
        launch([], "0.0.0.0")
    with pytest.raises(ConfigError, match="no such folder"):
        launch([], roots=[Path("nowhere")])


def test_models_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="another model called a"):
        launch([tmp_path / "1/a/model.safetensors", tmp_path / "2/a/model.safetensors"])


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error", "CANARY"), KeyError("CANARY")])
def test_a_sweep_that_fails_is_not_the_last(monkeypatch, caplog, fault):
    monkeypatch.setattr("segapp.web.app._SWEEP", 0.01)
    calls: list[str] = []
    again = threading.Event()

    def sessions_sweep():
        calls.append("sessions")
        if calls.count("sessions") > 2:
            again.set()
        raise fault

    service = SimpleNamespace(
        stopping=threading.Event(),
        sessions=SimpleNamespace(sweep=sessions_sweep),
        uploads=SimpleNamespace(sweep=lambda *ages: calls.append("uploads")),
    )
    thread = threading.Thread(target=_sweep, args=(service,), daemon=True)
    thread.start()
    assert again.wait(10)
    service.stopping.set()
    thread.join(10)
    assert not thread.is_alive()
    assert calls[:4] == ["sessions", "uploads"] * 2
    assert "nobody needs" in caplog.text
    assert "CANARY" not in caplog.text


def test_a_port_in_use_is_a_clear_error():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: can't listen"):
            start({"hands": bands()}, port=port)


def test_what_a_killed_process_left_is_removed(tmp_path):
    """A folder whose lock nobody holds goes; one of a living process, or of others, stays."""
    code = (
        "import os, sys; from segapp.web.session import private_root; r = private_root();"
        "(r / 'scan').write_text('x'); print(r, flush=True);"
        "sys.stdin.readline() if sys.argv[1] == 'wait' else os._exit(9)"
    )
    where = {**os.environ, "TMPDIR": str(tmp_path)}

    def process(how: str) -> tuple[subprocess.Popen, Path]:
        command = [sys.executable, "-c", code, how]
        pipe = subprocess.PIPE
        started = subprocess.Popen(command, env=where, stdin=pipe, stdout=pipe, text=True)
        assert started.stdout
        return started, Path(started.stdout.readline().strip())

    killed, orphan = process("die")
    killed.wait()
    assert orphan.exists()
    (tmp_path / "segapp-of-somebody").mkdir()
    alive, kept = process("wait")
    assert not orphan.exists()
    last_one, _ = process("die")
    last_one.wait()
    assert kept.exists()
    assert (tmp_path / "segapp-of-somebody").exists()
    alive.communicate("\n")
    assert not kept.exists()
