"""A reader's whole way in a real browser: drop, read, measure, take away, correct, keep."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from axe_playwright_python.sync_playwright import Axe
from browser import open_page
from dicom_files import write_series
from PIL import Image
from web import CLASSES, Bands, bands, noise_scans, serving, untrained_model, write_scans

from segapp.formats import read_labels, read_scan
from segapp.predict import Predictor
from segapp.web.app import Service
from segapp.web.session import private_root

REPO = Path(__file__).parents[1]
BONE, SKIN = 1, 2
pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("chromium")]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return untrained_model(tmp_path_factory.mktemp("model") / "hands")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, Path]:
    """Noise in every kind of file: an untrained network finds every class in it somewhere."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(1)
    image, volume = noise_scans(folder)
    tifffile.imwrite(folder / "deep.tif", rng.integers(0, 60000, (64, 48), np.uint16))
    slices = rng.integers(-1000, 1000, (6, 40, 48)).astype(np.int16)
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        for path in write_series(folder / "series", slices):
            archive.write(path, f"study/{path.name}")
    (folder / "notes.png").write_text("not an image")
    names = {"png": image, "tiff": folder / "deep.tif", "nifti": volume}
    return {**names, "dicom": folder / "study.zip", "bad": folder / "notes.png"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def service(model, root) -> Iterator[Service]:
    predictor = Predictor.load(model, "cpu")
    with serving({"hands": predictor}, paths={"hands": model}, roots=[root]) as service:
        yield service


@pytest.fixture(scope="module")
def from_command_line(model, scans, tmp_path_factory) -> Path:
    """What `segapp predict` writes for the same scans."""
    out = tmp_path_factory.mktemp("predicted")
    command = [sys.executable, "-m", "segapp.cli", "predict", str(model)]
    command += [str(path) for kind, path in scans.items() if kind != "bad"]
    command += ["--out", str(out), "--device", "cpu"]
    subprocess.run(command, check=True, cwd=REPO, capture_output=True)
    return out


def is_local(address: str) -> bool:
    return address.startswith(("http://127.0.0.1:", "data:", "blob:"))


@pytest.fixture
def page(service) -> Iterator[Any]:
    """The app in Chromium; fails on any request to another host and on any console error."""
    with open_page(is_local) as page:
        page.goto(service.url)
        yield page


def drop(page, path: Path) -> None:
    page.set_input_files("#scans input[type=file]", [path])


def reader(page, name: str) -> Any:
    """The frame in which a scan is read, once it is all there."""
    frame = page.frame_locator("iframe.sa-reader")
    frame.locator("#name", has_text=name).wait_for(state="attached")
    frame.locator("html[data-complete=true]").wait_for(state="attached")
    return frame


def pixels(frame, plane: str) -> np.ndarray:
    """What a pane shows: (rows, columns, 3)."""
    source = frame.locator(f"#pane-{plane}").evaluate("c => c.toDataURL()")
    picture = Image.open(io.BytesIO(b64decode(source.split(",")[1])))
    return np.asarray(picture.convert("RGB"), np.int16)


def changed(page, frame, plane: str, before: np.ndarray) -> np.ndarray:
    """What a pane shows once it has changed."""
    for _ in range(100):
        after = pixels(frame, plane)
        if not np.array_equal(before, after):
            return after
        page.wait_for_timeout(20)
    raise AssertionError("the picture did not change")


def colourful(picture: np.ndarray) -> float:
    return float((np.ptp(picture, axis=2) > 30).mean())


def point_at(page, frame, plane: str, across: float, down: float) -> tuple[tuple[int, ...], Any]:
    """The pointer goes to a place of a pane (shares of its size) → what the readout says."""
    box = frame.locator(f"#pane-{plane}").bounding_box()
    page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    page.wait_for_timeout(60)
    readout = frame.locator("#readout")
    voxel, value, name = (readout.get_attribute(f"data-{n}") for n in ("voxel", "value", "class"))
    return tuple(int(n) for n in voxel.split(",")), (float(value), name)


def take_picture_of(page, name: str) -> None:
    if folder := os.environ.get("SEGAPP_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


KINDS = {  # name on the list, file that predict writes, plane, whether it has more than one slice
    "png": ("slice.png", "slice.png", "axial", False),
    "tiff": ("deep.tif", "deep.tif", "axial", False),
    "nifti": ("volume.nii.gz", "volume.nii.gz", "axial", True),
    "dicom": ("study", "study.nii.gz", "axial", True),
}


# One kind of each sort in the fast tests
SLOW = {"png", "tiff", "dicom"}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in KINDS]
)
def test_the_whole_way(kind, page, scans, from_command_line, root, tmp_path):
    name, written, plane, is_volume = KINDS[kind]
    source = scans[kind]
    if kind == "dicom":
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path / "series")
    scan = read_scan(tmp_path / "series" / "study" if kind == "dicom" else source)
    predicted = read_labels(from_command_line / written).voxels[0]

    drop(page, source)
    frame = reader(page, name)
    pane = frame.locator(f"#pane-{plane}")
    shown = pixels(frame, plane)
    assert colourful(shown) > 0.01  # the overlay
    take_picture_of(page, f"flow-{kind}")

    if is_volume:
        first = int(pane.get_attribute("data-slice"))
        step = 1 if first == 0 else -1
        pane.hover()
        page.mouse.wheel(0, 100 * step)
        shown = changed(page, frame, plane, shown)
        moved = int(pane.get_attribute("data-slice"))
        assert abs(moved - first) == 1
        page.mouse.wheel(0, -100 * step)
        shown = changed(page, frame, plane, shown)
        assert int(pane.get_attribute("data-slice")) == first
        keys = [("End", scan.shape[2] - 1), ("Home", 0), ("ArrowDown", 1)]
        for key, place in keys if first < scan.shape[2] - 1 else keys[1:] + keys[:1]:
            page.keyboard.press(key)
            shown = changed(page, frame, plane, shown)
            found = int(pane.get_attribute("data-slice"))
            assert found == place

    pane.hover()
    page.keyboard.press("2")
    shown = changed(page, frame, plane, shown)
    assert [frame.locator(f"#{n}").input_value() for n in ("width", "centre")] == ["1500", "-600"]
    page.keyboard.press("0")
    shown = changed(page, frame, plane, shown)

    box = frame.locator("#class-list input[type=checkbox]").first
    box.uncheck()
    hidden = changed(page, frame, plane, shown)
    assert colourful(hidden) < colourful(shown)
    box.check()
    shown = changed(page, frame, plane, hidden)

    places = [(0.5, 0.5), (0.42, 0.6), (0.55, 0.36)]
    for across, down in places:
        voxel, (value, said) = point_at(page, frame, plane, across, down)
        assert value == scan.voxels[0][voxel]
        assert said == next(c.name for c in CLASSES if c.value == predicted[voxel])

    frame.locator("#download").evaluate("d => d.open = true")
    assert frame.locator("#downloads a[href$=same]").get_attribute("download") == written
    assert frame.locator("#model").inner_text() == ""  # the page's title names it
    with page.expect_download() as download:
        frame.locator("#downloads a[href$=same]").click()
    assert download.value.suggested_filename == written
    expected = (from_command_line / written).read_bytes()
    assert download.value.path().read_bytes() == expected

    # one voxel a click: the smallest brush
    page.keyboard.press("b")
    frame.locator("#correct").evaluate("d => d.open = true")
    label = SKIN if said == "bone" else BONE
    frame.locator("#brush-class").select_option(str(label))
    frame.locator("#radius").evaluate(
        "r => { r.value = r.min; r.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    painted = predicted.copy()
    for across, down in places:
        voxel, _ = point_at(page, frame, plane, across, down)
        page.mouse.down()
        page.mouse.up()
        painted[voxel] = CLASSES[label].value
    others = [(0.3 + 0.05 * (n % 9), 0.3 + 0.05 * (n // 9)) for n in range(81)]  # and one undone
    wanted = CLASSES[label].name
    next(p for p in others if point_at(page, frame, plane, *p)[1][1] != wanted)
    page.mouse.down()
    page.mouse.up()
    page.keyboard.press("Control+z")
    take_picture_of(page, f"flow-{kind}-brush")
    assert (painted != predicted).any()
    frame.locator("#keep").click()
    frame.locator("#kept", has_text="Kept in").wait_for()

    kept = root / "corrections"
    rows = list(csv.DictReader((kept / "cases.csv").open()))
    mask = read_labels(kept / rows[-1]["mask"]).voxels[0]
    assert np.argwhere(mask != painted).tolist() == []
    image = read_scan(kept / rows[-1]["image"])
    assert np.array_equal(image.voxels, scan.voxels)
    everything = " ".join(str(path) for path in kept.rglob("*"))
    assert name not in everything


@pytest.mark.slow
def test_a_bad_file_says_why_and_the_others_go_on(page, scans, service):
    page.set_input_files("#scans input[type=file]", [scans["bad"], scans["png"]])
    page.locator("#status", has_text="1 ready, 1 failed").wait_for()
    page.get_by_role("radio", name="slice.png").check()
    reader(page, "slice.png")
    page.get_by_role("radio", name="notes.png").check()
    page.locator("#view", has_text="is not a PNG").wait_for()
    assert str(private_root()) not in page.content()
    take_picture_of(page, "flow-bad")
    mine = service.sessions.all()[-1]
    page.goto("about:blank")
    for _ in range(1200):
        if mine.closed and not mine.folder.exists():
            break
        page.wait_for_timeout(100)
    assert mine.closed
    assert not mine.folder.exists()


def test_names_are_text(page, tmp_path, service):
    evil = write_scans(tmp_path)[0].rename(
        tmp_path / "<img src=x onerror=document.title=1>${document.title=2}.png"
    )
    drop(page, evil)
    frame = reader(page, "img src")  # Gradio takes some signs out of names
    assert frame.locator("#name img").count() == 0
    assert page.locator("#worklist img").count() == 0
    assert "segapp" in page.title()


def test_dicom_tags_are_text(page, tmp_path):
    slices = np.random.default_rng(0).integers(0, 99, (3, 16, 16)).astype(np.int16)
    for path in write_series(tmp_path / "s", slices, PatientName="<b>Doe</b>^Jane"):
        assert path.exists()
    with zipfile.ZipFile(tmp_path / "<u>x.zip", "w") as archive:
        for path in (tmp_path / "s").iterdir():
            archive.write(path, f"<s>study/{path.name}")
    drop(page, tmp_path / "<u>x.zip")
    frame = reader(page, "study")
    for part in (page.content(), frame.locator("body").inner_html()):
        assert "<s>study" not in part
        assert "Jane" not in part


def test_a_volume_is_read_from_all_sides(page, tmp_path):
    """The same voxel in all three planes, and its place in mm by the file's affine."""
    voxels = np.random.default_rng(0).integers(0, 200, (20, 24, 16)).astype(np.int16)
    affine = np.array([[0, 0, 2.0, -9], [-1.6, 0, 0, 20], [0, 1.2, 0, 5], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "turned.nii.gz")
    drop(page, tmp_path / "turned.nii.gz")
    frame = reader(page, "turned.nii.gz")
    for plane in ("axial", "coronal", "sagittal"):
        voxel, (value, _) = point_at(page, frame, plane, 0.4, 0.45)
        assert value == voxels[voxel]
        said = frame.locator("#readout").inner_text()
        for letter, mm in zip(("RL", "AP", "SI"), affine[:3] @ (*voxel, 1), strict=True):
            # RAS: a positive first number is towards the patient's right
            assert f"{letter[0] if mm >= 0 else letter[1]} {abs(mm):.1f}" in said


def test_without_a_model_the_page_says_how_to_train(scans):
    with serving({}) as service, open_page(is_local) as page:
        page.goto(service.url)
        page.get_by_text("segapp train data.root=DIR").wait_for()
        drop(page, scans["nifti"])
        frame = page.frame_locator("iframe.sa-reader")
        frame.locator("html[data-state=ready]").wait_for(state="attached")
        assert colourful(pixels(frame, "axial")) == 0
        assert not frame.locator("#correct").is_visible()
        take_picture_of(page, "flow-no-model")


@pytest.mark.slow
def test_one_of_two_models_is_chosen(model, scans):
    predictor = Predictor.load(model, "cpu")
    models = {"hands": predictor, "feet": predictor}
    with serving(models) as service, open_page(is_local) as page:
        page.goto(service.url)
        page.locator("#model input").click()
        page.get_by_role("option", name="feet").click()
        drop(page, scans["png"])
        frame = reader(page, "slice.png")
        assert "feet" in frame.locator("#model").inner_text()


def test_a_batch_in_the_browser(page, scans, root):
    folder = root / "study"
    write_scans(folder)
    (folder / "notes.txt").write_text("no scan")
    page.get_by_role("tab", name="Batch").click()
    page.locator("#batch-folder input").fill(str(folder))
    page.locator("#batch-folder input").press("Enter")
    page.locator("#batch-start").click()
    page.locator("#batch-status", has_text="2 ok, 1 failed; left out: 1 file, no scans").wait_for()
    rows = page.locator("#batch-table tbody tr")
    rows.nth(2).wait_for()
    assert rows.count() == 3
    take_picture_of(page, "flow-batch")
    with page.expect_download() as download:
        page.locator("#batch-download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert sorted(archive.namelist()) == ["hand.png", "head.nii.gz", "predictions.csv"]


class Slow(Bands):
    """Takes a tenth of a second for four slices."""

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        time.sleep(0.1)
        return super().__call__(batch)


@pytest.mark.slow
def test_who_waits_sees_it_and_can_leave(tmp_path):
    """While somebody else's long volume is segmented."""
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 2000), np.uint8), np.eye(4)), tmp_path / "long.nii")
    image, _, _ = write_scans(tmp_path)
    with serving({"hands": bands(Slow())}) as service, open_page(is_local) as first:
        first.goto(service.url)
        drop(first, tmp_path / "long.nii")
        first.locator("#status", has_text="slice").wait_for()
        assert "left" in first.locator("#status", has_text="about").inner_text()
        second = first.context.browser.new_context().new_page()
        second.goto(service.url)
        drop(second, image)
        second.locator("#status", has_text="queue: 1/1").wait_for()
        take_picture_of(second, "flow-queue")
        second.locator("#stop").click()
        second.locator("#stopped", has_text="Stopped.").wait_for()
        second.locator("#stop").wait_for(state="hidden")
        first.locator("#stop").click()
        first.locator("#stopped", has_text="Stopped.").wait_for()
        first.locator("#status").wait_for(state="hidden")
        drop(second, image)  # the engine is free
        reader(second, "hand.png")


@pytest.mark.slow
def test_after_a_stop_the_scan_that_is_read_stays_chosen(tmp_path):
    """And what is said for screen readers is words, not keys of a dictionary."""
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 2000), np.uint8), np.eye(4)), tmp_path / "long.nii")
    image, _, _ = write_scans(tmp_path)
    with serving({"hands": bands(Slow())}) as service, open_page(is_local) as page:
        page.goto(service.url)
        page.evaluate(
            """() => {
              window.keys = [];
              const look = () => {
                const [key] = document.body.textContent.match(/common\\.\\w+/) ?? [];
                if (key) keys.push(key);
              };
              const all = {subtree: true, childList: true, characterData: true};
              new MutationObserver(look).observe(document.body, all);
            }"""
        )
        drop(page, image)
        reader(page, "hand.png")
        chosen = page.get_by_role("radio", name="hand.png")
        assert chosen.is_checked()
        drop(page, tmp_path / "long.nii")
        page.locator("#status", has_text="slice").wait_for()
        page.locator("#stop").click()
        page.locator("#stopped", has_text="Stopped.").wait_for()
        page.wait_for_timeout(1500)
        assert chosen.is_checked()
        reader(page, "hand.png")
        assert page.evaluate("keys") == []


def paint(page, frame) -> None:
    """A stroke in the middle: a correction that is not saved."""
    point_at(page, frame, "axial", 0.5, 0.5)
    page.keyboard.press("e")
    frame.locator("#radius").evaluate(
        "r => { r.value = r.max; r.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    page.mouse.down()
    page.mouse.up()
    frame.locator("html[data-dirty=true]").wait_for(state="attached")


def answer(page, said: list[str], yes: bool) -> None:
    """What the next question is met with."""
    page.once("dialog", lambda d: (said.append(d.message), d.accept() if yes else d.dismiss()))


def test_a_correction_is_not_lost_by_a_click(page, scans):
    page.set_input_files("#scans input[type=file]", [scans["png"], scans["tiff"]])
    page.locator("#status", has_text="2 ready").wait_for()
    frame = reader(page, "slice.png")
    said: list[str] = []
    paint(page, frame)
    answer(page, said, yes=False)
    page.locator("#worklist label", has_text="deep.tif").click()
    page.wait_for_timeout(300)
    assert "not saved" in said[0]
    assert frame.locator("#name").inner_text() == "slice.png"
    answer(page, said, yes=True)
    page.locator("#worklist label", has_text="deep.tif").click()
    reader(page, "deep.tif")
    assert len(said) == 2


@pytest.mark.slow
def test_a_saved_correction_is_marked_and_the_list_is_not_cleared_without_asking(page, scans):
    page.set_input_files("#scans input[type=file]", [scans["png"], scans["tiff"]])
    page.locator("#status", has_text="2 ready").wait_for()
    frame = reader(page, "slice.png")
    paint(page, frame)
    frame.locator("#correct").evaluate("d => d.open = true")
    frame.locator("#save").click()
    marked = page.locator("#worklist label", has_text="slice.png, corrected")
    marked.wait_for()
    assert marked.locator("input").is_checked()
    frame.locator("#facts dt", has_text="Model's own mean confidence").wait_for()
    page.locator("#worklist label", has_text="deep.tif").click()
    reader(page, "deep.tif")
    said: list[str] = []
    answer(page, said, yes=False)
    page.locator("#clear").click()
    assert "neither downloaded nor kept" in said[0]
    answer(page, said, yes=True)
    page.locator("#clear").click()
    marked.wait_for(state="detached")
    assert len(said) == 2


def drop_folder(page, image: Path) -> bool:
    """A folder with one file, as a browser tells of it: entries of which some are folders. Whether
    the page has taken it from the browser."""
    page.locator("#scans input[type=file]").wait_for(state="attached")
    return page.locator("#scans").evaluate(
        """async (zone, [name, body]) => {
          const bytes = Uint8Array.from(atob(body), (c) => c.charCodeAt(0));
          const file = new File([bytes], name, {type: "image/png"});
          const leaf = {isFile: true, name, file: (found) => found(file)};
          let told = false;
          const folder = {isDirectory: true, name: "study", createReader: () => ({
            readEntries: (found) => { found(told ? [] : [leaf]); told = true; }})};
          const event = new Event("drop", {bubbles: true, cancelable: true});
          event.dataTransfer = {items: [{webkitGetAsEntry: () => folder}]};
          zone.dispatchEvent(event);
          return event.defaultPrevented;
        }""",
        [image.name, b64encode(image.read_bytes()).decode()],
    )


def test_a_dropped_folder_is_walked_through(page, tmp_path):
    write_scans(tmp_path)
    assert drop_folder(page, tmp_path / "hand.png")
    reader(page, "study/hand.png")


@pytest.mark.slow
def test_a_chosen_folder_is_named_and_only_its_scans_are_listed(page, tmp_path):
    write_scans(tmp_path / "ward" / "p1")
    (tmp_path / "ward" / "Thumbs.db").write_bytes(b"rubbish")
    (tmp_path / "ward" / "letter.docx").write_bytes(b"no scan")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(tmp_path / "ward")
    reader(page, "ward/p1/hand.png")
    page.locator("#status", has_text="2 ready, 1 failed").wait_for()
    labels = page.locator("#worklist label")
    labels.nth(2).wait_for()
    names = labels.all_inner_texts()
    assert [name.strip()[2:] for name in names] == [
        "ward/p1/hand.png",
        "ward/p1/head.nii.gz",
        "ward/p1/notes.png – failed",
    ]


@pytest.mark.slow
def test_a_correction_is_not_lost_by_a_dropped_folder(page, scans, tmp_path):
    write_scans(tmp_path)
    drop(page, scans["png"])
    frame = reader(page, "slice.png")
    said: list[str] = []
    paint(page, frame)
    answer(page, said, yes=False)
    assert drop_folder(page, tmp_path / "hand.png"), "or the browser would go to it"
    page.wait_for_timeout(1500)
    assert len(said) == 1
    assert page.locator("#worklist label").count() == 1
    assert frame.locator("#name").inner_text() == "slice.png"
    answer(page, said, yes=True)
    drop_folder(page, tmp_path / "hand.png")
    page.locator("#worklist label", has_text="hand.png").wait_for()
    assert len(said) == 2


@pytest.mark.slow
def test_a_wrong_file_asks_and_takes_nothing_away(page, scans, tmp_path):
    letter = tmp_path / "letter.docx"
    letter.write_bytes(b"no scan")
    drop(page, scans["png"])
    frame = reader(page, "slice.png")
    said: list[str] = []
    paint(page, frame)
    answer(page, said, yes=False)
    drop(page, letter)
    page.wait_for_timeout(1500)
    assert len(said) == 1
    assert page.locator("#worklist label").count() == 1
    answer(page, said, yes=True)
    drop(page, letter)
    page.locator("#worklist label", has_text="letter.docx – failed").wait_for()
    assert len(said) == 2
    assert frame.locator("#name").inner_text() == "slice.png"
    assert frame.locator("html[data-dirty=true]").count() == 1
    frame.locator("#save:enabled").click(force=True)
    frame.locator("#dirty", has_text="saved").wait_for()


@pytest.mark.slow
def test_the_pages_are_accessible(page, scans):
    """axe-core: nothing serious in our own markup, in light and dark."""
    axe = Axe()

    def faults(page: Any, context: str | None = None) -> list[Any]:
        found = axe.run(page, context=context).response["violations"]
        return [v for v in found if v["impact"] in ("serious", "critical")]

    drop(page, scans["nifti"])
    frame = reader(page, "volume.nii.gz")
    address = page.locator("iframe.sa-reader").evaluate("f => f.contentWindow.location.href")
    frame.locator("body").wait_for()
    alone = page.context.new_page()
    alone.goto(address)
    alone.locator("html[data-complete=true]").wait_for(state="attached")
    alone.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    for scheme in ("light", "dark"):
        for tab in (page, alone):
            tab.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)
        take_picture_of(page, f"flow-{scheme}")
        for part in ("#status", "#view", ".sa-header", ".sa-footer"):
            assert not faults(page, part), part
        assert not faults(alone)
